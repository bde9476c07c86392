/** The seed: a random one for each image, unless it is locked. */

import { t } from "./i18n.js";

const SEEDS = 2 ** 32; // those that differ; larger ones give the same images

/** The inputs, which are in the document already. */
export class SeedField {
  constructor() {
    this._input = document.getElementById("seed");
    this._lock = document.getElementById("lock");
    this._isRolled = false; // by the dice, for the next images
    document.getElementById("dice").addEventListener("click", () => {
      this.roll();
      this._isRolled = true;
    });
    this._lock.addEventListener("click", () => this._setLocked(!this.isLocked));
    this._input.addEventListener("input", () => this._setLocked(this._input.value.trim() !== ""));
  }

  /** True if the next images have this seed too. */
  get isLocked() {
    return this._lock.getAttribute("aria-pressed") === "true";
  }

  /** The seed in the input; null if there is none. @returns {number | null} */
  get value() {
    const text = this._input.value.trim();
    return text === "" ? null : Number(text);
  }

  /** Fill in a seed and keep it; null for random ones. */
  set value(seed) {
    this._input.value = seed ?? "";
    this._isRolled = false;
    this._setLocked(seed !== null);
  }

  /** What is wrong with the seed, in words; null if nothing is. @returns {string | null} */
  get problem() {
    const isWhole = /^\d*$/.test(this._input.value.trim()) && Number.isSafeInteger(this.value ?? 0);
    return isWhole ? null : t("error.seed");
  }

  /** Fill in another seed. The lock stays as it is. */
  roll() {
    this._input.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  }

  /** Return the seed of the next image: a new one, unless it is locked or the dice have rolled one. @returns {number} */
  next() {
    if (!(this.isLocked || this._isRolled) || this.value === null) this.roll();
    this._isRolled = false;
    return this.value;
  }

  /** Return a seed some places after another one. @param {number} seed @param {number} places */
  static after(seed, places) {
    return (seed + places) % (seed < SEEDS ? SEEDS : Number.MAX_SAFE_INTEGER);
  }

  /** Return a seed that gives the same images and that a number holds; null for what is no seed. @returns {number | null} */
  static from(value) {
    if (Number.isSafeInteger(value) && value >= 0) return value;
    return typeof value === "string" && /^\d{1,20}$/.test(value) ? Number(BigInt(value) % BigInt(SEEDS)) : null;
  }

  _setLocked(isLocked) {
    this._lock.setAttribute("aria-pressed", String(isLocked));
  }
}

/** The choice of a size: aspect ratios, a size of one's own, or that of the image to start from. */

import { element } from "./element.js";
import { onLanguageChange, t } from "./i18n.js";
import { RATIOS, bounds, isSupported, parseSize, sizeOf } from "./sizes.js";

/** @typedef {import("./sizes.js").Size} Size */

const OWN = "own", IMAGE = "image";

/** The inputs, which are in the document already. */
export class ShapeField {
  /** @param {import("./types.js").ModelInfo} info */
  constructor(info) {
    this._info = info;
    this._choices = document.getElementById("shapes");
    this._own = document.getElementById("own-size");
    this._text = document.getElementById("size-text");
    this._width = document.getElementById("width");
    this._height = document.getElementById("height");
    /** @type {Map<string, Size>} by ratio */
    this._sizes = new Map();
    this._onChange = () => {};
    this._build();
    this.reset();
  }

  /** Call a function after each change. @param {(size: Size) => void} listener */
  onChange(listener) {
    this._onChange = listener;
  }

  /** The size; null for that of the image to start from. @returns {Size | null} */
  get value() {
    const choice = this._choice;
    if (choice === IMAGE) return null;
    return this._sizes.get(choice) ?? { width: this._width.valueAsNumber, height: this._height.valueAsNumber };
  }

  set value(size) {
    const known = [...this._sizes].find(([, each]) => each.width === size.width && each.height === size.height);
    this._width.value = size.width;
    this._height.value = size.height;
    this._choose(known ? known[0] : OWN);
  }

  /** Go back to the default size. */
  reset() {
    this.value = parseSize(this._info.default_size);
  }

  /** Offer the size of the image to start from, or no longer. @param {boolean} isOffered */
  offerImageSize(isOffered) {
    const label = this._radio(IMAGE).parentElement;
    if (label.hidden !== isOffered) return;
    label.hidden = !isOffered;
    if (isOffered) this._choose(IMAGE);
    else if (this._choice === IMAGE) this.reset();
  }

  /** What is wrong with the size, in words; null if nothing is. @returns {string | null} */
  get problem() {
    const size = this.value;
    if (size === null || isSupported(this._info, size)) return null;
    return `${t("error.size", { multiple: this._info.size_multiple })} ${this._limits()}`;
  }

  _build() {
    for (const ratio of RATIOS) {
      const size = sizeOf(this._info, ratio);
      if (size) this._sizes.set(ratio, size);
    }
    for (const choice of [...this._sizes.keys(), OWN, IMAGE]) this._choices.append(this._label(choice));
    this._radio(IMAGE).parentElement.hidden = true;
    this._choices.addEventListener("change", () => this._update());
    const limits = bounds(this._info);
    for (const [input, { min, max }] of [[this._width, limits.width], [this._height, limits.height]]) {
      Object.assign(input, { min, max, step: this._info.size_multiple });
      input.addEventListener("input", () => this._update());
      input.addEventListener("change", () => this._snap(input));
    }
    onLanguageChange(() => this._update());
  }

  _label(choice) {
    const radio = element("input", { type: "radio", name: "shape", value: choice });
    const size = this._sizes.get(choice);
    if (!size) return element("label", {}, radio, element("span", { "data-i18n": choice === OWN ? "form.ownSize" : "form.imageSize" }));
    const icon = element("i", { class: "shape", "aria-hidden": "true" });
    icon.style.aspectRatio = `${size.width} / ${size.height}`;
    icon.classList.toggle("is-tall", size.height > size.width);
    return element("label", {}, radio, icon, element("span", {}, choice));
  }

  get _choice() {
    return this._choices.querySelector("input:checked").value;
  }

  _radio(choice) {
    return this._choices.querySelector(`input[value="${choice}"]`);
  }

  _choose(choice) {
    this._radio(choice).checked = true;
    this._update();
  }

  /** Round a side to one that the plans take. */
  _snap(input) {
    const step = Number(input.step), value = Math.round(input.valueAsNumber / step) * step;
    if (Number.isFinite(value)) input.value = Math.min(Math.max(value, Number(input.min)), Number(input.max));
    this._update();
  }

  _update() {
    const size = this.value;
    this._own.hidden = this._choice !== OWN;
    if (this._choice !== OWN && size) {
      this._width.value = size.width;
      this._height.value = size.height;
    }
    this._text.textContent = size && this._choice !== OWN ? `${size.width} × ${size.height}` : size ? this._limits() : "";
    this._onChange(size);
  }

  _limits() {
    const { width, height } = bounds(this._info);
    const range = (key, { min, max }) => t("error.range", { field: t(key), low: min, high: max });
    return `${range("form.width", width)} ${range("form.height", height)}`;
  }
}

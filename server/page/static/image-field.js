/** The image to start from: its file, mask and strength. Knows files; not what is made of them. */

import { button, element, signButton } from "./element.js";
import { number, t, translate } from "./i18n.js";
import { MaskDialog } from "./mask-dialog.js";
import { settingsFrom } from "./png-settings.js";

/** @typedef {import("./settings-text.js").Settings} Settings */

const TYPES = ["image/png", "image/jpeg", "image/webp"]; // that every server reads; others are converted
const MAX_MEGABYTES = 20; // the server's default for a file
const STRENGTH = 0.6, MASK_STRENGTH = 1; // defaults, as in diffusers
const PADDING = 32; // pixels around a mask that is drawn in full detail

/** The field; it is in the container already. */
export class ImageField {
  /**
   * @param {HTMLElement} container
   * @param {{onChange: () => void, onProblem: (text: string) => void, onSettings: (settings: Settings) => void}} listener
   */
  constructor(container, listener) {
    this._listener = listener;
    /** @type {Blob | null} */
    this._file = null;
    /** @type {Blob | null} */
    this._mask = null;
    /** @type {Settings | null} */
    this._settings = null;
    this._masks = new MaskDialog((mask) => this._setMask(mask));
    this._build(container);
    this._update();
  }

  /** True if there is an image. */
  get isFilled() {
    return this._file !== null;
  }

  /** How much of the image is changed; it is set where there is an image. @param {number} strength */
  set strength(strength) {
    if (this.isFilled) this._strength.value = strength;
    this._update();
  }

  /**
   * Start from a file.
   * @param {Blob} file
   * @param {Settings | null} [settings] that the file was made with
   */
  async take(file, settings = null) {
    const image = await readable(file).catch(() => null);
    if (image === null) return this._listener.onProblem(t("image.unreadable"));
    if (image.size > MAX_MEGABYTES * 1e6) {
      const size = number(image.size / 1e6, { maximumFractionDigits: 1 });
      return this._listener.onProblem(t("image.tooLarge", { size, limit: MAX_MEGABYTES }));
    }
    this.clear();
    this._file = image;
    this._settings = settings;
    this._thumbnail.src = URL.createObjectURL(image);
    this._strength.value = STRENGTH;
    const hadFocus = document.activeElement === this._input;
    this._update();
    if (hadFocus) this._paint.focus(); // the input is hidden now
  }

  /** Start from nothing again. */
  clear() {
    if (this._thumbnail.src) URL.revokeObjectURL(this._thumbnail.src);
    this._thumbnail.removeAttribute("src");
    this._file = this._mask = this._settings = null;
    this._input.value = "";
    this._masks.reset();
    this._update();
  }

  /** Return the fields of a request; none without an image. @returns {Promise<object>} */
  async fields() {
    if (this._file === null) return {};
    const fields = { init_image: await dataUrl(this._file), strength: Number(this._strength.value) };
    if (this._mask === null) return fields;
    const crop = this._crop.checked ? { padding_mask_crop: PADDING } : {};
    return { ...fields, ...crop, mask: await dataUrl(this._mask) };
  }

  _build(container) {
    this._input = element("input", { type: "file", accept: "image/*", class: "hidden", id: "image", "data-i18n-label": "image.choose" });
    this._input.addEventListener("change", async () => {
      const [file] = this._input.files;
      if (file) await this.take(file, await settingsFrom(file));
    });
    this._empty = element("label", { class: "drop-here", for: "image" }, this._input, element("span", { "data-i18n": "image.drop" }));
    this._thumbnail = element("img", { alt: "", class: "thumbnail" });
    this._strength = element("input", { type: "range", id: "strength", min: "0.05", max: "1", step: "0.05" });
    this._strengthText = element("output", { for: "strength" });
    this._strength.addEventListener("input", () => this._update());
    this._hasMask = element("p", { class: "quiet", "data-i18n": "image.hasMask" });
    this._paint = button("image.mask", () => this._masks.open(this._thumbnail.src));
    this._unmask = button("image.removeMask", () => {
      this._masks.reset();
      this._setMask(null);
    }, { class: "plain" });
    this._crop = element("input", { type: "checkbox", id: "crop-to-mask" });
    this._cropLabel = element("label", { class: "check" }, this._crop, element("span", { "data-i18n": "image.cropToMask" }));
    this._useSettings = button("image.useSettings", () => this._listener.onSettings(this._settings), { class: "plain" });
    this._filled = element("div", { class: "image-filled" },
      element("div", { class: "image-row" },
        this._thumbnail,
        element("div", { class: "image-buttons" }, this._paint, this._unmask, this._useSettings),
        signButton("×", "image.remove", () => {
          this.clear();
          this._input.focus();
        })),
      this._hasMask,
      this._cropLabel,
      element("div", { class: "field-head" }, element("label", { for: "strength", "data-i18n": "image.strength" }), this._strengthText),
      this._strength,
      element("p", { class: "quiet", "data-i18n": "image.strengthHelp" }));
    container.append(element("h2", { "data-i18n": "image.title" }), this._empty, this._filled);
    document.body.append(this._masks.element);
    translate(container);
  }

  _setMask(mask) {
    if ((mask === null) !== (this._mask === null)) this._strength.value = mask === null ? STRENGTH : MASK_STRENGTH;
    this._mask = mask;
    this._update();
  }

  _update() {
    this._empty.hidden = this.isFilled;
    this._filled.hidden = !this.isFilled;
    this._strengthText.textContent = number(Number(this._strength.value));
    this._paint.dataset.i18n = this._mask === null ? "image.mask" : "image.editMask";
    this._paint.textContent = t(this._paint.dataset.i18n);
    for (const part of [this._hasMask, this._unmask, this._cropLabel]) part.hidden = this._mask === null;
    this._useSettings.hidden = this._settings === null;
    this._listener.onChange();
  }
}

/** @returns {Promise<Blob>} an image that the server reads. Rejected if the browser cannot read it */
async function readable(file) {
  const bitmap = await createImageBitmap(file), canvas = element("canvas");
  if (!TYPES.includes(file.type)) {
    Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
  }
  bitmap.close(); // else its pixels stay in memory for a while
  if (TYPES.includes(file.type)) return file;
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** @returns {Promise<string>} a file as a data URL */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

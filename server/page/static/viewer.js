/** A dialog that shows images one at a time, with their parameters. Knows images; not where they are from. */

import { button, element, signButton } from "./element.js";
import { number, t, translate } from "./i18n.js";
import { Zoom } from "./zoom.js";

/**
 * An image to show.
 * @typedef {object} ViewerItem
 * @property {string} src its address
 * @property {string} name of the downloaded file
 * @property {string} prompt shown beside the image, and its description for screen readers
 * @property {[string, string][]} facts names and values, already in the visitor's language
 */

/**
 * Something to do with the image that is shown.
 * @typedef {object} ViewerAction
 * @property {string} key of the message on its button
 * @property {(item: ViewerItem) => void} run
 * @property {boolean} [closes] true to close the dialog first
 * @property {boolean} [isDanger] true for what destroys something
 */

/** The dialog; `element` is to be put into the document once. */
export class Viewer {
  /** @param {ViewerAction[]} actions */
  constructor(actions) {
    /** @type {ViewerItem[]} */
    this._items = [];
    this._index = 0;
    this._build(actions);
    this._zoom = new Zoom(this._stage, this._image, {
      onChange: (percent) => this._showZoom(percent),
      onSwipe: (direction) => this.step(direction),
    });
    this.element.addEventListener("keydown", (event) => this._onKey(event));
    this.element.addEventListener("close", () => this._image.removeAttribute("src"));
    this.element.addEventListener("click", (event) => {
      if (event.target === this.element) this.element.close(); // the backdrop
    });
  }

  /** True while the dialog is open. */
  get isOpen() {
    return this.element.open;
  }

  /** The image that is shown. @returns {ViewerItem | undefined} */
  get item() {
    return this._items[this._index];
  }

  /**
   * Show one of some images. The focus returns to where it was when the dialog is closed.
   * @param {ViewerItem[]} items
   * @param {number} index
   */
  open(items, index) {
    this._items = [...items];
    this._index = index;
    translate(this.element);
    if (!this.element.open) this.element.showModal();
    this._show();
    this._stage.focus();
  }

  /**
   * Show the next or the previous image.
   * @param {number} direction 1 or -1
   */
  step(direction) {
    const index = this._index + direction;
    if (index < 0 || index >= this._items.length) return;
    this._index = index;
    this._show();
  }

  /**
   * Take images out, and show the next one; close the dialog when none is left.
   * @param {(item: ViewerItem) => boolean} isRemoved
   */
  remove(isRemoved) {
    const before = this._items.slice(0, this._index).filter((item) => !isRemoved(item)).length;
    this._items = this._items.filter((item) => !isRemoved(item));
    this._index = Math.min(before, this._items.length - 1);
    if (this._items.length === 0) this.element.close();
    else this._show();
  }

  _build(actions) {
    this._image = element("img", { alt: "", draggable: "false" });
    this._stage = element("div", {
      class: "viewer-stage", tabindex: "0", role: "group", "data-i18n-label": "viewer.stage", "aria-describedby": "viewer-help",
    }, this._image);
    this._previous = signButton("‹", "viewer.previous", () => this.step(-1), { class: "sign viewer-previous" });
    this._next = signButton("›", "viewer.next", () => this.step(1), { class: "sign viewer-next" });
    this._percent = button("viewer.fit", () => this._zoom.reset(), { class: "viewer-percent", "data-i18n-title": "viewer.fit" });
    this._percent.removeAttribute("data-i18n");
    this._position = element("p", { class: "quiet viewer-position", role: "status" });
    this._prompt = element("p", { class: "viewer-prompt", tabindex: "0", role: "group", "data-i18n-label": "prompt" });
    this._facts = element("dl", { class: "facts" });
    this._download = element("a", { class: "button", "data-i18n": "image.download" });
    const buttons = actions.map((action) => this._button(action));
    const bar = element("div", { class: "viewer-bar" },
      this._position,
      signButton("−", "viewer.zoomOut", () => this._zoom.by(1 / 1.5)),
      this._percent,
      signButton("+", "viewer.zoomIn", () => this._zoom.by(1.5)),
      signButton("×", "close", () => this.element.close(), { class: "sign viewer-close" }));
    const side = element("div", { class: "viewer-side" },
      this._prompt, this._facts, element("div", { class: "buttons" }, this._download, ...buttons),
      element("p", { class: "quiet", id: "viewer-help", "data-i18n": "viewer.help" }));
    const pictures = element("div", { class: "viewer-pictures" }, this._stage, this._previous, this._next);
    this.element = element("dialog", { class: "viewer", "data-i18n-label": "viewer.title" }, bar, pictures, side);
    translate(this.element);
  }

  /** @param {ViewerAction} action */
  _button({ key, run, closes = false, isDanger = false }) {
    return button(key, () => {
      const item = this.item;
      if (closes) this.element.close();
      run(item);
    }, { class: isDanger ? "danger" : "" });
  }

  _show() {
    const item = this._items[this._index], hadFocus = document.activeElement;
    this._image.src = item.src;
    this._image.alt = item.prompt;
    this._zoom.reset();
    this._prompt.textContent = item.prompt;
    this._facts.replaceChildren(...item.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    this._download.href = item.src;
    this._download.download = item.name;
    this._position.textContent = t("viewer.position", { index: this._index + 1, total: this._items.length });
    this._previous.disabled = this._index === 0;
    this._next.disabled = this._index === this._items.length - 1;
    if (hadFocus === this._previous && this._previous.disabled) this._stage.focus();
    if (hadFocus === this._next && this._next.disabled) this._stage.focus();
  }

  _showZoom(percent) {
    this._percent.textContent = percent === null ? "" : number(percent / 100, { style: "percent", maximumFractionDigits: 0 });
    this._percent.setAttribute("aria-label", `${t("viewer.fit")}, ${this._percent.textContent}`);
  }

  /** @param {KeyboardEvent} event */
  _onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target === this._prompt) return;
    const pan = (x, y) => this._zoom.pan(80 * x, 80 * y);
    const isZoomed = this._zoom.isZoomed;
    const actions = {
      ArrowLeft: () => (isZoomed ? pan(1, 0) : this.step(-1)),
      ArrowRight: () => (isZoomed ? pan(-1, 0) : this.step(1)),
      ArrowUp: () => pan(0, 1),
      ArrowDown: () => pan(0, -1),
      PageUp: () => this.step(-1),
      PageDown: () => this.step(1),
      Home: () => this.step(-this._index),
      End: () => this.step(this._items.length - 1 - this._index),
      "+": () => this._zoom.by(1.5),
      "=": () => this._zoom.by(1.5),
      "-": () => this._zoom.by(1 / 1.5),
      0: () => this._zoom.reset(),
      1: () => this._zoom.toPixels(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    if (["ArrowUp", "ArrowDown"].includes(event.key) && !isZoomed) return; // scrolls the parameters
    event.preventDefault();
    actions[event.key]();
  }
}

/** A canvas over an image, on which a mask is painted. Knows pointers and keys; not what the mask is for. */

import { button, element } from "./element.js";
import { number, t, translate } from "./i18n.js";
import { Mask, drawStep, paintedShare } from "./mask.js";

const CANVAS = 1024; // pixels of the canvas's longer side; `value` draws again in the image's size
const MAX_VALUE = 16_000_000; // pixels of a value; some browsers have no larger canvases
const COLOUR = "#e5106f";

let editors = 0;

/** The editor; `element` is to be put into the document once. */
export class MaskEditor {
  /** @param {{onChange?: () => void}} [options] `onChange` is called after each change of the mask */
  constructor({ onChange = () => {} } = {}) {
    this._onChange = onChange;
    this._mask = new Mask();
    this._isEraser = false;
    this._scale = 1; // pixels of the canvas for one of the image
    this._spot = { x: 0, y: 0 }; // where keys paint, in pixels of the image
    /** @type {{id: number, step: import("./mask.js").MaskStep} | null} */
    this._stroke = null;
    this._build();
    this._listen();
    this._update();
  }

  /** True if nothing is painted. */
  get isEmpty() {
    return paintedShare(this._context) === 0;
  }

  /** The steps of the drawing, to go back to them. @returns {import("./mask.js").MaskStep[]} */
  get steps() {
    return this._mask.steps;
  }

  set steps(steps) {
    this._mask = new Mask(steps);
    this._redraw();
  }

  /**
   * Show an image and begin an empty mask.
   * @param {string} src address of the image
   * @returns {Promise<void>} rejected if the browser cannot show it
   */
  async load(src) {
    this._image.src = src;
    await this._image.decode();
    const { naturalWidth: width, naturalHeight: height } = this._image;
    this._scale = Math.min(1, CANVAS / Math.max(width, height));
    this._canvas.width = Math.max(1, Math.round(width * this._scale));
    this._canvas.height = Math.max(1, Math.round(height * this._scale));
    this._frame.style.setProperty("--ratio", width / height);
    this._spot = { x: width / 2, y: height / 2 };
    this.steps = [];
  }

  /**
   * Return the mask as a PNG file of the image's size: white is painted, black is not.
   * @returns {Promise<Blob | null>} null if nothing is painted
   */
  async value() {
    if (this.isEmpty) return null;
    const { naturalWidth: width, naturalHeight: height } = this._image;
    const scale = Math.min(1, Math.sqrt(MAX_VALUE / (width * height)));
    const canvas = element("canvas", { width: `${Math.round(width * scale)}`, height: `${Math.round(height * scale)}` });
    const context = canvas.getContext("2d");
    this._mask.draw(context, scale, "white");
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** Move the focus to the canvas. */
  focus() {
    this._canvas.focus();
  }

  undo() {
    this._mask.undo();
    this._redraw();
  }

  redo() {
    this._mask.redo();
    this._redraw();
  }

  clear() {
    if (!this.isEmpty) this._add({ kind: "clear" });
  }

  invert() {
    this._add({ kind: "invert" });
  }

  /** @param {boolean} isEraser */
  choose(isEraser) {
    this._isEraser = isEraser;
    this._update();
  }

  /** Change the brush's size by steps of the slider. @param {number} steps */
  resize(steps) {
    this._slider.value = String(Number(this._slider.value) + steps);
    this._update();
  }

  /** The brush's diameter in pixels of the image: 1 to 40 % of its longer side. */
  get size() {
    const longer = Math.max(this._image.naturalWidth, this._image.naturalHeight, 1);
    return Math.max(1, (Number(this._slider.value) / 100) * longer);
  }

  _build() {
    const id = `mask-help-${++editors}`;
    this._image = element("img", { class: "mask-image", alt: "", draggable: "false" });
    this._canvas = element("canvas", {
      class: "mask-canvas", tabindex: "0", role: "application", width: "1", height: "1",
      "data-i18n-label": "mask.canvas", "aria-describedby": id,
    });
    this._context = this._canvas.getContext("2d", { willReadFrequently: true });
    this._cursor = element("span", { class: "mask-cursor", "aria-hidden": "true", hidden: true });
    this._frame = element("div", { class: "mask-stage" }, this._image, this._canvas, this._cursor);
    this._brush = button("mask.brush", () => this.choose(false));
    this._eraser = button("mask.eraser", () => this.choose(true));
    this._slider = element("input", { type: "range", min: "1", max: "40", step: "1", value: "8" });
    this._undo = button("mask.undo", () => this.undo());
    this._redo = button("mask.redo", () => this.redo());
    this._clear = button("mask.clear", () => this.clear());
    const inverts = button("mask.invert", () => this.invert());
    const size = element("label", { class: "mask-size" }, element("span", { "data-i18n": "mask.size" }), this._slider);
    this._status = element("p", { class: "quiet", role: "status" });
    this.element = element("div", { class: "mask-editor", role: "group", "data-i18n-label": "mask.title" },
      element("div", { class: "mask-tools", role: "group", "data-i18n-label": "mask.tools" },
        this._brush, this._eraser, size, this._undo, this._redo, this._clear, inverts),
      this._frame,
      this._status,
      element("p", { class: "quiet", id, "data-i18n": "mask.help" }));
    translate(this.element);
  }

  _listen() {
    const canvas = this._canvas;
    canvas.addEventListener("pointerdown", (event) => this._onDown(event));
    canvas.addEventListener("pointermove", (event) => this._onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this._onUp(event));
    canvas.addEventListener("pointerleave", () => this._hideCursor());
    canvas.addEventListener("blur", () => this._hideCursor());
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && this._showCursor());
    canvas.addEventListener("keydown", (event) => this._onCanvasKey(event));
    this.element.addEventListener("keydown", (event) => this._onKey(event));
    this._slider.addEventListener("input", () => this._update());
  }

  /** @param {import("./mask.js").MaskStep} step */
  _add(step) {
    drawStep(this._context, step, this._scale, COLOUR);
    this._keep(step);
  }

  /** @param {import("./mask.js").MaskStep} step one that is drawn */
  _keep(step) {
    this._mask.add(step);
    this._update();
    this._onChange();
  }

  _redraw() {
    this._mask.draw(this._context, this._scale, COLOUR);
    this._update();
    this._onChange();
  }

  _update() {
    const share = paintedShare(this._context), focused = document.activeElement;
    this._brush.setAttribute("aria-pressed", String(!this._isEraser));
    this._eraser.setAttribute("aria-pressed", String(this._isEraser));
    this._undo.disabled = !this._mask.canUndo;
    this._redo.disabled = !this._mask.canRedo;
    this._clear.disabled = share === 0;
    if (focused instanceof HTMLButtonElement && focused.disabled) this.focus(); // else keys reach nothing
    const painted = number(share, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
    this._slider.setAttribute("aria-valuetext", t("pixels", { count: Math.round(this.size) }));
    this._status.textContent = share ? t("mask.painted", { share: painted }) : t("mask.nothing");
    if (!this._cursor.hidden) this._showCursor();
  }

  /** @returns {[number, number]} the place of an event in pixels of the image */
  _point(event) {
    const box = this._canvas.getBoundingClientRect(), { naturalWidth: width, naturalHeight: height } = this._image;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  _onDown(event) {
    if (event.button !== 0 || this._stroke !== null) return;
    event.preventDefault(); // else the image is dragged or text is selected
    this._canvas.focus({ preventScroll: true });
    this._canvas.setPointerCapture(event.pointerId);
    const step = { kind: "stroke", isEraser: this._isEraser, size: this.size, points: [this._point(event)] };
    this._stroke = { id: event.pointerId, step };
    this._showCursor(event);
    drawStep(this._context, step, this._scale, COLOUR);
  }

  _onMove(event) {
    this._showCursor(event);
    if (this._stroke?.id !== event.pointerId) return;
    const { step } = this._stroke, from = step.points.length - 1;
    const events = event.getCoalescedEvents?.() ?? [];
    step.points.push(...(events.length ? events : [event]).map((one) => this._point(one)));
    drawStep(this._context, step, this._scale, COLOUR, from);
  }

  _onUp(event) {
    if (this._stroke?.id !== event.pointerId) return;
    const { step } = this._stroke;
    this._stroke = null;
    this._keep(step);
  }

  /** Keys that work everywhere in the editor. @param {KeyboardEvent} event */
  _onKey(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) this.redo();
    else this.undo();
  }

  /** Keys that paint. @param {KeyboardEvent} event */
  _onCanvasKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const actions = {
      " ": () => this._paintTo(this._spot),
      Enter: () => this._paintTo(this._spot),
      "[": () => this.resize(-1),
      "]": () => this.resize(1),
      b: () => this.choose(false),
      e: () => this.choose(true),
      i: () => this.invert(),
      Delete: () => this.clear(),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (Object.hasOwn(moves, key)) this._move(moves[key], event.shiftKey);
    else if (Object.hasOwn(actions, key)) actions[key]();
    else return;
    event.preventDefault();
  }

  _move([x, y], paints) {
    const distance = Math.max(1, this.size / 2), { naturalWidth: width, naturalHeight: height } = this._image;
    const to = {
      x: Math.min(Math.max(this._spot.x + x * distance, 0), width),
      y: Math.min(Math.max(this._spot.y + y * distance, 0), height),
    };
    if (paints) this._paintTo(to);
    this._spot = to;
    this._showCursor();
  }

  _paintTo(to) {
    const points = [[this._spot.x, this._spot.y], [to.x, to.y]];
    this._add({ kind: "stroke", isEraser: this._isEraser, size: this.size, points });
    this._showCursor();
  }

  /** Show the brush's outline, at a pointer or where keys paint. @param {PointerEvent} [event] */
  _showCursor(event) {
    if (event) [this._spot.x, this._spot.y] = this._point(event);
    const share = this._canvas.offsetWidth / Math.max(1, this._image.naturalWidth), { style } = this._cursor;
    this._cursor.hidden = false;
    style.width = style.height = `${this.size * share}px`;
    style.left = `${this._canvas.offsetLeft + this._spot.x * share}px`;
    style.top = `${this._canvas.offsetTop + this._spot.y * share}px`;
  }

  _hideCursor() {
    if (document.activeElement !== this._canvas || !this._canvas.matches(":focus-visible")) this._cursor.hidden = true;
  }
}

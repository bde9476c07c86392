/** Zoom and pan of an image inside a stage, by wheel, pointers and calls. Knows no dialog and no keys. */

const MAX_PIXELS = 8; // screen pixels for one of the image's
const SWIPE = 60; // pixels of a movement to the side that means the next image
const DOUBLE = 300; // milliseconds between two taps that are one double tap

/** The image fits into the stage at first. */
export class Zoom {
  /**
   * @param {HTMLElement} stage has the size that there is to show
   * @param {HTMLImageElement} image fits into the stage by CSS, and is moved by a transformation
   * @param {{onChange: (percent: number | null) => void, onSwipe: (direction: number) => void}} events `percent`: of
   *     the image's own pixels, null before it is loaded
   */
  constructor(stage, image, { onChange, onSwipe }) {
    this._stage = stage;
    this._image = image;
    this._onChange = onChange;
    this._onSwipe = onSwipe;
    this._scale = 1;
    this._x = this._y = 0;
    /** @type {Map<number, {x: number, y: number}>} */
    this._pointers = new Map();
    this._moved = 0;
    this._tapped = -DOUBLE;
    image.addEventListener("load", () => this._apply());
    stage.addEventListener("wheel", (event) => this._onWheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this._onDown(event));
    stage.addEventListener("pointermove", (event) => this._onMove(event));
    stage.addEventListener("pointerup", (event) => this._onUp(event));
    stage.addEventListener("pointercancel", (event) => this._pointers.delete(event.pointerId));
    new ResizeObserver(() => this._apply()).observe(stage);
  }

  get isZoomed() {
    return this._scale > 1.001;
  }

  /** Fit the image into the stage. */
  reset() {
    this._scale = 1;
    this._x = this._y = 0;
    this._apply();
  }

  /** Show one pixel of the image as one of the screen. */
  toPixels() {
    this._to(1 / this._fit(), 0, 0);
  }

  /**
   * Enlarge around the stage's middle.
   * @param {number} factor
   */
  by(factor) {
    this._to(this._scale * factor, 0, 0);
  }

  /**
   * Move the image by pixels of the screen.
   * @param {number} x
   * @param {number} y
   */
  pan(x, y) {
    this._x += x;
    this._y += y;
    this._apply();
  }

  /** @returns {number} screen pixels for one of the image's while it fits; 1 before it is loaded */
  _fit() {
    return this._image.naturalWidth ? this._image.offsetWidth / this._image.naturalWidth || 1 : 1;
  }

  /** Set the scale, around a point that is given from the stage's middle. */
  _to(scale, x, y) {
    const bounded = Math.min(Math.max(scale, 1), Math.max(MAX_PIXELS / this._fit(), 1));
    const factor = bounded / this._scale;
    this._x = x - (x - this._x) * factor;
    this._y = y - (y - this._y) * factor;
    this._scale = bounded;
    this._apply();
  }

  _apply() {
    const roomX = Math.max(0, (this._image.offsetWidth * this._scale - this._stage.clientWidth) / 2);
    const roomY = Math.max(0, (this._image.offsetHeight * this._scale - this._stage.clientHeight) / 2);
    this._x = Math.min(Math.max(this._x, -roomX), roomX);
    this._y = Math.min(Math.max(this._y, -roomY), roomY);
    this._image.style.transform = `translate(${this._x}px, ${this._y}px) scale(${this._scale})`;
    this._stage.classList.toggle("is-zoomed", this.isZoomed);
    this._onChange(this._image.naturalWidth ? 100 * this._scale * this._fit() : null);
  }

  /** @returns {[number, number]} a point of the window, from the stage's middle */
  _point(x, y) {
    const box = this._stage.getBoundingClientRect();
    return [x - box.left - box.width / 2, y - box.top - box.height / 2];
  }

  _onWheel(event) {
    event.preventDefault();
    const pixels = event.deltaMode === 1 ? 30 * event.deltaY : event.deltaY; // lines, in some browsers
    const speed = event.ctrlKey ? 0.01 : 0.002; // a pinch on a trackpad comes as small steps with Ctrl
    this._to(this._scale * Math.exp(-speed * Math.min(Math.max(pixels, -400), 400)), ...this._point(event.clientX, event.clientY));
  }

  _onDown(event) {
    if (event.button !== 0) return;
    if (this._pointers.size === 0) this._moved = 0;
    this._pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this._stage.setPointerCapture(event.pointerId);
  }

  _onMove(event) {
    const last = this._pointers.get(event.pointerId);
    if (last === undefined) return;
    const now = { x: event.clientX, y: event.clientY };
    if (this._pointers.size === 1) {
      this._moved += now.x - last.x;
      this.pan(now.x - last.x, now.y - last.y);
    } else {
      this._moved = NaN; // a pinch is no swipe
      const [other] = [...this._pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const distance = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      const middle = this._point((now.x + other.x) / 2, (now.y + other.y) / 2);
      this._to((this._scale * distance(now)) / distance(last), ...middle);
    }
    this._pointers.set(event.pointerId, now);
  }

  _onUp(event) {
    if (!this._pointers.delete(event.pointerId) || this._pointers.size > 0) return;
    if (!this.isZoomed && Math.abs(this._moved) > SWIPE) this._onSwipe(this._moved < 0 ? 1 : -1);
    if (!(Math.abs(this._moved) < 5)) return;
    if (event.timeStamp - this._tapped < DOUBLE) {
      this._tapped = -DOUBLE;
      if (this.isZoomed) this.reset();
      else this._to(Math.max(2, 1 / this._fit()), ...this._point(event.clientX, event.clientY));
    } else this._tapped = event.timeStamp;
  }
}

/** A mask as a list of what was drawn, with undo and redo. Knows canvases; no pointers, no keys and no page. */

/**
 * A step of the drawing: a stroke through points in pixels of the image, or one of two changes of the whole mask.
 * @typedef {{kind: "stroke", isEraser: boolean, size: number, points: [number, number][]} | {kind: "clear"} |
 *     {kind: "invert"}} MaskStep
 */

/** Steps are kept rather than pixels: an image may have 40 million, and undo goes back to the beginning. */
export class Mask {
  /** @param {MaskStep[]} [steps] those to begin with */
  constructor(steps = []) {
    this._steps = [...steps];
    /** @type {MaskStep[]} */
    this._undone = [];
  }

  /** A copy of the list of steps. */
  get steps() {
    return [...this._steps];
  }

  get canUndo() {
    return this._steps.length > 0;
  }

  get canRedo() {
    return this._undone.length > 0;
  }

  /** @param {MaskStep} step */
  add(step) {
    this._steps.push(step);
    this._undone = [];
  }

  undo() {
    if (this.canUndo) this._undone.push(this._steps.pop());
  }

  redo() {
    if (this.canRedo) this._steps.push(this._undone.pop());
  }

  /**
   * Draw the mask over a transparent canvas.
   * @param {CanvasRenderingContext2D} context
   * @param {number} scale pixels of the canvas for one of the image
   * @param {string} colour
   */
  draw(context, scale, colour) {
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    for (const step of this._steps) drawStep(context, step, scale, colour);
  }
}

/**
 * Draw one step over those before it.
 * @param {CanvasRenderingContext2D} context
 * @param {MaskStep} step
 * @param {number} scale pixels of the canvas for one of the image
 * @param {string} colour
 * @param {number} [from] index of the first point to draw
 */
export function drawStep(context, step, scale, colour, from = 0) {
  const { width, height } = context.canvas;
  context.fillStyle = context.strokeStyle = colour;
  if (step.kind === "clear") context.clearRect(0, 0, width, height);
  if (step.kind === "invert") {
    context.globalCompositeOperation = "xor"; // opaque becomes transparent, and transparent opaque
    context.fillRect(0, 0, width, height);
  }
  if (step.kind === "stroke") {
    context.globalCompositeOperation = step.isEraser ? "destination-out" : "source-over";
    context.lineWidth = step.size * scale;
    context.lineCap = context.lineJoin = "round";
    const points = step.points.slice(from).map(([x, y]) => [x * scale, y * scale]);
    context.beginPath();
    context.arc(...points[0], context.lineWidth / 2, 0, 2 * Math.PI); // a line without a length is not drawn
    context.fill();
    context.beginPath();
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

/**
 * Return the share of a canvas that is painted. The soft edges that an eraser leaves are not.
 * @param {CanvasRenderingContext2D} context
 * @returns {number} 0 to 1
 */
export function paintedShare(context) {
  const { width, height } = context.canvas;
  const { data } = context.getImageData(0, 0, width, height);
  let painted = 0;
  for (let at = 3; at < data.length; at += 4) painted += data[at] >> 7;
  return painted / (width * height);
}

/** Sizes of images within the limits of the plans. Knows numbers only. */

/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {{width: number, height: number}} Size pixels */

/** Aspect ratios to offer, as width to height. */
export const RATIOS = ["1:1", "4:3", "3:4", "16:9", "9:16"];
const LIKENESS = 0.06; // by which the ratio of an offered size may differ from the one that it is offered for

/**
 * @param {string} text WIDTHxHEIGHT
 * @returns {Size}
 */
export function parseSize(text) {
  const [width, height] = text.split("x").map(Number);
  return { width, height };
}

/**
 * Return true if the plans take a size.
 * @param {ModelInfo} info
 * @param {Size} size
 */
export function isSupported(info, { width, height }) {
  const isWhole = [width, height].every((side) => Number.isInteger(side) && side % info.size_multiple === 0);
  return isWhole && info.size_limits.some((limits) => isWithin(limits, width, height));
}

/**
 * Return the best size of an aspect ratio: the default, a recommended one, or one with the area of the default.
 * @param {ModelInfo} info
 * @param {string} ratio one of RATIOS
 * @returns {Size | null} null if the plans take none
 */
export function sizeOf(info, ratio) {
  const [across, down] = ratio.split(":").map(Number), wanted = across / down;
  const known = [info.default_size, ...info.recommended_sizes].map(parseSize).filter((size) => isSupported(info, size));
  return known.find((size) => size.width / size.height === wanted) ?? nearest(info, wanted) ?? null;
}

/** @returns {Size | undefined} the size with the ratio and at most the area of the default, as far as plans take one */
function nearest(info, ratio) {
  const area = parseSize(info.default_size).width * parseSize(info.default_size).height, step = info.size_multiple;
  const found = [];
  for (const limits of info.size_limits) {
    for (let width = roundUp(limits.min_width, step); width <= limits.max_width; width += step) {
      const height = Math.round(width / ratio / step) * step;
      const error = Math.abs(Math.log(width / height / ratio));
      if (isWithin(limits, width, height) && error <= LIKENESS) found.push({ width, height, error });
    }
  }
  // a poor ratio is as bad as a wrong area: both are measured by their logarithms
  const badness = ({ width, height, error }) => Math.abs(Math.log((width * height) / area)) + 2 * error;
  const best = found.sort((a, b) => badness(a) - badness(b))[0];
  return best && { width: best.width, height: best.height };
}

/**
 * Return the sides that the plans take at all, for inputs.
 * @param {ModelInfo} info
 */
export function bounds({ size_limits: limits }) {
  return {
    width: { min: Math.min(...limits.map((each) => each.min_width)), max: Math.max(...limits.map((each) => each.max_width)) },
    height: { min: Math.min(...limits.map((each) => each.min_height)), max: Math.max(...limits.map((each) => each.max_height)) },
  };
}

function isWithin(limits, width, height) {
  return width >= limits.min_width && width <= limits.max_width && height >= limits.min_height && height <= limits.max_height;
}

function roundUp(value, step) {
  return Math.ceil(value / step) * step;
}

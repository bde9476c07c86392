/** Settings out of text: the server's JSON record, and the parameters of AUTOMATIC1111's web UI. Knows no files. */

/**
 * Settings of an image under the names of the HTTP API. What a text does not say, or says wrongly, is absent.
 * @typedef {object} Settings
 * @property {string} [prompt]
 * @property {string} [negative_prompt]
 * @property {number} [width] pixels
 * @property {number} [height] pixels
 * @property {number} [num_inference_steps]
 * @property {number} [seed] one with the same noise, if a number cannot hold the seed
 * @property {number} [guidance_scale] as in diffusers
 * @property {string} [lora]
 * @property {number} [lora_strength]
 * @property {number} [strength] of an image that was the beginning
 */

const MAX_PROMPT = 32_000; // characters; the server's limit
const MAX_LINE = 20_000; // characters of a line of settings
const NOISE_SEEDS = 2n ** 32n; // seeds that differ by a multiple give the same noise
/** Limits of the server, and whether only whole numbers are valid. */
const NUMBERS = {
  width: [1, 999_999, true],
  height: [1, 999_999, true],
  num_inference_steps: [1, 100, true],
  guidance_scale: [0, 30, false],
  lora_strength: [-4, 4, false],
  strength: [0, 1, false],
};

/**
 * Return the settings of the server's record.
 * @param {string} text JSON
 * @returns {Settings | null} null if it is no such record
 */
export function parseRecord(text) {
  let record;
  try {
    record = JSON.parse(text, (name, value, context) => (name === "seed" ? (context?.source ?? value) : value));
  } catch {
    return null;
  }
  return typeof record === "object" && record !== null && !Array.isArray(record) ? checked(record) : null;
}

/**
 * Return the settings of AUTOMATIC1111's text: the prompt, "Negative prompt: ...", and a line of "Name: value" pairs.
 * @param {string} text
 * @returns {Settings | null} null if the last line holds no settings
 */
export function parseParameters(text) {
  const lines = text.replaceAll("\r\n", "\n").trim().split("\n");
  const pairs = pairsOf(lines.pop() ?? "");
  if (!pairs.has("Steps") && !pairs.has("Seed")) return null;
  const marker = "Negative prompt:", at = lines.findIndex((line) => line.startsWith(marker));
  const prompt = (at < 0 ? lines : lines.slice(0, at)).join("\n");
  const negative = at < 0 ? "" : lines.slice(at).join("\n").slice(marker.length).trim();
  const [width, height] = (pairs.get("Size") ?? "").split("x");
  const cfg = number(pairs.get("CFG scale"));
  const found = {
    prompt,
    negative_prompt: negative,
    width: number(width),
    height: number(height),
    num_inference_steps: number(pairs.get("Steps")),
    seed: pairs.get("Seed"),
    guidance_scale: cfg === undefined ? undefined : Math.max(0, Number((cfg - 1).toFixed(6))),
    lora: pairs.get("LoRA"),
    lora_strength: number(pairs.get("LoRA strength")),
    strength: number(pairs.get("Denoising strength")),
  };
  return checked(pairs.has("LoRA") ? found : { ...found, ...loraTag(prompt) });
}

/** @returns {Map<string, string>} pairs of "Name: value", separated by commas; a value may be a JSON string */
function pairsOf(line) {
  const pairs = new Map();
  let start = 0, isQuoted = false;
  if (line.length > MAX_LINE) return pairs;
  for (let at = 0; at <= line.length; at++) {
    if (line[at] === '"' && line[at - 1] !== "\\") isQuoted = !isQuoted;
    if (at < line.length && (line[at] !== "," || isQuoted)) continue;
    const pair = line.slice(start, at), colon = pair.indexOf(":");
    start = at + 1;
    if (colon > 0) pairs.set(pair.slice(0, colon).trim(), unquoted(pair.slice(colon + 1).trim()));
  }
  return pairs;
}

function unquoted(value) {
  if (!value.startsWith('"')) return value;
  try {
    return String(JSON.parse(value));
  } catch {
    return value;
  }
}

/** @returns {Settings} the LoRA of a tag <lora:name:strength>, and the prompt without the tag; empty without one */
function loraTag(prompt) {
  const tag = prompt.match(/<lora:([^:<>]{1,200})(?::([^:<>]{1,20}))?>/);
  if (tag === null) return {};
  return { prompt: prompt.replace(tag[0], "").trim(), lora: tag[1], lora_strength: number(tag[2] ?? "1") };
}

/** @returns {Settings} the values of a record that have the right types and sizes */
function checked(record) {
  const found = {};
  for (const name of ["prompt", "negative_prompt", "lora"]) {
    const value = record[name];
    if (typeof value === "string" && value.length <= MAX_PROMPT) found[name] = value;
  }
  for (const [name, [low, high, isWhole]] of Object.entries(NUMBERS)) {
    const value = record[name];
    const isNumber = typeof value === "number" && value >= low && value <= high;
    if (isNumber && (!isWhole || Number.isInteger(value))) found[name] = value;
  }
  const seed = exactSeed(record.seed);
  if (seed !== undefined) found.seed = seed;
  return found;
}

/** @returns {number | undefined} a seed that a number holds, with the same noise as the given one */
function exactSeed(value) {
  if (!/^\d{1,20}$/.test(String(value))) return undefined;
  const seed = BigInt(value);
  return Number(seed <= BigInt(Number.MAX_SAFE_INTEGER) ? seed : seed % NOISE_SEEDS);
}

/** @returns {number | undefined} */
function number(text) {
  const value = text === undefined || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : undefined;
}

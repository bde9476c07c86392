/**
 * The settings that an image file was generated with, out of its metadata. Knows file formats; not the form.
 *
 * Reads what the server writes ("zimage-trt", JSON) and what AUTOMATIC1111's web UI and compatible tools write
 * ("parameters"): PNG's tEXt, zTXt and iTXt, EXIF's UserComment and XMP in JPEG and WebP. A file may be hostile:
 * its parts are counted and bounded, and nothing in it is trusted but the shape that is checked here.
 */

import { parseParameters, parseRecord } from "./settings-text.js";

/** @typedef {import("./settings-text.js").Settings} Settings */

const MAX_FILE = 64 << 20; // bytes
const MAX_PARTS = 20_000; // chunks or segments of a file
const MAX_TEXT = 1 << 20; // bytes of a text, also once it is decompressed
const RECORD = "zimage-trt";
const PARAMETERS = "parameters";
const EXIF = "Exif\0\0";
const XMP = "http://ns.adobe.com/xap/1.0/\0";

/**
 * Return the settings in an image file.
 * @param {Blob} file any file
 * @returns {Promise<Settings | null>} null if there are none, or the file is damaged
 */
export async function settingsFrom(file) {
  if (file.size > MAX_FILE) return null;
  const buffer = await file.arrayBuffer().catch(() => null); // the file may be gone by now
  if (buffer === null) return null;
  const bytes = new Uint8Array(buffer);
  try {
    const texts = await textsOf(bytes);
    const record = texts.has(RECORD) ? parseRecord(texts.get(RECORD)) : null;
    return record ?? (texts.has(PARAMETERS) ? parseParameters(texts.get(PARAMETERS)) : null);
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) return null; // ends before its own lengths say
    throw error;
  }
}

/** @returns {Promise<Map<string, string>>} the texts of a file by keyword */
async function textsOf(bytes) {
  if (latin1(bytes, 0, 8) === "\x89PNG\r\n\x1a\n") return pngTexts(bytes);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return embeddedTexts(jpegSegments(bytes));
  if (latin1(bytes, 0, 4) === "RIFF" && latin1(bytes, 8, 12) === "WEBP") return embeddedTexts(webpChunks(bytes));
  return new Map();
}

async function pngTexts(bytes) {
  const texts = new Map(), view = viewOf(bytes);
  for (let at = 8, parts = 0; at + 12 <= bytes.length && parts < MAX_PARTS; parts++) {
    const size = view.getUint32(at), kind = latin1(bytes, at + 4, at + 8);
    const data = bytes.subarray(at + 8, at + 8 + size);
    if (kind === "IEND" || data.length < size) break;
    if (["tEXt", "zTXt", "iTXt"].includes(kind) && size <= MAX_TEXT) await addPngText(texts, kind, data);
    at += size + 12;
  }
  return texts;
}

async function addPngText(texts, kind, data) {
  const end = data.indexOf(0), keyword = latin1(data, 0, end);
  if (![RECORD, PARAMETERS].includes(keyword) || texts.has(keyword)) return;
  if (kind === "tEXt") texts.set(keyword, latin1(data, end + 1));
  if (kind === "zTXt") texts.set(keyword, latin1(await inflated(data.subarray(end + 2))));
  if (kind === "iTXt") {
    const isCompressed = data[end + 1] === 1;
    const tag = data.indexOf(0, end + 3), translated = data.indexOf(0, tag + 1); // ends of two more fields
    if (tag < 0 || translated < 0) return;
    const text = data.subarray(translated + 1);
    texts.set(keyword, utf8(isCompressed ? await inflated(text) : text));
  }
}

/** @yields {[string, Uint8Array]} EXIF and XMP in the segments before the pixels */
function* jpegSegments(bytes) {
  const view = viewOf(bytes);
  for (let at = 2, parts = 0; at + 4 <= bytes.length && parts < MAX_PARTS; parts++) {
    const marker = view.getUint16(at), size = view.getUint16(at + 2);
    if (marker === 0xffff) {
      at += 1; // a fill byte
      continue;
    }
    if (marker < 0xff00 || marker === 0xffda || size < 2) return;
    const data = bytes.subarray(at + 4, at + 2 + size);
    if (marker === 0xffe1 && latin1(data, 0, EXIF.length) === EXIF) yield ["EXIF", data];
    if (marker === 0xffe1 && latin1(data, 0, XMP.length) === XMP) yield ["XMP ", data.subarray(XMP.length)];
    at += 2 + size;
  }
}

/** @yields {[string, Uint8Array]} EXIF and XMP in the chunks of a file */
function* webpChunks(bytes) {
  const view = viewOf(bytes);
  for (let at = 12, parts = 0; at + 8 <= bytes.length && parts < MAX_PARTS; parts++) {
    const kind = latin1(bytes, at, at + 4), size = view.getUint32(at + 4, true);
    if (kind === "EXIF" || kind === "XMP ") yield [kind, bytes.subarray(at + 8, at + 8 + size)];
    at += 8 + size + (size % 2);
  }
}

/** @returns {Map<string, string>} the texts in blocks of EXIF and XMP */
function embeddedTexts(blocks) {
  const texts = new Map();
  for (const [kind, data] of blocks) {
    const text = kind === "EXIF" ? userComment(data) : xmpProperty(utf8(data.subarray(0, MAX_TEXT)), `zimage:${RECORD}`);
    if (text !== null) texts.set(kind === "EXIF" ? PARAMETERS : RECORD, text);
  }
  return texts;
}

/** @returns {string | null} the content of an XML element that holds text only */
function xmpProperty(xml, name) {
  const start = xml.indexOf(`<${name}>`), end = xml.indexOf(`</${name}>`, start);
  if (start < 0 || end < 0) return null;
  const entities = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return xml.slice(start + name.length + 2, end).replace(/&(lt|gt|quot|apos|amp);/g, (_, entity) => entities[entity]);
}

/** @returns {string | null} EXIF's UserComment. Throws RangeError if the block ends too early */
function userComment(block) {
  const tiff = latin1(block, 0, EXIF.length) === EXIF ? block.subarray(EXIF.length) : block;
  const view = viewOf(tiff), isLittle = tiff[0] === 0x49;
  const root = view.getUint32(4, isLittle);
  const exif = entry(view, root, 0x8769, isLittle);
  const comment = exif && entry(view, view.getUint32(exif + 8, isLittle), 0x9286, isLittle);
  if (!comment) return null;
  const size = view.getUint32(comment + 4, isLittle), at = view.getUint32(comment + 8, isLittle);
  if (size < 8 || size > MAX_TEXT || at + size > tiff.length) return null;
  const encoding = latin1(tiff, at, at + 8), text = tiff.subarray(at + 8, at + size);
  if (encoding === "UNICODE\0") return new TextDecoder(isLittle ? "utf-16le" : "utf-16be").decode(text);
  return encoding.startsWith("ASCII") || encoding === "\0".repeat(8) ? utf8(text) : null;
}

/** @returns {number | null} where the entry of a tag begins in a directory of EXIF */
function entry(view, directory, tag, isLittle) {
  const count = view.getUint16(directory, isLittle);
  for (let index = 0; index < count; index++) {
    const at = directory + 2 + 12 * index;
    if (view.getUint16(at, isLittle) === tag) return at;
  }
  return null;
}

/** @returns {Promise<Uint8Array>} decompressed zlib data; empty if it is damaged or larger than MAX_TEXT */
async function inflated(data) {
  const reader = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  let size = 0;
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      parts.push(value);
      size += value.length;
      if (size > MAX_TEXT) {
        await reader.cancel();
        return new Uint8Array();
      }
    }
  } catch {
    return new Uint8Array();
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function utf8(bytes) {
  return new TextDecoder().decode(bytes);
}

/** Return bytes as Latin-1, which a browser's "latin1" is not: that is Windows-1252. */
function latin1(bytes, start = 0, end = bytes.length) {
  const part = bytes.subarray(start, Math.max(start, end)), texts = [];
  for (let at = 0; at < part.length; at += 8192) texts.push(String.fromCharCode(...part.subarray(at, at + 8192)));
  return texts.join("");
}

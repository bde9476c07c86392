/** What a visitor can do with an image: the same on the stage and in the viewer. */

import { t } from "./i18n.js";
import { settingsOf } from "./picture.js";

/** @typedef {import("./picture.js").Picture} Picture */

/**
 * Return the actions.
 * @param {object} page
 * @param {import("./form.js").Form} page.form
 * @param {import("./notices.js").Notices} page.notices
 * @param {() => void} page.generate
 * @param {(id: string) => void} page.remove called with the id of a task
 * @param {boolean} page.hasImageInput
 * @returns {import("./viewer.js").ViewerAction[]}
 */
export function actionsFor({ form, notices, generate, remove, hasImageInput }) {
  const actions = [
    { key: "image.reuse", closes: true, run: (picture) => useSettings(form, picture) },
    { key: "image.vary", closes: true, run: (picture) => vary(form, picture, generate) },
    { key: "image.copyPrompt", run: ({ prompt }) => copy(notices, copyText(prompt), "image.promptCopied") },
    { key: "image.delete", isDanger: true, run: ({ task }) => remove(task.task_id) },
  ];
  if (hasImageInput) actions.splice(2, 0, { key: "image.asInput", closes: true, run: (picture) => useAsInput(form, picture) });
  if (canCopyImages()) actions.splice(-1, 0, { key: "image.copy", run: ({ src }) => copy(notices, copyImage(src), "image.copied") });
  return actions;
}

function useSettings(form, picture) {
  form.takeOver(settingsOf(picture));
  form.focus();
}

function vary(form, picture, generate) {
  const settings = settingsOf(picture);
  if (settings.strength === undefined) form.image.clear(); // it was made from text alone
  form.takeOver(settings);
  form.unlockSeed();
  generate();
}

async function useAsInput(form, { src }) {
  const response = await fetch(src).catch(() => null);
  if (response?.ok) await form.image.take(await response.blob());
  else form.showProblem(t(response === null ? "error.unreachable" : "error.gone"));
  form.focus();
}

async function copy(notices, copying, doneKey) {
  const isDone = await copying.then(() => true, () => false);
  notices.show(t(isDone ? doneKey : "image.copyFailed"));
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // without TLS, browsers have no clipboard object
  area.value = text;
  const focused = document.activeElement;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  if (!isDone) throw new Error("not allowed");
}

function canCopyImages() {
  return typeof ClipboardItem === "function" && Boolean(navigator.clipboard?.write);
}

/** Copy an image as PNG, the only format that every clipboard takes. */
async function copyImage(src) {
  await navigator.clipboard.write([new ClipboardItem({ "image/png": asPng(src) })]);
}

async function asPng(src) {
  const response = await fetch(src), blob = await response.blob();
  if (blob.type === "image/png") return blob;
  const bitmap = await createImageBitmap(blob), canvas = document.createElement("canvas");
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

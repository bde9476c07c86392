/** The prompts of this browser, newest first, and a menu of them. Knows the browser's storage; not the form. */

import { button, element } from "./element.js";
import { translate } from "./i18n.js";

const STORAGE = "zimage-prompts";
const MAX_PROMPTS = 50;
const MAX_LENGTH = 32_000; // characters of a prompt; the server's limit
const MAX_TOTAL = 200_000; // characters of all prompts; a browser keeps a few megabytes for a site

/** Prompts that were used. What the storage holds is not trusted: another program may have written it. */
export class PromptHistory {
  /** @param {() => Storage} [storage] returns where prompts are kept; may throw where a browser keeps nothing */
  constructor(storage = () => localStorage) {
    this._storage = storage;
    /** @type {string[] | null} for a browser that keeps nothing */
    this._unsaved = null;
  }

  /** @returns {string[]} the prompts, newest first */
  all() {
    if (this._unsaved !== null) return [...this._unsaved];
    try {
      return bounded(JSON.parse(this._storage().getItem(STORAGE) ?? "[]"));
    } catch {
      return [];
    }
  }

  /**
   * Put a prompt first; it stands in the history once.
   * @param {string} prompt
   */
  add(prompt) {
    const text = prompt.trim();
    if (text) this._save([text, ...this.all().filter((other) => other !== text)]);
  }

  /** Forget all prompts. */
  clear() {
    this._save([]);
  }

  /** @param {string[]} prompts */
  _save(prompts) {
    const kept = bounded(prompts);
    try {
      this._storage().setItem(STORAGE, JSON.stringify(kept));
      this._unsaved = null;
    } catch {
      this._unsaved = kept;
    }
  }
}

/**
 * Create a button that opens a list of the prompts.
 * @param {PromptHistory} history
 * @param {(prompt: string) => void} onPick called with the chosen prompt
 * @returns {HTMLElement} the button and its list
 */
export function historyMenu(history, onPick) {
  const list = element("ul", { class: "history-list" });
  const empty = element("p", { class: "quiet", "data-i18n": "history.empty" });
  const clears = button("history.clear", () => {
    history.clear();
    fill();
  });
  const title = element("h2", { "data-i18n": "history.title", id: "history-title" });
  const dialog = element(
    "dialog",
    { class: "history", "aria-labelledby": "history-title" },
    element("div", { class: "history-head" }, title, clears, button("close", () => dialog.close())),
    empty,
    list,
  );

  function fill() {
    const prompts = history.all();
    list.replaceChildren(...prompts.map(entry));
    empty.hidden = prompts.length > 0;
    clears.hidden = prompts.length === 0;
    if (dialog.open && !dialog.contains(document.activeElement)) dialog.querySelector("button:not([hidden])").focus();
  }

  function entry(prompt) {
    const pick = element("button", { type: "button", class: "history-entry" }, prompt);
    pick.addEventListener("click", () => {
      dialog.close();
      onPick(prompt);
    });
    return element("li", {}, pick);
  }

  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  const opens = button("history.open", () => {
    fill();
    dialog.showModal();
    (list.querySelector("button") ?? dialog.querySelector("button:not([hidden])")).focus();
  });
  opens.setAttribute("aria-haspopup", "dialog");
  const whole = element("div", { class: "history-menu" }, opens, dialog);
  translate(whole);
  return whole;
}

/** @returns {string[]} the valid prompts of a value, as many as there is room for */
function bounded(value) {
  if (!Array.isArray(value)) return [];
  const kept = [];
  let total = 0;
  for (const prompt of value) {
    if (kept.length === MAX_PROMPTS) break;
    if (typeof prompt !== "string" || !prompt.trim() || prompt.length > MAX_LENGTH) continue;
    if (total + prompt.length > MAX_TOTAL) break;
    total += prompt.length;
    kept.push(prompt);
  }
  return kept;
}

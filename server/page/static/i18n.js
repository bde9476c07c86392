/** Messages in the visitor's language. Knows languages; not what the messages are about. */

import en from "./messages/en.js";
import zh from "./messages/zh.js";

/** @typedef {string | Partial<Record<Intl.LDMLPluralRule, string>>} Message a text, or one for each plural form */

/** Languages by code, each under its own name. */
export const LANGUAGES = { en: "English", zh: "中文" };
/** @type {Record<string, Record<string, Message>>} */
const MESSAGES = { en, zh };
const TAGS = { en: "en", zh: "zh-Hans" };
const STORAGE = "zimage-language";
/** Attributes that hold the keys of messages, and where these are shown. */
const PLACES = { "data-i18n-label": "aria-label", "data-i18n-title": "title", "data-i18n-placeholder": "placeholder" };

let current = preferred();
const listeners = new Set();

/** @returns {string} the code of the current language */
export function language() {
  return current;
}

/**
 * Change the language, for later visits too, and translate the document.
 * @param {string} code one of LANGUAGES; others are ignored
 */
export function setLanguage(code) {
  if (!Object.hasOwn(LANGUAGES, code)) return;
  current = code;
  try {
    localStorage.setItem(STORAGE, code);
  } catch {
    // The browser keeps nothing: the choice lasts as long as the page.
  }
  translate();
  for (const listener of listeners) listener(code);
}

/**
 * Call a function after each change of the language.
 * @param {(code: string) => void} listener
 * @returns {() => void} stops it
 */
export function onLanguageChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * Return a message. A `count` among the values picks the plural form; numbers are written as the language does.
 * @param {string} key key of the message; an unknown one is returned as it is
 * @param {Record<string, unknown>} [values] values for the message's {names}
 * @returns {string}
 */
export function t(key, values = {}) {
  const message = find(current, key) ?? find("en", key);
  if (message === undefined) return key;
  const form = typeof message === "string" ? message : plural(message, Number(values.count ?? 0));
  return form.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? written(values[name]) : whole));
}

/**
 * Return a number as the language writes it.
 * @param {number} value
 * @param {Intl.NumberFormatOptions} [options]
 */
export function number(value, options = {}) {
  return new Intl.NumberFormat(TAGS[current], { maximumFractionDigits: 2, ...options }).format(value);
}

/**
 * Return a duration in words of the language, rounded: seconds, minutes or hours.
 * @param {number} seconds
 */
export function duration(seconds) {
  const [value, unit] = seconds < 90 ? [seconds, "second"] : seconds < 5400 ? [seconds / 60, "minute"] : [seconds / 3600, "hour"];
  return number(Math.max(1, Math.round(value)), { style: "unit", unit, unitDisplay: current === "zh" ? "long" : "short" });
}

/**
 * Write the messages into elements with `data-i18n` (text), `data-i18n-label`, `data-i18n-title` or
 * `data-i18n-placeholder`.
 * @param {ParentNode} [root] whose descendants are translated
 */
export function translate(root = document) {
  document.documentElement.lang = TAGS[current];
  for (const found of root.querySelectorAll("[data-i18n]")) found.textContent = t(found.getAttribute("data-i18n"));
  for (const [source, target] of Object.entries(PLACES)) {
    for (const found of root.querySelectorAll(`[${source}]`)) found.setAttribute(target, t(found.getAttribute(source)));
  }
}

/** @returns {string} the language that was chosen, else the first of the browser's that there is, else English */
function preferred() {
  let chosen = null;
  try {
    chosen = localStorage.getItem(STORAGE);
  } catch {
    // The browser keeps nothing.
  }
  if (chosen !== null && Object.hasOwn(LANGUAGES, chosen)) return chosen;
  const known = (navigator.languages ?? [navigator.language]).map((tag) => tag.split("-")[0].toLowerCase());
  return known.find((code) => Object.hasOwn(LANGUAGES, code)) ?? "en";
}

/** @returns {Message | undefined} */
function find(code, key) {
  return Object.hasOwn(MESSAGES[code], key) ? MESSAGES[code][key] : undefined;
}

function plural(forms, count) {
  return forms[new Intl.PluralRules(TAGS[current]).select(count)] ?? forms.other ?? "";
}

function written(value) {
  return typeof value === "number" ? number(value, { useGrouping: false }) : String(value);
}

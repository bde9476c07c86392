/** The API key: asked for once, kept in this browser, sent with every request. */

import { t } from "./i18n.js";
import { problemText } from "./problems.js";
import { load, save } from "./storage.js";

const STORAGE = "zimage-api-key";
const SENDABLE = /^[\x20-\x7e]+$/; // in a header

/**
 * Set the key of the API: the one that is kept, or one that the visitor types in.
 * @param {import("./api.js").Api} api
 * @returns {Promise<void>} resolved when the server accepts a key
 */
export async function enterKey(api) {
  api.key = load(STORAGE, (value) => typeof value === "string", "");
  if (api.key && (await isValid(api))) return;
  const door = document.getElementById("door"), form = document.getElementById("key-form");
  const input = document.getElementById("key"), problem = document.getElementById("key-problem");
  door.hidden = false;
  input.focus();
  await new Promise((resolve) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      api.key = input.value.trim();
      problem.textContent = "";
      try {
        if (SENDABLE.test(api.key) && (await isValid(api))) resolve();
        else problem.textContent = t("key.invalid");
      } catch (error) {
        problem.textContent = problemText(error);
      }
    });
  });
  save(STORAGE, api.key);
  door.hidden = true;
}

/** Forget the key, and ask for another one. */
export function forgetKey() {
  save(STORAGE, null);
  location.reload();
}

/** @returns {Promise<boolean>} false if the server refuses the key. Rejected if it does not answer */
async function isValid(api) {
  try {
    await api.history(1, null);
    return true;
  } catch (error) {
    if (error.status === 401) return false;
    throw error;
  }
}

/** Short notices at the edge of the window, which screen readers read out. Knows texts; not what they are about. */

import { button, element } from "./element.js";
import { translate } from "./i18n.js";

const SECONDS = 8;

/** Notices in an element that is a live region. */
export class Notices {
  /** @param {HTMLElement} region */
  constructor(region) {
    this._region = region;
    /** @type {HTMLElement | null} */
    this._lasting = null;
    document.addEventListener("close", () => this._move(), { capture: true });
  }

  /**
   * Show a text for a while.
   * @param {string} text
   * @param {{key: string, run: () => void}} [action] something to do about it: key of its message, function
   */
  show(text, action) {
    const notice = element("div", { class: "notice" }, element("p", {}, text));
    const timer = setTimeout(() => notice.remove(), SECONDS * 1000);
    if (action) {
      notice.append(button(action.key, () => {
        clearTimeout(timer);
        notice.remove();
        action.run();
      }));
      translate(notice);
    }
    this._move();
    this._region.append(notice);
  }

  /**
   * Show a text until another one, or null, takes its place.
   * @param {string | null} text
   */
  hold(text) {
    if (text === null) {
      this._lasting?.remove();
      this._lasting = null;
    } else if (this._lasting === null) {
      this._lasting = element("div", { class: "notice" }, element("p", {}, text));
      this._region.append(this._lasting);
    }
  }

  /** Put the region into the open dialog, since what is outside of it cannot be used, or back into the page. */
  _move() {
    const host = document.querySelector("dialog:modal") ?? document.body;
    if (this._region.parentElement !== host) host.append(this._region);
  }
}

/** The mask editor in a dialog. Knows the editor; not what the mask is for. */

import { button, element } from "./element.js";
import { translate } from "./i18n.js";
import { MaskEditor } from "./mask-editor.js";

/** The dialog; `element` is to be put into the document once. */
export class MaskDialog {
  /** @param {(mask: Blob | null) => void} onDone called with the mask, null for none, when it is accepted */
  constructor(onDone) {
    this._onDone = onDone;
    this._editor = new MaskEditor();
    this._src = "";
    /** @type {import("./mask.js").MaskStep[]} */
    this._steps = [];
    this.element = element("dialog", { class: "mask-dialog", "aria-labelledby": "mask-dialog-title" },
      element("h2", { id: "mask-dialog-title", "data-i18n": "mask.title" }),
      this._editor.element,
      element("div", { class: "buttons" },
        button("mask.done", () => this._accept(), { class: "primary" }),
        button("cancel", () => this.element.close())));
    translate(this.element);
  }

  /**
   * Open the dialog. The mask of the same image goes on; another image begins an empty one.
   * @param {string} src address of the image
   * @returns {Promise<void>} rejected if the browser cannot show the image
   */
  async open(src) {
    if (src !== this._src) {
      await this._editor.load(src);
      this._src = src;
      this._steps = [];
    }
    this._editor.steps = this._steps; // without what was cancelled
    this.element.showModal();
    this._editor.focus();
  }

  /** Forget the mask. */
  reset() {
    this._src = "";
    this._steps = [];
  }

  async _accept() {
    const mask = await this._editor.value();
    this._steps = this._editor.steps;
    this.element.close();
    this._onDone(mask);
  }
}

/** The finished images as a grid. Knows tasks and images; not what happens to an image that is chosen. */

import { button, element } from "./element.js";
import { onLanguageChange, t, translate } from "./i18n.js";
import { picturesOf } from "./picture.js";
import { failureText } from "./problems.js";

/** @typedef {import("./picture.js").Picture} Picture */
/** @typedef {import("./tasks.js").ShownTask} ShownTask */

/** A grid in a container, the newest image first. */
export class Gallery {
  /**
   * @param {HTMLElement} container
   * @param {{onOpen: (picture: Picture) => void, onRemove: (id: string) => void}} listener
   */
  constructor(container, listener) {
    this._container = container;
    this._listener = listener;
    /** @type {Map<string, HTMLElement>} */
    this._tiles = new Map();
    onLanguageChange(() => this._clear());
  }

  /**
   * Show the tasks that have ended.
   * @param {ShownTask[]} tasks newest first
   */
  show(tasks) {
    const wanted = new Map();
    for (const task of tasks) {
      if (task.status === "failed") wanted.set(task.task_id, () => this._failure(task));
      for (const picture of picturesOf(task)) wanted.set(picture.id, () => this._tile(picture));
    }
    let next = null; // the tile beside one that is removed with the focus in it
    for (const [id, tile] of this._tiles) {
      if (wanted.has(id)) continue;
      if (tile.contains(document.activeElement)) next = tile.nextElementSibling ?? tile.previousElementSibling;
      tile.remove();
      this._tiles.delete(id);
    }
    (next?.querySelector("button") ?? next)?.focus();
    let place = this._container.firstElementChild;
    for (const [id, make] of wanted) {
      if (!this._tiles.has(id)) this._tiles.set(id, make());
      const tile = this._tiles.get(id);
      if (tile === place) place = place.nextElementSibling;
      else this._container.insertBefore(tile, place);
    }
  }

  /** @param {Picture} picture */
  _tile(picture) {
    const image = element("img", { src: picture.src, alt: "", loading: "lazy", decoding: "async" });
    const tile = element("button", { type: "button", class: "tile", title: picture.prompt, "aria-label": t("gallery.open", picture) }, image);
    tile.addEventListener("click", () => this._listener.onOpen(picture));
    image.addEventListener("error", () => tile.classList.add("is-gone"));
    return tile;
  }

  _failure(task) {
    const remove = button("run.dismiss", () => this._listener.onRemove(task.task_id), { class: "plain" });
    const tile = element("div", { class: "tile failure" },
      element("p", { class: "failure-prompt" }, task.prompt),
      element("p", { class: "problem" }, failureText(task)),
      remove);
    translate(tile);
    return tile;
  }

  _clear() {
    for (const tile of this._tiles.values()) tile.remove();
    this._tiles.clear();
  }
}

/** The unfinished tasks as small tiles: preview, progress, cancel. Knows tasks; not what is shown large. */

import { element, signButton } from "./element.js";
import { onLanguageChange, t, translate } from "./i18n.js";
import { progressText } from "./progress.js";

/** @typedef {import("./tasks.js").ShownTask} ShownTask */

/** Tiles in a container, the oldest task first. */
export class Running {
  /**
   * @param {HTMLElement} container
   * @param {{onSelect: (id: string) => void, onCancel: (id: string) => void}} listener
   */
  constructor(container, listener) {
    this._container = container;
    this._listener = listener;
    /** @type {Map<string, {root: HTMLElement, update: (task: ShownTask, isSelected: boolean) => void}>} */
    this._tiles = new Map();
    onLanguageChange(() => this._clear());
  }

  /**
   * Show some tasks.
   * @param {ShownTask[]} tasks
   * @param {string | null} selected id of the task that is shown large
   */
  show(tasks, selected) {
    const ids = new Set(tasks.map((task) => task.task_id));
    for (const [id, tile] of this._tiles) {
      if (ids.has(id)) continue;
      tile.root.remove();
      this._tiles.delete(id);
    }
    for (const task of tasks) {
      if (!this._tiles.has(task.task_id)) this._append(task);
      this._tiles.get(task.task_id).update(task, task.task_id === selected);
    }
    this._container.hidden = tasks.length === 0;
  }

  _append({ task_id: id, prompt }) {
    const image = element("img", { alt: "" });
    const bar = element("progress", { max: "100", "aria-label": prompt });
    const text = element("span", { class: "tile-text" });
    const select = element("button", { type: "button", class: "tile", title: prompt, "aria-label": t("run.preview", { prompt }) }, image, bar);
    select.addEventListener("click", () => this._listener.onSelect(id));
    const cancel = signButton("×", "run.cancel", () => this._listener.onCancel(id), { class: "sign tile-cancel" });
    const root = element("div", { class: "running-tile" }, select, cancel, text);
    translate(root);
    this._container.append(root);
    this._tiles.set(id, {
      root,
      update(task, isSelected) {
        if (task.preview && image.src !== task.preview) image.src = task.preview;
        image.hidden = !task.preview;
        bar.value = task.progress;
        text.textContent = progressText(task);
        select.setAttribute("aria-pressed", String(isSelected));
      },
    });
  }

  _clear() {
    for (const { root } of this._tiles.values()) root.remove();
    this._tiles.clear();
  }
}

/** The image that is shown large: its previews while it is generated, then the image with its facts and actions. */

import { button, element } from "./element.js";
import { t, translate } from "./i18n.js";
import { picturesOf } from "./picture.js";
import { failureText } from "./problems.js";
import { progressText } from "./progress.js";

/** @typedef {import("./picture.js").Picture} Picture */
/** @typedef {import("./tasks.js").ShownTask} ShownTask */
/** @typedef {import("./viewer.js").ViewerAction} ViewerAction */

/** The stage in a container. */
export class Stage {
  /**
   * @param {HTMLElement} container
   * @param {{actions: ViewerAction[], onOpen: (picture: Picture) => void, onCancel: (id: string) => void}} options
   */
  constructor(container, { actions, onOpen, onCancel }) {
    this._onOpen = onOpen;
    /** @type {Picture | null} */
    this._picture = null;
    /** @type {string | null} */
    this._id = null;
    this._build(container, actions, onCancel);
  }

  /** Give the empty stage the shape of the next image. @param {import("./sizes.js").Size | null} size */
  shape(size) {
    if (size !== null && this._id === null) this._setRatio(size);
  }

  /**
   * Show a task; without one, an empty stage.
   * @param {ShownTask | undefined} task
   * @param {number} index of its image
   */
  show(task, index) {
    this._id = task?.task_id ?? null;
    this._picture = task ? (picturesOf(task)[index] ?? null) : null;
    const { width, height } = this._picture ? this._picture.task.result.metadata[index] : (task?.settings ?? {});
    if (width && height) this._setRatio({ width, height });
    this._showImage(task);
    this._showText(task);
  }

  _build(container, actions, onCancel) {
    this._image = element("img", { alt: "", draggable: "true" });
    this._empty = element("p", { class: "quiet", "data-i18n": "gallery.empty" });
    this._frame = element("button", { type: "button", class: "frame", disabled: true }, this._image, this._empty);
    this._frame.addEventListener("click", () => this._picture && this._onOpen(this._picture));
    this._bar = element("progress", { max: "100", "data-i18n-label": "run.title" });
    this._state = element("p", { class: "stage-state", id: "stage-state" });
    this._cancel = button("run.cancel", () => onCancel(this._id));
    this._prompt = element("p", { class: "stage-prompt" });
    this._summary = element("p", { class: "quiet" });
    this._download = element("a", { class: "button", "data-i18n": "image.download" });
    const buttons = actions.map(({ key, run, isDanger }) => button(key, () => run(this._picture), { class: isDanger ? "danger" : "" }));
    this._progress = element("div", { class: "stage-progress" }, this._bar, this._state, this._cancel);
    this._actions = element("div", { class: "buttons" }, this._download, ...buttons);
    container.append(this._frame, this._progress, this._prompt, this._summary, this._actions);
    translate(container);
  }

  _setRatio({ width, height }) {
    this._frame.style.setProperty("--width", width);
    this._frame.style.setProperty("--height", height);
  }

  _showImage(task) {
    const src = this._picture?.src ?? task?.preview ?? "";
    if (src && this._image.src !== src) this._image.src = src;
    this._image.hidden = !src;
    this._image.alt = task?.prompt ?? "";
    this._empty.hidden = Boolean(src) || task !== undefined;
    this._frame.disabled = this._picture === null;
    this._frame.setAttribute("aria-label", task ? t(this._picture ? "gallery.open" : "run.preview", task) : t("gallery.empty"));
    this._frame.classList.toggle("is-waiting", task !== undefined && !src && task.status !== "failed");
  }

  _showText(task) {
    const isDone = this._picture !== null, isFailed = task?.status === "failed";
    this._progress.hidden = !task || isDone;
    this._bar.hidden = this._cancel.hidden = isFailed;
    this._bar.value = task?.progress ?? 0;
    this._state.textContent = !task ? "" : isFailed ? failureText(task) : progressText(task);
    this._state.classList.toggle("problem", isFailed);
    this._prompt.textContent = task?.prompt ?? "";
    this._summary.textContent = isDone ? summary(this._picture) : "";
    this._actions.hidden = !isDone;
    if (isDone) Object.assign(this._download, { href: this._picture.src, download: this._picture.name });
  }
}

/** @returns {string} size, steps, seed and time in a line */
function summary({ facts }) {
  const shown = ["fact.size", "fact.steps", "fact.seed", "fact.time"].map((key) => t(key));
  return facts.filter(([name]) => shown.includes(name)).map(([name, value]) => `${name} ${value}`).join(" · ");
}

/** The page: connects form, tasks, stage, tiles and gallery. */

import { actionsFor } from "./actions.js";
import { Api } from "./api.js";
import { receiveImages } from "./drop.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { element } from "./element.js";
import { LANGUAGES, language, onLanguageChange, setLanguage, t, translate } from "./i18n.js";
import { enterKey, forgetKey } from "./key.js";
import { Notices } from "./notices.js";
import { picturesOf } from "./picture.js";
import { settingsFrom } from "./png-settings.js";
import { problemText } from "./problems.js";
import { Running } from "./running.js";
import { Stage } from "./stage.js";
import { Tasks } from "./tasks.js";
import { Viewer } from "./viewer.js";

const RETRY_SECONDS = 3;
const SHOWN_PROMPT = 100; // characters in a notice
const TICK_SECONDS = 1; // between two updates of the time left

const part = (id) => document.getElementById(id);

/** The page once the server has said what it can do. */
class Page {
  /**
   * @param {Api} api
   * @param {import("./types.js").ModelInfo} info
   * @param {Notices} notices
   */
  constructor(api, info, notices) {
    this._info = info;
    this._notices = notices;
    this._selected = { id: null, index: 0 };
    this._awaited = new Set(); // ids of tasks that were unfinished
    this._isSending = false;
    this._form = new Form(info, () => this._generate());
    this._tasks = new Tasks(api, info, {
      onConnection: (isConnected) => notices.hold(isConnected ? null : t("error.offline")),
      onLost: ({ prompt }) => notices.show(t("error.lost", { prompt: prompt.slice(0, SHOWN_PROMPT) })),
    });
    const actions = actionsFor({
      form: this._form,
      notices,
      generate: () => this._generate(),
      remove: (id) => this._remove(id),
      hasImageInput: info.image_input,
    });
    this._viewer = new Viewer(actions);
    document.body.append(this._viewer.element);
    const onOpen = (picture) => this._open(picture), onCancel = (id) => this._cancel(id);
    this._stage = new Stage(part("stage"), { actions, onOpen, onCancel });
    this._running = new Running(part("running"), { onSelect: (id) => this._select(id), onCancel });
    this._gallery = new Gallery(part("gallery"), { onOpen, onRemove: (id) => this._remove(id) });
    this._listen();
  }

  /** Show the tasks that there are. */
  async open() {
    translate();
    part("work").hidden = false;
    await this._attempt(this._tasks.refresh());
    const first = this._tasks.unfinished[0] ?? this._tasks.all[0];
    if (this._selected.id === null && first) this._select(first.task_id);
    this._show();
  }

  _listen() {
    this._form.onShape((size) => this._stage.shape(size));
    this._tasks.subscribe(() => this._show());
    onLanguageChange(() => this._show());
    setInterval(() => this._tasks.unfinished.length > 0 && this._show(), TICK_SECONDS * 1000);
    part("older").addEventListener("click", () => this._attempt(this._tasks.loadOlder()));
    part("gallery-note").hidden = this._info.history !== "browser";
    receiveImages(part("drop"), (file) => this._receive(file));
  }

  async _generate() {
    if (this._isSending) return; // Ctrl+Enter is held down
    this._form.isBusy = this._isSending = true;
    try {
      const bodies = await this._form.requests();
      for (const [index, body] of bodies.entries()) {
        const id = await this._tasks.submit(body);
        if (index === 0) this._select(id);
      }
      if (bodies.length > 0) part("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
    } catch (error) {
      this._form.showProblem(problemText(error));
    } finally {
      this._form.isBusy = this._isSending = false;
    }
  }

  /** Start from an image, or take over the settings that it was made with. */
  async _receive(file) {
    const settings = await settingsFrom(file);
    if (this._info.image_input) return this._form.image.take(file, settings);
    if (settings === null) return this._notices.show(t("image.noSettings"));
    this._form.takeOver(settings);
    this._notices.show(t("image.settingsUsed"));
  }

  _select(id, index = 0) {
    this._selected = { id, index };
    this._show();
  }

  _open(picture) {
    this._select(picture.task.task_id, picture.index);
    const pictures = this._tasks.all.flatMap(picturesOf);
    this._viewer.open(pictures, pictures.findIndex(({ id }) => id === picture.id));
  }

  /** Delete a task, show the one beside it instead, and offer to undo that. */
  _remove(id) {
    const count = this._tasks.get(id)?.result?.paths.length ?? 0, place = this._tasks.all.findIndex((task) => task.task_id === id);
    const undo = this._tasks.delete(id), rest = this._tasks.all;
    if (this._selected.id === id) this._select((rest[place] ?? rest.at(-1))?.task_id ?? null);
    if (this._viewer.isOpen) this._viewer.remove(({ task }) => task.task_id === id);
    const text = count > 1 ? t("gallery.deletedSeveral", { count }) : t("gallery.deleted");
    this._notices.show(text, { key: "gallery.undo", run: undo });
    this._keepFocus();
  }

  async _cancel(id) {
    await this._attempt(this._tasks.cancel(id));
    this._keepFocus();
  }

  /** Move the focus to the stage if the button that had it is hidden or gone. */
  _keepFocus() {
    const focused = document.activeElement;
    if (focused === document.body || !focused?.checkVisibility()) part("stage").focus({ preventScroll: true });
  }

  /** Wait for something, and say what went wrong. */
  async _attempt(promise) {
    await promise.catch((error) => this._notices.show(problemText(error)));
  }

  _show() {
    const shown = this._tasks.all, unfinished = this._tasks.unfinished;
    const selected = shown.find((task) => task.task_id === this._selected.id);
    this._stage.show(selected, this._selected.index);
    const isAlone = unfinished.length === 1 && unfinished[0] === selected;
    this._running.show(isAlone ? [] : unfinished, this._selected.id);
    this._gallery.show(shown);
    part("gallery-empty").hidden = shown.length > unfinished.length;
    part("older").hidden = !this._tasks.hasOlder;
    this._announce(shown);
  }

  /** Tell screen readers how many images have become ready, and the window's title what is going on. */
  _announce(shown) {
    const unfinished = this._tasks.unfinished;
    const ready = shown.filter((task) => task.status === "done" && this._awaited.has(task.task_id));
    this._awaited = new Set(unfinished.map((task) => task.task_id));
    if (ready.length > 0) part("status").textContent = t("run.done", { count: ready.length });
    const running = unfinished[0];
    document.title = running ? `${running.progress} % · ${this._info.model_path}` : this._info.model_path;
  }
}

function offerLanguages() {
  const select = part("language");
  select.append(...Object.entries(LANGUAGES).map(([code, name]) => element("option", { value: code, lang: code }, name)));
  select.value = language();
  select.addEventListener("change", () => setLanguage(select.value));
}

/** Repeat something until the server answers. */
async function untilAnswered(notices, attempt) {
  for (;;) {
    try {
      const answer = await attempt();
      notices.hold(null);
      return answer;
    } catch (error) {
      if (!error.isTransient) throw error;
      notices.hold(t("error.offline"));
      await new Promise((resolve) => setTimeout(resolve, RETRY_SECONDS * 1000));
    }
  }
}

/** Ask the server what it can do, and the visitor for a key if it needs one; then open the page. */
async function main(notices) {
  const api = new Api();
  const info = await untilAnswered(notices, () => api.modelInfo());
  part("model").removeAttribute("data-i18n");
  part("model").textContent = info.model_path;
  if (info.needs_key) {
    await untilAnswered(notices, () => enterKey(api));
    part("forget-key").hidden = false;
    part("forget-key").addEventListener("click", forgetKey);
  }
  await new Page(api, info, notices).open();
}

const notices = new Notices(part("notices"));
offerLanguages();
translate();
await main(notices).catch((error) => {
  notices.hold(problemText(error));
  throw error;
});

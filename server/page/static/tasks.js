/**
 * The tasks of this visitor: those of the server's history, or those whose ids this browser has kept.
 *
 * Knows tasks and the API; no elements.
 */

import { repetitionKey } from "./api.js";
import { Follower } from "./follow.js";
import { load, save } from "./storage.js";

/** @typedef {import("./types.js").Task} Task */
/** @typedef {Task & {preview: string | null, updated: number}} ShownTask preview: address of an image; updated: in
 *    milliseconds, when `eta` was estimated */

const STORAGE = "zimage-tasks";
const TASK_ID = /^job_[0-9a-f]{32}$/;
const MAX_KEPT = 200; // ids
const PAGE = 24; // tasks
const REFRESH_SECONDS = 15; // between two looks at what other tabs and devices have added
const ATTEMPTS = 4; // to submit a task
const UNDO_SECONDS = 8;

/** Tasks, newest first. */
export class Tasks {
  /**
   * @param {import("./api.js").Api} api
   * @param {import("./types.js").ModelInfo} info
   * @param {{onConnection: (isConnected: boolean) => void, onLost: (task: ShownTask) => void}} listener onLost: the server
   *   does not know an unfinished task any more
   */
  constructor(api, info, { onConnection, onLost }) {
    this._api = api;
    this._isKeptHere = info.history === "browser";
    /** @type {Map<string, ShownTask>} */
    this._tasks = new Map();
    this._deletions = new Map(); // timers by id
    this._listeners = new Set();
    this._onConnection = onConnection;
    this._askedFor = new Set(); // ids that this browser has kept; the server may have lost their tasks
    /** @type {boolean | null} null before the first answer */
    this._hasOlder = null;
    this._follower = new Follower(api, {
      onEvent: (id, event) => this._onEvent(id, event),
      onLost: (id) => {
        const task = this._tasks.get(id);
        this._drop(id);
        if (task) onLost(task);
      },
      onConnection,
    });
    window.addEventListener("pagehide", () => this._deleteNow());
    window.addEventListener("storage", ({ key }) => key === STORAGE && this.refresh().catch(() => {}));
    setInterval(() => document.hidden || this.refresh().catch(() => {}), REFRESH_SECONDS * 1000);
  }

  /** Call a function after each change. @param {() => void} listener */
  subscribe(listener) {
    this._listeners.add(listener);
  }

  /** The tasks that are shown, newest first. @returns {ShownTask[]} */
  get all() {
    const shown = [...this._tasks.values()].filter(({ task_id: id, status }) => status !== "cancelled" && !this._deletions.has(id));
    return shown.sort((a, b) => b.sequence - a.sequence);
  }

  /** @returns {ShownTask[]} the unfinished tasks, oldest first */
  get unfinished() {
    return this.all.filter(isUnfinished).reverse();
  }

  /** True if the server has older tasks. */
  get hasOlder() {
    return this._hasOlder === true;
  }

  /** @param {string} id @returns {ShownTask | undefined} */
  get(id) {
    return this._tasks.get(id);
  }

  /** Look for tasks that are new. */
  async refresh() {
    const { tasks, has_more: hasMore } = await this._page(null);
    this._onConnection(true);
    this._hasOlder ??= hasMore;
    this._add(tasks);
  }

  /** Add the next page of older tasks. */
  async loadOlder() {
    const sequences = [...this._tasks.values()].map((task) => task.sequence);
    const { tasks, has_more: hasMore } = await this._page(Math.min(...sequences, Number.MAX_SAFE_INTEGER));
    this._hasOlder = hasMore;
    this._add(tasks);
  }

  /**
   * Submit a task. An answer that was lost is asked for again, without a second task.
   * @param {{prompt: string}} body
   * @returns {Promise<string>} its id
   * @throws {ApiError}
   */
  async submit(body) {
    const key = repetitionKey();
    for (let attempt = 1; ; attempt++) {
      try {
        const { task_id: id } = await this._api.submit(body, key);
        this._keep(id);
        this._add([await this._api.task(id)]);
        return id;
      } catch (error) {
        if (attempt === ATTEMPTS || !error.isTransient || error.retryAfter !== null) throw error;
        await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** attempt));
      }
    }
  }

  /**
   * Cancel a task. One that has just ended stays.
   * @param {string} id
   */
  async cancel(id) {
    const task = await this._api.task(id);
    if (isUnfinished(task)) this._set(await this._api.remove(id));
    else this._set(task);
  }

  /**
   * Hide a task, and delete it with its images after a while.
   * @param {string} id
   * @returns {() => void} undoes it
   */
  delete(id) {
    this._deletions.set(id, setTimeout(() => this._deleteNow([id]), UNDO_SECONDS * 1000));
    this._notify();
    return () => {
      clearTimeout(this._deletions.get(id));
      this._deletions.delete(id);
      this._notify();
    };
  }

  /** Delete hidden tasks at the server. */
  _deleteNow(ids = [...this._deletions.keys()]) {
    for (const id of ids) {
      const removed = this._api.remove(id).then(() => this._forget(id), () => {}); // else it stays, and is shown again
      removed.then(() => this._drop(id));
    }
  }

  /** @returns {Promise<{tasks: Task[], has_more: boolean}>} tasks before a sequence, null for the newest */
  async _page(before) {
    if (!this._isKeptHere) return this._api.history(PAGE, before);
    const ids = keptIds();
    const rest = before === null ? ids : ids.filter((id) => !this._askedFor.has(id) && !this._tasks.has(id));
    const page = rest.slice(0, PAGE), tasks = await this._api.tasks(page);
    for (const id of page) this._askedFor.add(id);
    return { tasks, has_more: rest.length > PAGE };
  }

  _add(tasks) {
    for (const task of tasks) if (!this._deletions.has(task.task_id)) this._put(task);
    this._notify();
  }

  _set(task) {
    this._put(task);
    this._notify();
  }

  _put(task) {
    const { task_id: id } = task, known = this._tasks.get(id);
    if (known && !isUnfinished(known) && isUnfinished(task)) return; // an answer that was overtaken
    const preview = isUnfinished(task) ? (known?.preview ?? null) : null;
    this._tasks.set(id, { ...task, preview, updated: Date.now() });
    if (isUnfinished(task)) this._follower.follow(id);
    else this._follower.unfollow(id);
  }

  _drop(id) {
    clearTimeout(this._deletions.get(id));
    this._deletions.delete(id);
    this._tasks.delete(id);
    this._follower.unfollow(id);
    this._notify();
  }

  /** @param {import("./types.js").TaskEvent} event */
  _onEvent(id, event) {
    const task = this._tasks.get(id);
    if (!task) return;
    if (event.type === "end") this._set(event.task);
    if (event.type === "progress") {
      const { status, progress, queue_position, eta } = event;
      this._set({ ...task, status, progress, queue_position, eta });
    }
    if (event.type === "preview") {
      task.preview = `data:image/${task.settings.output_format};base64,${event.image}`;
      this._notify();
    }
  }

  /** Keep the id of a task in this browser. */
  _keep(id) {
    save(STORAGE, [id, ...keptIds().filter((other) => other !== id)].slice(0, MAX_KEPT));
  }

  /** Keep the id of a task no longer. */
  _forget(id) {
    if (keptIds().includes(id)) save(STORAGE, keptIds().filter((other) => other !== id));
  }

  _notify() {
    for (const listener of this._listeners) listener();
  }
}

/** @param {Task} task */
function isUnfinished(task) {
  return task.status === "pending" || task.status === "running";
}

/** @returns {string[]} newest first */
function keptIds() {
  return load(STORAGE, Array.isArray, []).filter((id) => TASK_ID.test(id)).slice(0, MAX_KEPT);
}

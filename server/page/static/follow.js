/**
 * Keeps unfinished tasks up to date: by server-sent events, which it opens again after a break, and by asking.
 *
 * A browser opens six connections to a server, for all its tabs. So only the first tasks have a stream; the others are
 * asked for together, and a hidden tab has no streams. Knows tasks; no elements.
 */

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./types.js").Task} Task */
/** @typedef {import("./types.js").TaskEvent} TaskEvent */

const MAX_STREAMS = 2;
const POLL_SECONDS = 2;
const MAX_WAIT_SECONDS = 15; // between two attempts to connect
const MISSES = 3; // answers that there is no such task, until it is lost: another replica may learn of it late

/**
 * @typedef {object} Listener
 * @property {(id: string, event: TaskEvent) => void} onEvent
 * @property {(id: string) => void} onLost the server does not know the task any more
 * @property {(isConnected: boolean) => void} onConnection
 */

/** Follows tasks until they end. */
export class Follower {
  /**
   * @param {Api} api
   * @param {Listener} listener
   */
  constructor(api, listener) {
    this._api = api;
    this._listener = listener;
    /** @type {Map<string, {misses: number, stream: AbortController | null}>} by id, the oldest first */
    this._followed = new Map();
    this._isPolling = false;
    document.addEventListener("visibilitychange", () => this._reconnect());
    window.addEventListener("online", () => this._reconnect());
  }

  /** @param {string} id of an unfinished task */
  follow(id) {
    if (this._followed.has(id)) return;
    this._followed.set(id, { misses: 0, stream: null });
    this._openStreams();
  }

  /** @param {string} id */
  unfollow(id) {
    this._followed.get(id)?.stream?.abort();
    this._followed.delete(id);
    this._openStreams();
  }

  /** Open all streams anew: the network or the computer was away. */
  _reconnect() {
    for (const entry of this._followed.values()) {
      entry.stream?.abort();
      entry.stream = null;
    }
    this._openStreams();
  }

  _openStreams() {
    for (const [id, entry] of document.hidden ? [] : [...this._followed].slice(0, MAX_STREAMS)) {
      if (entry.stream === null) this._stream(id, entry);
    }
    this._poll();
  }

  async _stream(id, entry) {
    const { signal } = (entry.stream = new AbortController());
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        for await (const event of this._api.events(id, signal)) {
          if (signal.aborted) return;
          failures = 0;
          this._handle(id, event);
        }
      } catch (error) {
        if (error.code === "task_not_found") failures = 0; // the server is there
        if (!signal.aborted) this._handleError(id, error);
      }
      await pause(Math.min(2 ** failures, MAX_WAIT_SECONDS), signal);
    }
  }

  /** Ask for the tasks that have no stream, as long as there are any. */
  async _poll() {
    if (this._isPolling) return;
    this._isPolling = true;
    for (let ids = this._withoutStream(); ids.length > 0; ids = this._withoutStream()) {
      await pause(POLL_SECONDS);
      try {
        await this._ask(ids.filter((id) => this._followed.has(id)));
      } catch (error) {
        this._handleError(null, error);
      }
    }
    this._isPolling = false;
  }

  async _ask(ids) {
    if (ids.length === 0) return;
    const found = await this._api.tasks(ids);
    this._listener.onConnection(true);
    for (const task of found) this._handle(task.task_id, asEvent(task));
    const known = new Set(found.map((task) => task.task_id));
    for (const id of ids) if (!known.has(id)) this._miss(id);
  }

  _withoutStream() {
    return [...this._followed].filter(([, { stream }]) => stream === null).map(([id]) => id);
  }

  _handle(id, event) {
    const entry = this._followed.get(id);
    if (!entry) return;
    entry.misses = 0;
    this._listener.onConnection(true);
    if (event.type === "end") this.unfollow(id);
    this._listener.onEvent(id, event);
  }

  _handleError(id, error) {
    this._listener.onConnection(!(error.isTransient ?? true));
    if (error.code === "task_not_found") this._miss(id);
  }

  _miss(id) {
    const entry = this._followed.get(id);
    if (!entry || ++entry.misses < MISSES) return;
    this.unfollow(id);
    this._listener.onLost(id);
  }
}

/** @returns {TaskEvent} the event that a task's state stands for */
function asEvent(task) {
  return ["pending", "running"].includes(task.status) ? { ...task, type: "progress" } : { type: "end", task };
}

/** Wait for some seconds, or until a signal. */
function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

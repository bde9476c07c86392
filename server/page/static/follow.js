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
  /** @type {Map<string, {misses: number, stream: AbortController | null}>} by id, the oldest first */
  #followed = new Map();
  #isPolling = false;

  /**
   * @param {Api} api
   * @param {Listener} listener
   */
  constructor(api, listener) {
    this.api = api;
    this.listener = listener;
    document.addEventListener("visibilitychange", () => this.#reconnect());
    window.addEventListener("online", () => this.#reconnect());
  }

  /** @param {string} id of an unfinished task */
  follow(id) {
    if (this.#followed.has(id)) return;
    this.#followed.set(id, { misses: 0, stream: null });
    this.#openStreams();
    this.#poll();
  }

  /** @param {string} id */
  unfollow(id) {
    this.#followed.get(id)?.stream?.abort();
    this.#followed.delete(id);
    this.#openStreams();
  }

  /** Open all streams anew: the network or the computer was away. */
  #reconnect() {
    for (const entry of this.#followed.values()) {
      entry.stream?.abort();
      entry.stream = null;
    }
    this.#openStreams();
  }

  #openStreams() {
    if (document.hidden) return;
    for (const [id, entry] of [...this.#followed].slice(0, MAX_STREAMS)) {
      if (entry.stream === null) this.#stream(id, entry);
    }
  }

  async #stream(id, entry) {
    const { signal } = (entry.stream = new AbortController());
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        for await (const event of this.api.events(id, signal)) {
          if (signal.aborted) return;
          failures = 0;
          this.#handle(id, event);
        }
      } catch (error) {
        if (!signal.aborted) this.#handleError(id, error);
      }
      await pause(Math.min(2 ** failures, MAX_WAIT_SECONDS), signal);
    }
  }

  /** Ask for the tasks that have no stream, as long as there are any. */
  async #poll() {
    if (this.#isPolling) return;
    this.#isPolling = true;
    for (let ids = this.#withoutStream(); ids.length > 0; ids = this.#withoutStream()) {
      await pause(POLL_SECONDS);
      try {
        await this.#ask(ids.filter((id) => this.#followed.has(id)));
      } catch (error) {
        this.#handleError(null, error);
      }
    }
    this.#isPolling = false;
  }

  async #ask(ids) {
    if (ids.length === 0) return;
    const found = await this.api.tasks(ids);
    for (const task of found) this.#handle(task.task_id, asEvent(task));
    const known = new Set(found.map((task) => task.task_id));
    for (const id of ids) if (!known.has(id)) this.#miss(id);
  }

  #withoutStream() {
    return [...this.#followed].filter(([, { stream }]) => stream === null).map(([id]) => id);
  }

  #handle(id, event) {
    const entry = this.#followed.get(id);
    if (!entry) return;
    entry.misses = 0;
    this.listener.onConnection(true);
    if (event.type === "end") this.unfollow(id);
    this.listener.onEvent(id, event);
  }

  #handleError(id, error) {
    if (error.code === "task_not_found") this.#miss(id);
    else this.listener.onConnection(!(error.isTransient ?? true));
  }

  #miss(id) {
    const entry = this.#followed.get(id);
    if (!entry || ++entry.misses < MISSES) return;
    this.unfollow(id);
    this.listener.onLost(id);
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

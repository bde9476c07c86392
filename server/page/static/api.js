/** The server's public HTTP API, as far as the page needs it. Knows requests and errors; no elements. */

import { readEvents } from "./event-stream.js";

/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {import("./types.js").Task} Task */
/** @typedef {import("./types.js").TaskEvent} TaskEvent */

const ROOT = new URL(".", document.baseURI); // of the server, with the prefix of a proxy
const MAX_IDS = 50; // of one request

/** An answer that is no success, or none at all: then the status is 0 and the code is "unreachable". */
export class ApiError extends Error {
  /**
   * @param {string} code
   * @param {{status?: number, message?: string, param?: string | null, retryAfter?: number | null}} [details]
   *   retryAfter: seconds
   */
  constructor(code, { status = 0, message = code, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, status, param, retryAfter });
  }

  /** True if the same request may succeed soon: the server is away, restarts, or is short of something. */
  get isTransient() {
    return this.status === 0 || (this.status >= 502 && this.status <= 504);
  }
}

/** The API under one key. */
export class Api {
  /** @param {string} key the API key; empty without one */
  constructor(key = "") {
    this.key = key;
  }

  /** @returns {Promise<ModelInfo>} */
  modelInfo() {
    return this._json("v1/model_info");
  }

  /**
   * Submit a task.
   * @param {object} body
   * @param {string} repetitionKey the server creates one task for all requests with this key
   * @returns {Promise<{task_id: string}>}
   */
  submit(body, repetitionKey) {
    const headers = { "content-type": "application/json", "idempotency-key": repetitionKey };
    return this._json("v1/generate", { method: "POST", headers, body: JSON.stringify(body) });
  }

  /**
   * @param {string} id
   * @returns {Promise<Task>}
   */
  task(id) {
    return this._json(`v1/task/${id}`);
  }

  /**
   * Return those of some tasks that exist.
   * @param {string[]} ids
   * @returns {Promise<Task[]>}
   */
  async tasks(ids) {
    const found = [];
    for (let at = 0; at < ids.length; at += MAX_IDS) {
      const page = await this._json(`v1/tasks?ids=${ids.slice(at, at + MAX_IDS).join(",")}`);
      found.push(...page.tasks);
    }
    return found;
  }

  /**
   * Return a page of the tasks that the server lists, newest first.
   * @param {number} limit
   * @param {number | null} before sequence of the last task of the previous page
   * @returns {Promise<{tasks: Task[], has_more: boolean}>}
   */
  history(limit, before) {
    return this._json(`v1/tasks?limit=${limit}${before === null ? "" : `&before=${before}`}`);
  }

  /**
   * Cancel a task, or delete it with its images if it has ended.
   * @param {string} id
   * @returns {Promise<Task>}
   */
  remove(id) {
    return this._json(`v1/task/${id}`, { method: "DELETE", keepalive: true });
  }

  /**
   * Yield the events of a task: its progress and previews, then its end.
   * @param {string} id
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<TaskEvent>}
   */
  async *events(id, signal) {
    const response = await this._send(`v1/task/${id}/events?images=false`, { signal });
    for await (const data of readEvents(response)) yield parse(data);
  }

  async _json(path, options = {}) {
    const response = await this._send(path, options);
    const text = await response.text().catch(() => {
      throw new ApiError("unreachable"); // in the middle of its answer
    });
    return parse(text);
  }

  async _send(path, { headers = {}, ...options } = {}) {
    const authorization = this.key ? { authorization: `Bearer ${this.key}` } : {};
    const response = await fetch(new URL(path, ROOT), { ...options, headers: { ...headers, ...authorization } }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError("unreachable");
    });
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/**
 * Return the address of an image on this server, whatever address the server believes to have.
 * @param {string} path from a task's result
 */
export function imageAddress(path) {
  return new URL(path.slice(path.lastIndexOf("v1/images/")), ROOT).href;
}

/** @returns {string} a new key for `Api.submit` */
export function repetitionKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  const { error = {} } = await response.json().catch(() => ({})); // a proxy answers with a page of its own
  return new ApiError(error.code ?? `http_${response.status}`, { ...error, status: response.status, retryAfter });
}

/** Parse an answer. Seeds have 64 bits; one that a number cannot hold stays a text. */
function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    name === "seed" && !Number.isSafeInteger(value) ? (context?.source ?? value) : value,
  );
}

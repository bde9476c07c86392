/** Errors in people's words. Knows the codes of the API's errors; nobody needs to read its messages. */

import { duration, t } from "./i18n.js";

/** Keys of messages by the code of an error. */
const BY_CODE = {
  unreachable: "error.unreachable",
  invalid_api_key: "key.invalid",
  rate_limit_exceeded: "error.rate",
  queue_full: "error.busy",
  deadline_unreachable: "error.busy",
  out_of_memory: "error.busy",
  deadline_exceeded: "error.late",
  lora_unavailable: "error.lora",
  non_finite_output: "error.nonFinite",
  worker_lost: "error.workerLost",
  server_restarted: "error.restarted",
  request_too_large: "error.imageTooLarge",
  task_not_found: "error.gone",
  image_not_found: "error.gone",
};
/** Keys of messages by the field that is wrong. */
const BY_FIELD = {
  prompt: "error.prompt",
  width: "error.sizeUnsupported",
  height: "error.sizeUnsupported",
  size: "error.sizeUnsupported",
  init_image: "image.unreadable",
  mask: "error.mask",
  strength: "error.strength",
  lora: "error.lora",
};
const BUSY_SECONDS = 10; // if the server does not say for how long

/**
 * Return what went wrong and what to do.
 * @param {{code?: string, status?: number, param?: string | null, retryAfter?: number | null}} error
 * @returns {string}
 */
export function problemText({ code = "", status = 0, param = null, retryAfter = null }) {
  const time = duration(retryAfter ?? BUSY_SECONDS);
  if (Object.hasOwn(BY_CODE, code)) return t(BY_CODE[code], { time });
  if (status === 400 && Object.hasOwn(BY_FIELD, param ?? "")) return t(BY_FIELD[param]);
  if (status === 413) return t("error.imageTooLarge");
  if (status === 429) return t("error.busy", { time });
  if (status >= 400 && status < 500) return t("error.refused");
  return t("error.unavailable");
}

/**
 * Return why a task failed.
 * @param {import("./types.js").Task} task
 */
export function failureText(task) {
  return `${t("run.failed")} ${problemText({ code: task.error_code ?? "" })}`;
}

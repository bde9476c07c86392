/** The progress of a task in words. Knows tasks; no elements. */

import { duration, number, t } from "./i18n.js";

/**
 * Return place in the queue or progress, and the time left.
 * @param {import("./tasks.js").ShownTask} task
 * @returns {string}
 */
export function progressText(task) {
  const left = secondsLeft(task);
  const parts = [stateText(task), left >= 1 ? t("run.left", { time: duration(left) }) : ""];
  return parts.filter(Boolean).join(" · ");
}

function stateText({ status, progress, queue_position: position }) {
  if (progress >= 100) return t("run.finishing");
  if (progress > 0) return t("run.percent", { percent: number(progress / 100, { style: "percent" }) });
  if (status === "running") return t("run.starting");
  return position > 0 ? t("run.waiting", { count: position }) : t("run.next");
}

/** @returns {number} seconds, counted down since the server's estimate */
function secondsLeft({ eta, updated }) {
  return (eta ?? 0) - (Date.now() - updated) / 1000;
}

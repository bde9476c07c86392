/** An image of a task: where it is, what it is called, and how it was made. Knows tasks; no elements. */

import { imageAddress } from "./api.js";
import { duration, number, t } from "./i18n.js";

const SUFFIX = { png: "png", jpeg: "jpg", webp: "webp" };

/** @typedef {import("./types.js").Task} Task */
/** @typedef {import("./viewer.js").ViewerItem & {id: string, task: Task, index: number}} Picture */

/**
 * Return the images of a task.
 * @param {Task} task
 * @returns {Picture[]}
 */
export function picturesOf(task) {
  return (task.result?.paths ?? []).map((path, index) => {
    const { seed } = task.result.metadata[index];
    return {
      id: `${task.task_id}-${index}`,
      task,
      index,
      src: imageAddress(path),
      name: `zimage-${seed}.${SUFFIX[task.settings.output_format]}`,
      prompt: task.prompt,
      get facts() {
        return factsOf(task, index);
      },
    };
  });
}

/** @returns {[string, string][]} names and values in the visitor's language */
function factsOf(task, index) {
  const metadata = task.result.metadata[index];
  const lora = metadata.lora && `${metadata.lora} (${number(metadata.lora_strength ?? 1)})`;
  /** @type {[string, string | null | undefined | false][]} */
  const facts = [
    ["fact.size", `${metadata.width} × ${metadata.height}`],
    ["fact.steps", number(metadata.num_inference_steps)],
    ["fact.seed", String(metadata.seed)],
    ["fact.guidance", metadata.guidance_scale > 0 && number(metadata.guidance_scale)],
    ["fact.negative", metadata.guidance_scale > 0 && task.settings.negative_prompt],
    ["fact.lora", lora],
    ["fact.strength", typeof metadata.strength === "number" && number(metadata.strength)],
    ["fact.model", `${metadata.model}, ${metadata.precision}`],
    ["fact.time", duration(secondsOf(metadata))],
    ["fact.revised", metadata.revised_prompt],
  ];
  return facts.filter(([, value]) => value).map(([key, value]) => [t(key), value]);
}

/**
 * Return the settings that make an image again, under the names of the API.
 * @param {Picture} picture
 * @returns {import("./settings-text.js").Settings & {output_format: string}}
 */
export function settingsOf({ task, index }) {
  const metadata = task.result.metadata[index];
  return {
    prompt: task.prompt,
    negative_prompt: task.settings.negative_prompt,
    width: metadata.width,
    height: metadata.height,
    num_inference_steps: metadata.num_inference_steps,
    seed: metadata.seed,
    guidance_scale: metadata.guidance_scale,
    lora: metadata.lora ?? "",
    lora_strength: metadata.lora_strength ?? 1,
    strength: metadata.strength ?? undefined,
    output_format: task.settings.output_format,
  };
}

/** @returns {number} the time of all stages; `passes` is a part of `denoiser` */
function secondsOf({ seconds: { passes: _, ...stages } }) {
  return Object.values(stages).reduce((sum, each) => sum + each, 0);
}

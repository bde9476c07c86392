/** The form: the inputs of a request, what is wrong with them, and their memory. Knows no tasks. */

import { element } from "./element.js";
import { t } from "./i18n.js";
import { ImageField } from "./image-field.js";
import { PromptHistory, historyMenu } from "./prompt-history.js";
import { SeedField } from "./seed-field.js";
import { ShapeField } from "./shape-field.js";
import { load, save } from "./storage.js";

/** @typedef {import("./types.js").ModelInfo} ModelInfo */
/** @typedef {import("./settings-text.js").Settings & {output_format?: string}} Settings */

const STORAGE = "zimage-form";
const PREVIEWS = 4; // of each image; about 1 MB each at 1024x1024

/** The inputs, which are in the document already. */
export class Form {
  /**
   * @param {ModelInfo} info
   * @param {() => void} onSubmit
   */
  constructor(info, onSubmit) {
    this._info = info;
    for (const id of ["form", "prompt", "steps", "format", "lora", "lora-strength", "guidance", "negative", "problem", "generate"]) {
      this[`_${id.replace("-s", "S")}`] = document.getElementById(id);
    }
    this._shape = new ShapeField(info);
    this._seed = new SeedField();
    this._image = new ImageField(document.getElementById("image-field"), {
      onChange: () => this._shape.offerImageSize(this._image?.isFilled ?? false),
      onProblem: (text) => this.showProblem(text),
      onSettings: (settings) => this.takeOver(settings),
    });
    this._prompts = new PromptHistory();
    this._build();
    this._listen(onSubmit);
    this.reset();
    this.takeOver(load(STORAGE, (value) => typeof value === "object" && value !== null, {}));
  }

  /** Number of images to generate. */
  get count() {
    return Number(this._form.elements.count.value);
  }

  /** The field of the image to start from. @returns {ImageField} */
  get image() {
    return this._image;
  }

  /** Called with the size after each change. @param {(size: import("./sizes.js").Size | null) => void} listener */
  onShape(listener) {
    this._shape.onChange(listener);
    listener(this._shape.value);
  }

  /**
   * Return the bodies of the requests, one for each image.
   * @returns {Promise<object[]>} none if a field is wrong; then the form says so
   */
  async requests() {
    if (!this._isValid()) return [];
    const fields = { ...this._fields(), ...(await this._image.fields()) };
    const seed = this._seed.next();
    this._prompts.add(fields.prompt);
    this._save();
    return Array.from({ length: this.count }, (_, index) => ({ ...fields, seed: SeedField.after(seed, index) }));
  }

  /**
   * Fill in settings; those that are absent stay.
   * @param {Settings} settings
   */
  takeOver(settings) {
    const { prompt, negative_prompt: negative, width, height, num_inference_steps: steps, seed, output_format: format } = settings;
    if (typeof prompt === "string") this._prompt.value = prompt;
    if (typeof negative === "string") this._negative.value = negative;
    if (Number.isInteger(width) && Number.isInteger(height)) this._shape.value = { width, height };
    if (Number.isInteger(steps)) this._steps.value = steps;
    if (SeedField.from(seed) !== null) this._seed.value = SeedField.from(seed);
    if (typeof settings.guidance_scale === "number") this._guidance.value = settings.guidance_scale;
    if (["png", "jpeg", "webp"].includes(format)) this._format.value = format;
    if (typeof settings.lora === "string") {
      this._lora.value = this._info.loras.includes(settings.lora) ? settings.lora : "";
      this._loraStrength.value = settings.lora_strength ?? 1;
    }
    if (typeof settings.strength === "number") this._image.strength = settings.strength;
    this._update();
  }

  /** Let the next images have random seeds. */
  unlockSeed() {
    this._seed.value = null;
  }

  /** Set every field but the prompt to its default. */
  reset() {
    this._shape.reset();
    this._seed.value = null;
    this._steps.value = this._info.num_inference_steps;
    this._guidance.value = this._info.default_guidance;
    this._negative.value = this._lora.value = "";
    this._loraStrength.value = 1;
    this._format.value = "png";
    this._update();
  }

  /** Show what is wrong, or nothing. @param {string} text @param {HTMLElement | null} [field] */
  showProblem(text, field = null) {
    for (const marked of this._form.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
    this._problem.textContent = text;
    if (field === null) return;
    field.closest("details")?.setAttribute("open", "");
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  focus() {
    this._prompt.focus();
    this._form.scrollIntoView({ block: "nearest" });
  }

  /** Show that requests are being sent. The button keeps the focus, which a disabled one loses. @param {boolean} isBusy */
  set isBusy(isBusy) {
    this._generate.setAttribute("aria-disabled", String(isBusy));
  }

  _build() {
    const { about, examples, loras, max_images: most, image_input: hasImages } = this._info;
    document.getElementById("image-field").hidden = !hasImages;
    document.getElementById("about").textContent = about;
    document.getElementById("examples").append(...examples.map((example) => this._example(example)));
    document.getElementById("examples-box").hidden = examples.length === 0 && !about;
    document.getElementById("history").append(historyMenu(this._prompts, (prompt) => this._setPrompt(prompt)));
    for (let count = 1; count <= most; count++) {
      const radio = element("input", { type: "radio", name: "count", value: String(count), checked: count === 1 });
      document.getElementById("counts").append(element("label", {}, radio, element("span", {}, String(count))));
    }
    document.getElementById("lora-field").hidden = loras.length === 0;
    this._lora.append(element("option", { value: "", "data-i18n": "form.noLora" }), ...loras.map((name) => element("option", { value: name }, name)));
  }

  _listen(onSubmit) {
    this._form.addEventListener("submit", (event) => {
      event.preventDefault();
      onSubmit();
    });
    this._form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this._form.requestSubmit(this._generate);
    });
    this._form.addEventListener("input", () => this._update());
    this._form.addEventListener("change", () => this._save());
    document.getElementById("reset").addEventListener("click", () => {
      this.reset();
      this._save();
    });
  }

  _example(text) {
    const made = element("button", { type: "button", class: "example" }, text);
    made.addEventListener("click", () => this._setPrompt(text));
    return made;
  }

  _setPrompt(text) {
    this._prompt.value = text;
    this._prompt.focus();
    this._save();
  }

  _update() {
    document.getElementById("negative-field").hidden = !(this._guidance.valueAsNumber > 0);
  }

  _isValid() {
    const wrong = this._wrongField();
    this.showProblem(...(wrong ?? [""]));
    return wrong === null;
  }

  /** @returns {[string, HTMLElement] | null} what is wrong with the first wrong field */
  _wrongField() {
    if (!this._prompt.value.trim() && !this._image.isFilled) return [t("error.prompt"), this._prompt];
    if (this._shape.problem) return [this._shape.problem, document.getElementById("width")];
    if (this._seed.problem) return [this._seed.problem, document.getElementById("seed")];
    for (const [input, key] of [[this._steps, "form.steps"], [this._guidance, "form.guidance"], [this._loraStrength, "form.loraStrength"]]) {
      const { value, min, max } = input, number = input.valueAsNumber;
      if (!(number >= Number(min) && number <= Number(max)) || (input === this._steps && !Number.isInteger(number))) {
        return [value === "" ? t("error.number", { field: t(key) }) : t("error.range", { field: t(key), low: min, high: max }), input];
      }
    }
    return null;
  }

  /** @returns {object} the fields of a request, without those of the image and the seed */
  _fields() {
    const guidance = this._guidance.valueAsNumber, size = this._shape.value ?? {};
    const negative = guidance > 0 ? { negative_prompt: this._negative.value } : {};
    const lora = this._lora.value ? { lora: this._lora.value, lora_strength: this._loraStrength.valueAsNumber } : {};
    return {
      prompt: this._prompt.value,
      ...size,
      num_inference_steps: this._steps.valueAsNumber,
      guidance_scale: guidance,
      ...negative,
      ...lora,
      output_format: this._format.value,
      previews: PREVIEWS,
    };
  }

  /** Keep the settings for the next visit. */
  _save() {
    const { previews: _, ...fields } = this._fields();
    save(STORAGE, { ...fields, ...(this._seed.isLocked ? { seed: this._seed.value } : {}) });
  }
}

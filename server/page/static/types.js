/** Types of the API's answers, for readers and editors. Has no code. */

/**
 * @typedef {object} SizeLimits
 * @property {number} min_width pixels, as the others
 * @property {number} max_width
 * @property {number} min_height
 * @property {number} max_height
 */

/**
 * @typedef {object} ModelInfo
 * @property {string} model_path name of the model
 * @property {string} precision
 * @property {string} flavor
 * @property {number} num_inference_steps
 * @property {string} default_size WIDTHxHEIGHT
 * @property {SizeLimits[]} size_limits one of them must hold
 * @property {string[]} recommended_sizes WIDTHxHEIGHT
 * @property {number} size_multiple pixels
 * @property {number} default_guidance
 * @property {number} max_images
 * @property {boolean} image_input
 * @property {boolean} needs_key
 * @property {"shared" | "browser" | "key"} history
 * @property {string[]} loras
 * @property {string} about
 * @property {string[]} examples
 */

/**
 * @typedef {object} ImageMetadata
 * @property {number | string} seed a text if a number cannot hold it
 * @property {number} width
 * @property {number} height
 * @property {number} num_inference_steps
 * @property {number} guidance_scale
 * @property {string} model
 * @property {string} precision
 * @property {string | null} revised_prompt
 * @property {string | null} lora
 * @property {number | null} lora_strength
 * @property {number | null} strength of the image that it starts from; null without one
 * @property {{total: number}} seconds
 */

/**
 * @typedef {object} TaskSettings null stands for the model's own value
 * @property {string} negative_prompt
 * @property {number | null} width
 * @property {number | null} height
 * @property {number | string} seed of the first image
 * @property {number | null} num_inference_steps
 * @property {number | null} guidance_scale
 * @property {string | null} lora
 * @property {number} lora_strength
 * @property {number} num_images
 * @property {"png" | "jpeg" | "webp"} output_format
 */

/**
 * @typedef {object} Task
 * @property {string} task_id
 * @property {"pending" | "running" | "done" | "failed" | "cancelled"} status
 * @property {number} progress percent
 * @property {number} queue_position unfinished tasks before it
 * @property {number | null} eta seconds
 * @property {number} created Unix seconds
 * @property {number} sequence order of acceptance
 * @property {string} prompt
 * @property {TaskSettings} settings
 * @property {{paths: string[], metadata: ImageMetadata[]} | null} result
 * @property {string | null} error
 * @property {string | null} error_code
 */

/**
 * @typedef {object} TaskEvent
 * @property {"progress" | "preview" | "image" | "end"} type
 * @property {Task["status"]} [status]
 * @property {number} [progress]
 * @property {number} [queue_position]
 * @property {number} [eta]
 * @property {string} [image] base64
 * @property {Task} [task]
 */

export {};

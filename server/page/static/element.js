/** Elements of the document. Knows no messages and no state. */

/**
 * Create an element.
 * @param {string} tag name of the element
 * @param {Record<string, string | boolean>} [attributes] true sets an empty attribute, false leaves it out
 * @param {...(Node | string)} children nodes and text
 * @returns {any} the element; its type follows from the tag
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/**
 * Create a button whose text is a message.
 * @param {string} key key of the message
 * @param {() => void} run called on a click
 * @param {Record<string, string | boolean>} [attributes] further attributes
 * @returns {HTMLButtonElement}
 */
export function button(key, run, attributes = {}) {
  const made = element("button", { type: "button", "data-i18n": key, ...attributes });
  made.addEventListener("click", run);
  return made;
}

/**
 * Create a button that shows a sign and is named by a message.
 * @param {string} sign one character, hidden from screen readers
 * @param {string} key key of the message, shown as a tooltip
 * @param {() => void} run called on a click
 * @param {Record<string, string | boolean>} [attributes] further attributes
 * @returns {HTMLButtonElement}
 */
export function signButton(sign, key, run, attributes = {}) {
  const made = element(
    "button",
    { type: "button", class: "sign", "data-i18n-label": key, "data-i18n-title": key, ...attributes },
    element("span", { "aria-hidden": "true" }, sign),
  );
  made.addEventListener("click", run);
  return made;
}

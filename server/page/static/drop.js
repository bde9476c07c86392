/**
 * Images that are dropped on the page or pasted into it, while no dialog is open. Knows files; not what they are for.
 */

/**
 * Call a function for each image that is dropped or pasted.
 * @param {HTMLElement} overlay shown while an image is dragged over the page
 * @param {(file: File) => void} onImage
 */
export function receiveImages(overlay, onImage) {
  let depth = 0; // elements that the pointer has entered and not left
  window.addEventListener("dragenter", (event) => {
    if (hasFiles(event)) overlay.hidden = ++depth === 0 || isCovered();
  });
  window.addEventListener("dragleave", (event) => {
    if (hasFiles(event)) overlay.hidden = --depth <= 0;
  });
  window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    overlay.hidden = true;
    take(event.dataTransfer.files);
  });
  window.addEventListener("paste", (event) => {
    if (!hasText(event) && take(event.clipboardData?.files ?? [])) event.preventDefault();
  });

  function take(files) {
    const image = [...files].find((file) => file.type.startsWith("image/"));
    if (image === undefined || isCovered()) return false;
    onImage(image);
    return true;
  }
}

/** @returns {boolean} true while a dialog is open, in which the image that there is may be edited */
function isCovered() {
  return document.querySelector("dialog[open]") !== null;
}

/** @returns {boolean} true if text goes into an input: office programs copy it with a picture of it */
function hasText({ target, clipboardData }) {
  const isInput = target instanceof HTMLElement && target.matches("input, textarea");
  return isInput && (clipboardData?.types.includes("text/plain") ?? false);
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}

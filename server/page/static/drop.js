/** Images that are dropped on the page or pasted into it. Knows files; not what they are for. */

/**
 * Call a function for each image that is dropped or pasted.
 * @param {HTMLElement} overlay shown while an image is dragged over the page
 * @param {(file: File) => void} onImage
 */
export function receiveImages(overlay, onImage) {
  let depth = 0; // elements that the pointer has entered and not left
  window.addEventListener("dragenter", (event) => {
    if (hasFiles(event)) overlay.hidden = ++depth === 0;
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
    if (take(event.clipboardData?.files ?? [])) event.preventDefault();
  });

  function take(files) {
    const image = [...files].find((file) => file.type.startsWith("image/"));
    if (image) onImage(image);
    return image !== undefined;
  }
}

function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}

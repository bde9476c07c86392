/** Server-sent events out of an answer to fetch, which unlike EventSource sends keys as headers. Knows no tasks. */

const SILENCE_SECONDS = 45; // the server sends a comment every 15 s; a connection without one is dead

/**
 * Yield the data of each event.
 * @param {Response} response
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await withinSilence(reader.read());
      if (done) return;
      text += value.replaceAll("\r", "");
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data !== null) yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @returns {string | null} the data of an event; null if it is only a comment */
function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.length === 0 ? null : lines.map((line) => line.slice("data:".length).trimStart()).join("\n");
}

/** Wait for a read; throw an error if the connection stays silent for too long. */
async function withinSilence(read) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the connection is silent")), SILENCE_SECONDS * 1000);
  });
  try {
    return await Promise.race([read, silence]);
  } finally {
    clearTimeout(timer);
  }
}

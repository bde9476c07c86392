/** Values that this browser keeps. A browser may keep nothing, and what it kept may be damaged or from elsewhere. */

/**
 * Return a value that was kept.
 * @template T
 * @param {string} key
 * @param {(value: any) => boolean} isValid
 * @param {T} fallback returned if there is no valid value
 * @returns {T}
 */
export function load(key, isValid, fallback) {
  try {
    const value = JSON.parse(localStorage.getItem(key) ?? "null");
    return isValid(value) ? value : fallback;
  } catch {
    return fallback;
  }
}

/**
 * Keep a value, or forget it if it is null. Without room, the browser keeps what it had.
 * @param {string} key
 * @param {unknown} value
 */
export function save(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // The page works without a memory.
  }
}

// Elements in few words.

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes and children; `on…` attributes are listeners. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The next time that the browser draws; soon, too, where it draws nothing since nobody looks. */
export function drawn() {
  return new Promise((done) => {
    requestAnimationFrame(() => done());
    setTimeout(done, 120);
  });
}

export const calm = matchMedia("(prefers-reduced-motion: reduce)");
export const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
export const several = (count, noun, plural = `${noun}s`) => `${count} ${count === 1 ? noun : plural}`;

/** What went wrong, in one line. Nothing for what was stopped on purpose. */
export function complaint(error) {
  if (error.name === "AbortError") return "";
  if (error.status === 401) return "This server wants a token: give it under Options.";
  return error.message.replace(/^Failed to fetch$|^network error$/, "The server is not there any more.");
}

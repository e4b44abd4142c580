// The preview: HTML, SVG or Markdown, as it settles, in a frame that reaches nothing.
import { marked } from "./vendor/marked.js";
import "./vendor/purify.js";
import { $ } from "./dom.js";

const PACE = 350; // ms between drawings: what changes there may be large and bright
const CLEAN = {
  FORCE_BODY: true, // a style that comes first is kept
  FORBID_TAGS: ["form", "link", "meta", "base", "iframe", "object", "embed"],
  RETURN_TRUSTED_TYPE: false, // it goes into a message, not into this document
};
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  // A link leads nowhere from the frame, but browsers connect to where it points before it is clicked.
  if (node.matches("a, area") && !node.getAttribute("href")?.startsWith("#")) node.removeAttribute("href");
});
const FENCE = /```[ \t]*(html|svg|xml|markdown|md)[^\n]*\n([\s\S]*?)(?:\n```|$)/i;

/** What a text is to be shown as, and which part of it: [kind, content]. */
export function partOf(text) {
  const fence = text.match(FENCE);
  const content = fence ? fence[2] : text.trim();
  if (/^(<\?xml[^>]*>\s*)?<svg[\s>]/i.test(content)) return ["SVG", content];
  if (/^<(!doctype|html|head|body|style|div|main|section|article|h1|p|table)\b/i.test(content)) return ["HTML", content];
  if (fence && /^(html|svg|xml)$/i.test(fence[1])) return ["HTML", content];
  return ["Markdown", content];
}

export const looksLike = (text) => partOf(text)[0] !== "Markdown" || /^```(markdown|md)/im.test(text);

export class Preview {
  constructor(root, opened) {
    Object.assign(this, { root, opened, html: "", ready: false, last: 0, timer: 0 });
    this.frame = $("iframe", root);
    this.kind = $(".kind", root);
    $("[data-close]", root).addEventListener("click", () => this.close());
    addEventListener("message", ({ source, data }) => {
      if (source !== this.frame.contentWindow || data !== "ready" || this.ready) return;
      this.ready = true;
      this.send();
    });
  }

  /** Opens it for a text; returns what `show` must be given, so that no other text is shown in between. */
  open(text) {
    this.root.hidden = false;
    this.opened(true);
    this.kind.textContent = "Preview";
    Object.assign(this, { owner: { text }, html: "", ready: false });
    this.frame.src = "/page/preview";
    return this.owner;
  }

  close() {
    this.root.hidden = true;
    this.opened(false);
    this.owner = null;
    this.frame.removeAttribute("src");
  }

  show(text, final, owner) {
    if (owner !== this.owner || this.root.hidden) return;
    clearTimeout(this.timer);
    const wait = final ? 0 : Math.max(0, this.last + PACE - performance.now());
    this.timer = setTimeout(() => this.render(text, final), wait);
  }

  render(text, final) {
    const [kind, content] = partOf(text);
    const html = DOMPurify.sanitize(kind === "Markdown" ? marked.parse(content) : content, CLEAN);
    const lost = kind === "Markdown" && this.kind.textContent in { HTML: 0, SVG: 0 }; // noise in a fence
    if (!final && (lost || !html.trim())) return; // the last that could be shown stays
    this.last = performance.now();
    this.kind.textContent = kind;
    this.html = html;
    this.send();
  }

  send() {
    if (this.ready) this.frame.contentWindow.postMessage(this.html, "*"); // it has no origin to name
  }
}

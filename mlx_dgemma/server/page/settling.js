// A text as it comes: what stays, the draft behind it, numbers of the pass, and afterwards a replay.
import { Gaps, drawHeat } from "./canvas.js";
import { $, calm, drawn, make, several } from "./dom.js";

const EVERY = 5; // passes that are shown where motion is not wanted
const PACE = 90; // ms a pass in a replay

export class Settling {
  /** `texts`: what is around it, or around its gaps, and stays; `changed`: called with the text so far and whether it
   * is final. */
  constructor({ texts = ["", ""], changed = () => {} } = {}) {
    this.changed = changed;
    this.said = "";
    this.frames = [];
    this.waiting = false;
    const gaps = texts.slice(1);
    this.answers = gaps.map(() => make("span", { "data-testid": "answer", "aria-live": "polite" }));
    this.drafts = gaps.map(() => make("span", { "data-testid": "draft", "aria-hidden": "true", class: "draft" }));
    this.past = make("span", { "aria-hidden": "true" });
    this.tokens = new Gaps(this.drafts);
    this.thoughts = make("div", { class: "thoughts" });
    this.thinking = make("details", { hidden: true }, make("summary", {}, "Thinking"), this.thoughts);
    this.numbers = make("p", { class: "numbers" }, "Reading the prompt …");
    this.heat = make("canvas", { class: "heat", "aria-hidden": "true" });
    const show = () => this.look(Number(this.slider.value));
    this.slider = make("input", { type: "range", min: 0, value: 0, "aria-label": "Pass to look at", oninput: show });
    this.play = make("button", { type: "button", class: "quiet", onclick: () => this.replay() }, "Replay");
    this.bed = make("div", {}, this.heat, this.slider);
    this.history = make("div", { class: "history", hidden: true }, this.play, this.bed);
    const around = (text) => (text ? [make("span", { class: "around" }, text)] : []);
    const inside = gaps.flatMap((text, i) => [this.answers[i], this.drafts[i], ...around(text)]);
    this.text = make("div", { class: "text" }, ...around(texts[0]), this.past, ...inside);
    this.root = make("div", { class: "settling running" }, this.thinking, this.text, this.numbers, this.history);
  }

  /** Shows all events to the end, which it returns. */
  async follow(events) {
    try {
      for await (const event of events) {
        if (event.end) return await this.finish(event.end);
        if (event.gaps) await this.fill(event.gaps);
        await this.take(event);
      }
    } finally {
      this.close();
    }
  }

  async fill(gaps) {
    if (this.waiting) await drawn(); // the last draft is seen
    this.tokens.clear();
    gaps.forEach((text, i) => this.answers[i].append(text));
  }

  async take({ draft, text = "", thinking = "" }) {
    if (draft) {
      this.frames.push({ ...draft, from: this.said.length });
      if (!calm.matches || draft.step % EVERY === 0) this.schedule();
      return;
    }
    if (this.waiting) await drawn(); // the last draft is seen
    this.tokens.clear();
    if (thinking) {
      this.thinking.hidden = false;
      this.thoughts.append(thinking);
    }
    this.said += text;
    this.answers[0].append(text);
    this.changed(this.said, false);
  }

  /** One drawing for each time that the browser draws, of the latest draft. */
  async schedule() {
    if (this.waiting) return;
    this.waiting = true;
    await drawn();
    this.waiting = false;
    const frame = this.frames.at(-1);
    if (frame.from !== this.said.length || !this.root.classList.contains("running")) return;
    this.tokens.draw(frame);
    this.numbers.textContent = passOf(frame);
    if (!frame.reasoning) this.changed(this.said + frame.text, false);
  }

  async finish(end) {
    if (this.waiting) await drawn();
    const { diffusion, completion_tokens: tokens } = end.usage ?? {};
    const passes = diffusion ? `${several(tokens, "token")} in ${several(diffusion.steps, "pass", "passes")}` : "";
    const time = diffusion?.seconds ? `${diffusion.seconds.toFixed(2)} s` : "";
    const cut = end.reason === "length" ? "cut short at a limit" : "";
    this.numbers.textContent = [passes, time, cut, ...end.warnings].filter(Boolean).join(" · ");
    return end;
  }

  close() {
    this.root.classList.remove("running");
    this.tokens.clear();
    if (this.numbers.textContent.endsWith("…") || this.numbers.textContent.startsWith("pass")) {
      this.numbers.textContent = "Stopped.";
    }
    this.changed(this.said, true);
    if (!this.frames.length) return;
    this.history.hidden = false;
    this.bed.style.maxWidth = `${Math.max(12, 3 * this.frames.length)}rem`; // few passes are no wide bars
    this.slider.max = this.frames.length;
    this.slider.value = this.frames.length;
    this.look(this.frames.length);
  }

  /** Shows the text as it was at a pass; behind the last, as it is. */
  look(pass) {
    const frame = this.frames[pass];
    for (const answer of this.answers) answer.hidden = Boolean(frame);
    this.past.textContent = frame ? this.said.slice(0, frame.from) : "";
    frame ? this.tokens.draw(frame) : this.tokens.clear();
    this.slider.setAttribute("aria-valuetext", frame ? passOf(frame) : "the final text");
    drawHeat(this.heat, this.frames, pass);
  }

  async replay() {
    const mine = (this.replaying = {}); // a second click begins anew
    for (let pass = 0; pass <= this.frames.length && this.replaying === mine; pass += calm.matches ? EVERY : 1) {
      this.slider.value = pass;
      this.look(pass);
      await new Promise((done) => setTimeout(done, calm.matches ? 1000 : PACE));
    }
    if (this.replaying === mine) this.look((this.slider.value = this.frames.length));
  }
}

function passOf({ block, step, total, accepted, entropy }) {
  const share = accepted.length ? Math.round((100 * accepted.filter(Boolean).length) / accepted.length) : 0;
  return `pass ${step + 1} of at most ${total} · block ${block + 1} · ${share} % accepted · ${entropy.toFixed(2)} nats`;
}

/** Runs `work(signal)` while `form` shows a Stop instead of its button; Escape stops, too. */
export async function whileRunning(form, work) {
  const stopper = new AbortController();
  const escape = (event) => event.key === "Escape" && stopper.abort();
  const stop = $("[data-stop]", form);
  const stopped = () => stopper.abort();
  stop.addEventListener("click", stopped);
  document.addEventListener("keydown", escape);
  form.classList.add("busy");
  try {
    return await work(stopper.signal);
  } finally {
    form.classList.remove("busy");
    stop.removeEventListener("click", stopped);
    document.removeEventListener("keydown", escape);
  }
}

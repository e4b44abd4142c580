// The race: the same question denoised and left to right, with the same weights.
//
// Side by side at once, each would slow the other. So each runs alone, one after the other, and while the second runs the
// first is shown again beside it, on the same clock. The prompt is encoded before, for both.
import { Tokens } from "./canvas.js";
import { $, complaint, drawn, make, seconds, several } from "./dom.js";
import { chosen } from "./options.js";
import { whileRunning } from "./settling.js";
import { ask } from "./wire.js";

const WAYS = [
  ["diffusion", "Denoised", "all positions together, a few passes"],
  ["ar", "Left to right", "one token after the other, a pass each"],
];

class Lane {
  constructor(mode, name, how) {
    this.mode = mode;
    this.name = name;
    this.events = []; // [ms, said so far, draft or null, passes]
    this.clock = make("output", { class: "clock", "aria-hidden": "true" }, seconds(0));
    this.passes = make("span", { class: "passes", "aria-hidden": "true" }, "waiting");
    this.said = make("span");
    this.draft = make("span", { class: "draft", "aria-hidden": "true" });
    this.tokens = new Tokens(this.draft);
    const head = make("header", {}, make("h3", {}, name), make("small", {}, how), this.clock, this.passes);
    this.root = make("article", { class: `lane ${mode}` }, head, make("div", { class: "text" }, this.said, this.draft));
  }

  /** Runs alone, from now on. `tick(ms)` is called whenever something is drawn. */
  async run(question, signal, tick) {
    const start = performance.now();
    let [said, passes, running] = ["", 0, true];
    const follow = async () => {
      while (running) {
        tick(performance.now() - start);
        await drawn();
      }
    };
    const following = follow();
    try {
      for await (const event of ask("/v1/chat/completions", body(question, this.mode), signal)) {
        const ms = performance.now() - start;
        if (event.end) Object.assign(this, { end: event.end, ms });
        said += event.text ?? "";
        passes = event.end ? event.end.usage.diffusion.steps : passes + 1;
        this.events.push([ms, said, event.draft ?? null, passes]);
      }
    } finally {
      running = false;
      await following;
    }
    tick(this.ms);
  }

  /** Shows how it was `ms` after its start. */
  at(ms) {
    const event = this.events.findLast(([when]) => when <= ms);
    const done = this.ms !== undefined && ms >= this.ms;
    this.root.classList.toggle("done", done);
    this.clock.textContent = seconds(done ? this.ms : ms);
    if (!event) return this.empty();
    const [, said, draft, passes] = event;
    if (this.said.textContent !== said) this.said.textContent = said;
    draft ? this.tokens.draw(draft) : this.tokens.clear();
    this.passes.textContent = several(passes, "pass", "passes");
  }

  empty() {
    this.said.textContent = "";
    this.tokens.clear();
    this.passes.textContent = "reading";
  }
}

function body(question, mode) {
  const { verify, max_denoising_steps: steps, ...fields } = chosen(); // what both can do
  return { messages: [{ role: "user", content: question }], ...fields, mode };
}

/** Encodes the prompt, which both begin with, and runs each way once. */
async function warmUp(question, signal) {
  for (const [mode] of WAYS) {
    for await (const event of ask("/v1/chat/completions", { ...body(question, mode), max_tokens: 1 }, signal)) void event;
  }
}

export function startRace() {
  const [form, track, told] = [$("#race form"), $("#race .track"), $("#race .told")];
  const again = $("#race .again");
  let lanes = [];

  async function replay() {
    const [slower, start] = [Number($("select", again).value), performance.now()];
    const all = Math.max(...lanes.map((lane) => lane.ms));
    for (let ms = 0; ms < all && again.isConnected && !form.classList.contains("busy"); await drawn()) {
      ms = (performance.now() - start) / slower;
      for (const lane of lanes) lane.at(ms);
    }
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = $("textarea", form).value;
    if (form.classList.contains("busy") || !question.trim()) return;
    again.hidden = true;
    lanes = WAYS.map((way) => new Lane(...way));
    track.replaceChildren(...lanes.map((lane) => lane.root));
    try {
      await whileRunning(form, async (signal) => {
        told.textContent = "Warming up: the prompt is encoded for both.";
        await warmUp(question, signal);
        const [denoised, ar] = lanes;
        told.textContent = "Denoising runs, alone.";
        await denoised.run(question, signal, (ms) => denoised.at(ms));
        told.textContent = "Left to right runs, alone; denoising is shown again on the same clock.";
        await ar.run(question, signal, (ms) => lanes.forEach((lane) => lane.at(ms)));
        lanes.forEach((lane) => lane.at(Infinity));
      });
      told.textContent = verdict(lanes);
      again.hidden = false;
    } catch (error) {
      told.textContent = complaint(error) || "Stopped.";
    }
  });
  $("button", again).addEventListener("click", replay);
}

function verdict(lanes) {
  const each = lanes.map(({ name, ms, end }) => {
    const { completion_tokens: tokens, diffusion } = end.usage;
    return `${name}: ${seconds(ms)}, ${several(tokens, "token")} in ${several(diffusion.steps, "pass", "passes")}.`;
  });
  const [first, second] = [...lanes].sort((a, b) => a.ms - b.ms);
  const alike = lanes[0].said.textContent === lanes[1].said.textContent ? "The texts are equal." : "The texts differ.";
  return `${each.join(" ")} ${first.name} was ${(second.ms / first.ms).toFixed(1)} times as fast. ${alike}`;
}

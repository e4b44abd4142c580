// Fill: gaps in a text; what is around them stays.
import { $, complaint, make, several } from "./dom.js";
import { chosenForText } from "./options.js";
import { Settling, whileRunning } from "./settling.js";
import { ask } from "./wire.js";

const MARK = "<fill>";

export function startFill() {
  const [form, result] = [$("#fill form"), $("#fill .result")];
  const text = $("[name=text]", form);

  $("[data-gap]", form).addEventListener("click", () => {
    text.setRangeText(MARK, text.selectionStart, text.selectionEnd, "end");
    text.focus();
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.classList.contains("busy")) return;
    const parts = text.value.split(MARK);
    if (parts.length < 2) {
      result.replaceChildren(make("p", { role: "alert" }, `Mark a gap first: ${MARK}.`));
      return;
    }
    const settling = new Settling({ texts: parts });
    settling.numbers.textContent = "Looking for the length of the gap …";
    result.replaceChildren(settling.root);
    const lengths = $("[name=gap]", form).value;
    const body = { fill: text.value, prompt: $("[name=prompt]", form).value.trim(), ...chosenForText() };
    if (lengths) body.gap = parts.length === 2 ? Number(lengths) : Array(parts.length - 1).fill(Number(lengths));
    try {
      const end = await whileRunning(form, (signal) => settling.follow(gapsOf(ask("/v1/completions", body, signal))));
      const { canvases } = end.usage.diffusion;
      const all = several(canvases, "canvas", "canvases");
      settling.numbers.textContent = `${several(end.gaps.length, "gap")} filled, ${all} in all`;
    } catch (error) {
      settling.numbers.replaceChildren(make("strong", { role: "alert" }, complaint(error)));
    }
  });
}

/** The events without the text around the gaps, which is there already. */
async function* gapsOf(events) {
  for await (const event of events) {
    if (event.end) yield { gaps: event.end.gaps };
    if (!event.text) yield event;
  }
}

// Fill: gaps in a text; what is around them stays.
import { $, complaint, make, several } from "./dom.js";
import { chosenForText } from "./options.js";
import { Settling, whileRunning } from "./settling.js";
import { ask } from "./wire.js";

const MARK = "<fill>";

export function startFill() {
  const [form, result] = [$("#fill form"), $("#fill .result")];
  const text = $("textarea", form);

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
    // With several gaps a draft is of all of them: it stands behind the text that is before the first.
    const behind = parts.length === 2 ? parts[1] : "";
    const settling = new Settling({ before: parts[0], behind });
    settling.numbers.textContent = "Looking for the length of the gap …";
    result.replaceChildren(settling.root);
    const lengths = $("[name=gap]", form).value;
    const body = { fill: text.value, ...chosenForText() };
    if (lengths) body.gap = parts.length === 2 ? Number(lengths) : Array(parts.length - 1).fill(Number(lengths));
    try {
      const end = await whileRunning(form, (signal) => settling.follow(gapsOf(ask("/v1/completions", body, signal))));
      filled(settling, parts, end);
    } catch (error) {
      settling.numbers.replaceChildren(make("strong", { role: "alert" }, complaint(error)));
    }
  });
}

/** The events without the text around the gaps, which is there already. */
async function* gapsOf(events) {
  for await (const event of events) {
    if (event.end) yield { text: event.end.gaps.join(" … ") };
    if (!event.text) yield event;
  }
}

function filled(settling, parts, end) {
  if (parts.length > 2) {
    const whole = parts.flatMap((part, i) => (i ? [make("mark", {}, end.gaps[i - 1]), part] : [part]));
    settling.text.replaceChildren(settling.past, ...whole);
    settling.history.hidden = true;
  }
  const { canvases } = end.usage.diffusion;
  settling.numbers.textContent = `${several(end.gaps.length, "gap")} filled, ${several(canvases, "canvas", "canvases")} in all`;
}

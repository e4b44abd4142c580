// Edit: lines of a text, what to do with them, and the difference.
import { $, complaint, make } from "./dom.js";
import { chosenForText } from "./options.js";
import { Settling, whileRunning } from "./settling.js";
import { ask } from "./wire.js";

export function startEdit() {
  const [form, result] = [$("#edit form"), $("#edit .result")];
  const [text, gutter, lines] = [$("[name=text]", form), $(".gutter", form), $("[name=lines]", form)];
  const numberOf = (at) => text.value.slice(0, at).split("\n").length;

  /** Numbers of the lines, those that are selected marked. */
  function number() {
    const [, first, last] = lines.value.match(/^(\d+)(?::(\d+))?$/) ?? [0, 0, 0];
    const all = text.value.replace(/\n$/, "").split("\n");
    const marked = (i) => i + 1 >= Number(first) && i + 1 <= Number(last ?? first);
    gutter.replaceChildren(...all.map((_, i) => make("span", { class: marked(i) && "here" }, `${i + 1}`)));
    gutter.scrollTop = text.scrollTop;
  }

  function select() {
    const [start, end] = [text.selectionStart, text.selectionEnd];
    const last = end > start && text.value[end - 1] === "\n" ? end - 1 : end; // a whole line was selected
    lines.value = `${numberOf(start)}:${numberOf(last)}`;
    number();
  }

  for (const name of ["keyup", "pointerup", "select"]) text.addEventListener(name, select);
  text.addEventListener("input", number);
  text.addEventListener("scroll", () => (gutter.scrollTop = text.scrollTop));
  lines.addEventListener("input", number);
  number();

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.classList.contains("busy")) return;
    const old = text.value;
    const body = { text: old, lines: lines.value, prompt: $("[name=prompt]", form).value, ...chosenForText() };
    body.strength = Number($("[name=strength]", form).value);
    const settling = new Settling(around(old, lines.value));
    settling.numbers.textContent = "Looking for the length of the new lines …";
    result.replaceChildren(settling.root);
    try {
      const asked = (signal) => settling.follow(ask("/v1/edit/completions", body, signal));
      const end = await whileRunning(form, asked);
      const apply = make("button", { type: "button" }, "Apply");
      apply.addEventListener("click", () => {
        const undone = apply.textContent === "Undo";
        text.value = undone ? old : end.new_text;
        apply.textContent = undone ? "Apply" : "Undo";
        number();
      });
      result.append(difference(end.diff), ...(end.diff ? [make("div", { class: "actions" }, apply)] : []));
    } catch (error) {
      settling.numbers.replaceChildren(make("strong", { role: "alert" }, complaint(error)));
    }
  });
}

/** The text before and behind the lines. */
function around(text, lines) {
  const all = text.split("\n");
  const [first, last = first] = lines.split(":").map(Number);
  const before = all.slice(0, first - 1).map((line) => `${line}\n`).join("");
  const behind = all.slice(last).map((line) => `\n${line}`).join("");
  return { texts: [before, behind] };
}

const KINDS = { "+": ["added", "ins"], "-": ["taken away", "del"] };

/** A unified diff as lines, whose kind is told by sign, colour and element. */
function difference(diff) {
  if (!diff) return make("p", {}, "Nothing changed.");
  const shown = diff.replace(/\n$/, "").split("\n").slice(2).map((line) => {
    const [name, tag] = KINDS[line[0]] ?? ["", "span"];
    return make(tag, { class: line.startsWith("@@") ? "place" : name.split(" ")[0] }, `${line}\n`);
  });
  return make("pre", { class: "diff", tabindex: "0", role: "region", "aria-label": "Difference" }, ...shown);
}

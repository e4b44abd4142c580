// Chat: questions, answers that settle, and a preview beside them.
import { $, complaint, make } from "./dom.js";
import { chosen } from "./options.js";
import { Preview, looksLike } from "./preview.js";
import { Settling, whileRunning } from "./settling.js";
import { ask } from "./wire.js";

const TINY = [
  ["A sudoku", "Solve this sudoku:\n....1.\n.1..6.\n2.1..4\n..61..\n1..4.6\n...2.."],
  ["Facts as JSON", "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old."],
  ["A function", "Write a function scale(a, w) that multiplies each w in a by 44."],
  ["Reverse words", "Reverse: clerk, Kofi, Eve, Turin, Noor, Cara"],
];
const REAL = [
  ["A picture", "Draw a lighthouse at dusk as one SVG, 480 by 320."],
  ["A small page", "Write one HTML page with CSS: a calm clock face showing ten past ten. No scripts."],
  ["A sudoku", TINY[0][1]],
  ["An explanation", "Explain in five short paragraphs, in Markdown, why the sky is blue."],
];

export function startChat(model) {
  const [form, turns, view] = [$("#ask"), $("#turns"), $("#chat")];
  const input = $("textarea", form);
  const preview = new Preview($("#preview"), (open) => view.classList.toggle("split", open));
  const forgets = model === "tiny"; // it knows single questions only
  let messages = [];
  $("#tiny").hidden = !forgets;

  async function send(question) {
    $("#welcome").hidden = true;
    input.value = "";
    if (forgets) messages = [];
    messages.push({ role: "user", content: question });
    turns.append(make("p", { class: "question" }, question));
    const talk = $(".talk");
    const follow = () => (talk.scrollTop = talk.scrollHeight);
    let own = null; // the text that the preview shows is this answer's
    const settling = new Settling({
      changed(text, final) {
        if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 200) follow(); // unless the user reads above
        own ??= looksLike(text) ? preview.open(text) : null;
        if (own) preview.show(text, final, own);
      },
    });
    turns.append(settling.root);
    follow();
    try {
      const body = { messages, ...chosen() };
      await whileRunning(form, (signal) => settling.follow(ask("/v1/chat/completions", body, signal)));
    } catch (error) {
      const line = complaint(error);
      if (line) settling.numbers.replaceChildren(make("strong", { role: "alert" }, line));
    }
    if (settling.said) {
      messages.push({ role: "assistant", content: settling.said });
      settling.root.append(actions(settling, preview));
    } else {
      messages.pop(); // nothing came of the question
      input.value ||= question;
    }
    follow();
    input.focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!form.classList.contains("busy") && input.value.trim()) send(input.value.trimEnd());
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  $("#new").addEventListener("click", () => {
    messages = [];
    turns.replaceChildren();
    $("#welcome").hidden = false;
    preview.close();
    input.focus();
  });
  for (const [name, question] of model === "tiny" ? TINY : REAL) {
    const click = () => form.classList.contains("busy") || send(question);
    $("#tries").append(make("button", { type: "button", onclick: click }, make("b", {}, name), make("span", {}, question)));
  }
}

function actions(settling, preview) {
  const text = settling.said;
  const copy = make("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  });
  const look = () => preview.show(text, true, preview.open(text));
  return make("div", { class: "actions" }, copy, make("button", { type: "button", class: "quiet", onclick: look }, "Preview"));
}

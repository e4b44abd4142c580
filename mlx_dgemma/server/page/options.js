// What is asked of every request, and how the page looks.
import { $ } from "./dom.js";

const NUMBERS = ["seed", "max_tokens", "max_denoising_steps", "deadline"];

/** The fields of a request that are set. */
export function chosen() {
  const fields = {};
  for (const name of NUMBERS) {
    const { value } = $(`#options [name=${name}]`);
    if (value !== "") fields[name] = Number(value);
  }
  for (const name of ["verify", "thinking"]) if ($(`#options [name=${name}]`).checked) fields[name] = true;
  return fields;
}

/** As `chosen`, for what has no chat turns. */
export function chosenForText() {
  const { thinking, verify, max_tokens, ...fields } = chosen();
  return fields;
}

export function startOptions(changed) {
  const dialog = $("#options");
  $("#open-options").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("close", () => {
    sessionStorage.setItem("token", $("[name=token]", dialog).value);
    changed();
  });
  $("[name=token]", dialog).value = sessionStorage.getItem("token") ?? "";
  const theme = $("#theme");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
    theme.setAttribute("aria-pressed", String(name === "dark"));
  };
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  set(localStorage.getItem("theme") ?? system);
  theme.addEventListener("click", () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", name);
    set(name);
  });
}

// The page: its four views, and which model answers.
import { startChat } from "./chat.js";
import { $, complaint } from "./dom.js";
import { startEdit } from "./edit.js";
import { startFill } from "./fill.js";
import { startOptions } from "./options.js";
import { startRace } from "./race.js";
import { get } from "./wire.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const each of tabs) {
    const here = each === tab;
    each.setAttribute("aria-selected", String(here));
    each.tabIndex = here ? 0 : -1;
    $(`#${each.dataset.view}`).hidden = !here;
  }
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => {
    history.replaceState(null, "", `#${tab.dataset.view}`);
    show(tab);
  });
  tab.addEventListener("keydown", ({ key }) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[key];
    if (to === undefined) return;
    tabs[to % tabs.length].focus();
    tabs[to % tabs.length].click();
  });
}
const named = () => tabs.find((tab) => `#${tab.dataset.view}` === location.hash) ?? tabs[0];
addEventListener("hashchange", () => show(named()));
show(named());

let model = null;

async function meet() {
  const name = $("#model");
  try {
    model = (await get("/v1/models")).data[0].id;
    name.textContent = model;
  } catch (error) {
    name.textContent = complaint(error);
  }
}

$("#ask textarea").focus(); // now: who types at once loses no letter
startOptions(async () => model ?? (await meet()));
await meet();
startChat(model);
startFill();
startEdit();
startRace();

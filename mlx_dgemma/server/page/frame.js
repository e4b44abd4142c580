// Within the frame: shows the HTML that the page sends, and changes no more of it than changed.
"use strict";
const root = document.getElementById("root");
addEventListener("message", ({ source, data }) => {
  if (source !== parent) return;
  const next = document.createElement("div");
  next.innerHTML = data;
  morphdom(root, next, { childrenOnly: true });
});
parent.postMessage("ready", "*");

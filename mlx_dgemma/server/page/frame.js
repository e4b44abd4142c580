// Within the frame: shows the HTML that the page sends, and changes no more of it than changed.
"use strict";
const root = document.getElementById("root");
addEventListener("message", ({ source, data }) => {
  if (source !== parent) return;
  if (data.scripts) {
    document.open(); // takes this script's place; the policy of the document stays
    document.write(data.html);
    document.close();
    return;
  }
  const next = document.createElement("div");
  next.innerHTML = data.html;
  morphdom(root, next, { childrenOnly: true });
});
parent.postMessage("ready", "*");

"use strict";
// Builds the page when all of its parts are defined, then starts the chart library.

function startLibrary() {
  const library = document.getElementById("library");
  document.body.append(element("script", {}, library.textContent)); // runs at once: its hash is allowed
  library.remove();
  drawVisible();
}

document.getElementById("page").replaceChildren(head(), navigation(), curvesSection(), rolloutsSection(),
  auditSection(), evaluationSection(), settingsSection());
followAddress();
window.addEventListener("hashchange", followAddress);
document.addEventListener("keydown", onKey);
// After the next frame, so that the page is shown first.
requestAnimationFrame(() => setTimeout(startLibrary));

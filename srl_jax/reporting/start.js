"use strict";
// Builds the page when all of its parts are defined.

document.getElementById("page").replaceChildren(head(), navigation(), curvesSection(), rolloutsSection(),
  auditSection(), evaluationSection(), settingsSection());
applyFilters();
followAddress();
window.addEventListener("hashchange", followAddress);
document.addEventListener("keydown", onKey);

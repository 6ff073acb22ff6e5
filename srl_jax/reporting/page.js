"use strict";
// The page: its data, helpers to build elements, the head, the sections. Texts of runs are data:
// they become text nodes (`element`), never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SECTIONS = ["curves", "rollouts", "audit", "evaluation", "settings"];

// An element with attributes and children; a child that is no element becomes a text node.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "-";
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}

function percent(value, digits = 1) {
  return value === null || value === undefined ? "-" : (100 * value).toFixed(digits) + " %";
}

// A table in a box that scrolls sideways on a phone. Cells are texts or elements.
function table(head, rows, className = "") {
  const cells = (tag, row) => row.map((cell) => element(tag, {}, cell));
  return element("div", { class: "scroll" },
    element("table", { class: className },
      element("thead", {}, element("tr", {}, ...cells("th", head))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row))))));
}

function chooser(label, options, onchange) {
  const select = element("select", { onchange: () => onchange(select.value) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  return element("label", {}, label + " ", select);
}

// ---- the head

function head() {
  const ongoing = DATA.runs.some((run) => !run.finished);
  return element("header", {},
    element("h1", {}, DATA.runs.map((run) => run.name).join(", ")),
    element("p", { class: "dim" }, `Written ${DATA.written} UTC by srl_jax ${DATA.version}. `,
      ongoing ? "A run is not finished." : "", ongoing ? reloadOffer() : null),
    table(["run", "method", "model", "steps", "best on validation", "benchmark"],
      DATA.runs.map(runRow), "runs"),
    notes("Not readable, and left out", "fault", (run) => run.faults),
    notes("Look at this", "finding", (run) => run.findings));
}

function runRow(run, place) {
  const swatch = element("span", { class: "swatch", style: `background:${colour(place)}` });
  const best = run.best;
  const { before, after } = run.summary;
  const change = before && after
    ? Object.keys(after).filter((name) => typeof after[name] === "number").map((name) =>
      `${name.replaceAll("_", " ")} ${percent(before[name])} → ${percent(after[name])}`).join("; ")
    : "-";
  return [
    element("span", {}, swatch, run.name), run.method, run.model,
    `${run.step}${run.steps ? " of " + run.steps : ""}${run.finished ? "" : ", not finished"}`,
    best ? `${best.metric.replace("validation_", "")} ${number(best.value)} at step ${best.step}` : "-",
    change,
  ];
}

function notes(title, className, sentencesOf) {
  const items = [];
  for (const run of DATA.runs) {
    for (const sentence of sentencesOf(run)) {
      const where = DATA.runs.length > 1 ? element("b", {}, run.name + ": ") : null;
      items.push(element("li", {}, where, sentence));
    }
  }
  if (!items.length) return null;
  return element("details", { class: `notes ${className}`, open: items.length < 6 },
    element("summary", {}, `${title} (${items.length})`), element("ul", {}, ...items));
}

// The page cannot know whether its file was written again: it makes no request. A run writes at
// most one page a minute, so that is when reloading may show something new.
function reloadOffer() {
  const button = element("button", { class: "reload", hidden: true, onclick: () => location.reload() },
    "Reload for the newest page");
  setTimeout(() => { button.hidden = false; }, 60_000);
  return button;
}

// ---- sections

function section(name, title, ...children) {
  return element("section", { id: idOf(name), "aria-label": title }, ...children);
}

// Not the name itself: the browser would scroll to it when the address changes.
function idOf(name) {
  return "section-" + name;
}

function navigation() {
  const links = SECTIONS.map((name) =>
    element("a", { href: "#" + name, "data-section": name }, name[0].toUpperCase() + name.slice(1)));
  return element("nav", {}, ...links);
}

// Shows the section that the address names: #rollouts, or #group=RUN/STEP/NUMBER for a group.
function followAddress() {
  const address = decodeURIComponent(location.hash.slice(1));
  const group = address.startsWith("group=") ? address.slice(6) : null;
  const name = group ? "rollouts" : SECTIONS.includes(address) ? address : "curves";
  for (const other of SECTIONS) {
    document.getElementById(idOf(other)).hidden = other !== name;
    const link = document.querySelector(`nav a[data-section=${other}]`);
    if (other === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "rollouts" && !isListed) applyFilters(); // hundreds of rows: not before they are seen
  if (group) showGroupOfAddress(group);
  else if (name === "rollouts") showFirstGroup();
  drawVisible();
}

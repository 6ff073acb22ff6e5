"use strict";
// The groups: a list with filters, and one group with its responses beside the expert's step.

const filters = { run: "", state: "", task: "", why: "", low: "", high: "", least: "", most: "", text: "" };
const LONG = 1500; // characters of a text that is folded at first
let matching = []; // places in DATA.groups that pass the filters
let isListed = false; // whether the list was made
let current = -1; // place in DATA.groups of the group that is shown

function rolloutsSection() {
  const shown = DATA.runs.map((run) => {
    const { groups, steps, steps_read: read } = run.rollouts;
    const part = read < steps ? `, of ${read} of ${steps} steps` : "";
    return `${run.name}: ${run.rollouts.shown} of ${groups} groups${part}`;
  });
  return section("rollouts", "Rollouts",
    element("p", { class: "dim" }, `Shown are ${shown.join("; ")}: the best, the worst, the most spread ones,` +
      " dropped ones of each reason, and a sample over time. Keys j and k go to the next and the previous group."),
    filterBar(),
    element("div", { class: "rollouts" }, element("div", { id: "groups", role: "listbox", "aria-label": "groups" }),
      element("div", { id: "group" })));
}

function filterBar() {
  const set = (name) => (value) => { filters[name] = value; applyFilters(); };
  const input = (name, label, type, size) => element("label", {}, label + " ", element("input",
    { type, id: "filter-" + name, size, step: "any", oninput: (event) => set(name)(event.target.value) }));
  const all = (values) => [["", "all"], ...[...new Set(values)].sort().map((value) => [value, value])];
  const states = DATA.groups.map(stateOf);
  const runs = [["", "all"], ...DATA.runs.map((run, place) => [String(place), run.name])];
  const choices = [];
  if (DATA.runs.length > 1) choices.push(chooser("run", runs, set("run")));
  choices.push(chooser("kept or dropped", all(states), set("state")));
  if (new Set(DATA.groups.map((group) => group.task)).size > 1) {
    choices.push(chooser("task", all(DATA.groups.map((group) => group.task)), set("task")));
  }
  choices.push(chooser("shown as", all(DATA.groups.flatMap((group) => group.why)), set("why")));
  return element("p", { class: "controls" }, ...choices,
    input("low", "steps from", "number", 5), input("high", "to", "number", 5),
    input("least", "mean reward from", "number", 5), input("most", "to", "number", 5),
    input("text", "text", "search", 16), element("span", { id: "count", class: "dim" }));
}

function stateOf(group) {
  return group.dropped === null ? "kept" : group.dropped;
}

function textOf(group) {
  if (!group.searchable) {
    const texts = group.responses.flatMap((response) => [response.action, response.monologue]);
    group.searchable = [group.id, group.problem, group.target, ...texts].join("\n").toLowerCase();
  }
  return group.searchable;
}

function passes(group) {
  const within = (value, low, high) => (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
  return (filters.run === "" || group.run === Number(filters.run))
    && (filters.state === "" || stateOf(group) === filters.state)
    && (filters.task === "" || group.task === filters.task)
    && (filters.why === "" || group.why.includes(filters.why))
    && within(group.step, filters.low, filters.high)
    && within(group.mean, filters.least, filters.most)
    && (filters.text === "" || textOf(group).includes(filters.text.toLowerCase()));
}

function applyFilters() {
  isListed = true;
  matching = DATA.groups.map((_, place) => place).filter((place) => passes(DATA.groups[place]));
  document.getElementById("groups").replaceChildren(...matching.map(groupRow));
  document.getElementById("count").textContent = `${matching.length} of ${DATA.groups.length} groups`;
  markCurrent();
}

function groupRow(place) {
  const group = DATA.groups[place];
  const several = DATA.runs.length > 1;
  const bars = element("span", { class: "bars" }, ...group.responses.map((response) =>
    element("i", { class: response.failure ? "failed" : "", style: `height:${barHeight(response.reward)}%` })));
  return element("button", { class: "row", role: "option", "data-place": place, onclick: () => goTo(place) },
    several ? element("span", { class: "swatch", style: `background:${colour(group.run)}` }) : null,
    element("span", { class: "where" }, `step ${group.step}`), bars,
    element("span", { class: "mean" }, number(group.mean, 2)),
    element("span", { class: "state " + (group.dropped === null ? "kept" : "dropped") }, stateOf(group)),
    element("bdi", { class: "id" }, group.id));
}

function barHeight(reward) {
  return Math.round(Math.min(1, Math.max(0.06, reward)) * 100);
}

// ---- moving about

function addressOf(group) {
  return "#" + encodeURIComponent(`group=${DATA.runs[group.run].name}/${group.step}/${group.number}`);
}

function goTo(place) {
  const address = addressOf(DATA.groups[place]);
  if (location.hash === address) showGroup(place);
  else location.hash = address;
}

function showGroupOfAddress(wanted) {
  const place = DATA.groups.findIndex((group) =>
    `${DATA.runs[group.run].name}/${group.step}/${group.number}` === wanted);
  if (place >= 0) showGroup(place);
  else document.getElementById("group").replaceChildren(element("p", {}, "This page does not show that group."));
}

function showFirstGroup() {
  if (current < 0 && matching.length) showGroup(matching[0]);
}

function move(by) {
  if (!matching.length) return;
  const at = matching.indexOf(current);
  const next = at < 0 ? 0 : Math.min(matching.length - 1, Math.max(0, at + by));
  goTo(matching[next]);
}

function onKey(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.getElementById(idOf("rollouts")).hidden) return;
  if (event.key === "j") move(1);
  if (event.key === "k") move(-1);
}

function markCurrent() {
  for (const row of document.querySelectorAll("#groups .row")) {
    const is = Number(row.dataset.place) === current;
    row.setAttribute("aria-selected", is);
    if (is) row.parentElement.scrollTop = row.offsetTop - row.parentElement.offsetTop - 80;
  }
}

// ---- one group

function showGroup(place) {
  current = place;
  const group = DATA.groups[place];
  const target = group.target;
  const facts = `mean reward ${number(group.mean)}, spread ${number(group.spread)}, shown as ${group.why.join(", ")}`;
  document.getElementById("group").replaceChildren(
    element("h2", {}, element("bdi", {}, group.id), ` at step ${group.step} `,
      element("span", { class: "state " + (group.dropped === null ? "kept" : "dropped") }, stateOf(group))),
    element("p", { class: "dim" }, `${DATA.runs[group.run].name}; ${group.task}; ${facts} `, copyButton(group)),
    ...[["Problem", group.problem], ["Steps so far", group.context], ["Title that is given", group.hint],
      ["The expert's step", target]].filter(([, text]) => text)
      .map(([title, text]) => fold(title, text, title === "The expert's step" || text.length < LONG)),
    ...group.responses.map((response, i) => responseCard(response, target, i)));
  markCurrent();
}

function copyButton(group) {
  const button = element("button", { onclick: () => {
    const link = location.href.split("#")[0] + addressOf(group);
    navigator.clipboard.writeText(link).then(() => { button.textContent = "copied"; },
      () => { window.prompt("The link of this group", link); });
  } }, "copy link");
  return button;
}

function fold(title, text, open) {
  return element("details", { open, class: "fold" }, element("summary", {}, title), element("pre", {}, text));
}

function responseCard(response, target, i) {
  const facts = [`reward ${number(response.reward, 4)}${response.is_ratio ? formula(response, target) : ""}`];
  if (response.advantage !== null) facts.push(`advantage ${number(response.advantage, 2)}`);
  const sides = [side("action", response.action, response.blocks, 0)];
  if (response.blocks) sides.push(side("target", target, response.blocks, 1));
  return element("article", { class: "response" },
    element("h3", {}, `Response ${i + 1} `, element("span", { class: "dim" }, facts.join(", ") + " "),
      response.failure ? element("span", { class: "state dropped" }, response.failure) : null),
    fold(`Monologue (words: ${words(response.monologue)})`, response.monologue, false),
    element("div", { class: "sides" }, ...sides));
}

function words(text) {
  return text.split(/\s+/).filter((word) => word).length;
}

function formula(response, target) {
  const matched = response.blocks.reduce((sum, block) => sum + block[2], 0);
  const total = [...response.action].length + [...target].length;
  return ` = 2 · ${matched} / ${total}`;
}

// A text with its matching blocks, the same colours on both sides. Positions count code points.
function side(name, text, blocks, which) {
  const characters = [...text];
  const pre = element("pre", { class: name, "data-length": characters.length });
  let end = 0;
  (blocks || []).forEach((block, i) => {
    const start = block[which], length = block[2];
    pre.append(characters.slice(end, start).join(""));
    pre.append(element("mark", { class: "b" + (i % 6), "data-block": i, "data-length": length,
      title: `${length} characters`, onmouseenter: lightUp, onmouseleave: lightUp },
    characters.slice(start, start + length).join("")));
    end = start + length;
  });
  pre.append(characters.slice(end).join(""));
  return element("div", {}, element("p", { class: "dim" }, name), pre);
}

// Shows which block on the other side is the one under the pointer.
function lightUp(event) {
  const card = event.target.closest("article");
  for (const mark of card.querySelectorAll(`mark[data-block="${event.target.dataset.block}"]`)) {
    mark.classList.toggle("lit", event.type === "mouseenter");
  }
}

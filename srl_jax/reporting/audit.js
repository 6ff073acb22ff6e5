"use strict";
// The audit of the reward, the evaluations and the settings.

function auditSection() {
  const runs = DATA.audits.map((audit, place) => [audit, place]).filter(([audit]) => audit);
  if (!runs.length) return section("audit", "Audit", element("p", {}, "No groups were read."));
  const failures = DATA.curves.charts.find((spec) => spec.title === "Format failures by reason");
  const formed = runs.filter(([audit]) => audit.rewards.shares.length);
  const boxes = formed.length ? [
    chart("Rewards of well-formed responses", "Share of responses.", () => bars(formed, (audit) => audit.rewards)),
  ] : [];
  boxes.push(
    chart("Spreads of groups", "Standard deviation of a group's rewards. Dashed: epsilon.", () => spreads(runs)),
    chart("Groups that other values of epsilon would keep", "", () => keptByEpsilon(runs)),
    chart("Responses equal to another of their group", "Actions solid, monologues dotted.", () => repeats(runs)),
  );
  const means = "Mean of well-formed responses.";
  if (runs.some(([audit]) => audit.by_step.length)) {
    boxes.push(chart("Reward by number of the expert's step", means,
      () => byValue(runs, (audit) => audit.by_step, (part) => part.step, "step")));
  }
  if (runs.some(([audit]) => audit.by_length.length)) {
    boxes.push(chart("Reward by length of the target", means,
      () => byValue(runs, (audit) => audit.by_length, (part) => (part.low + part.high) / 2, "characters")));
  }
  if (failures) DATA.runs.forEach((_, place) => boxes.push(stackedChart(failures, place)));
  return section("audit", "Audit", element("p", { class: "dim" },
    "From the groups that were read, kept or not. The sentences at the top of the page are from here too."),
  auditTable(runs), element("div", { class: "charts" }, ...boxes), ...runs.map(extremes));
}

function auditTable(runs) {
  const rows = runs.map(([audit, place]) => [
    DATA.runs[place].name, String(audit.groups), String(audit.responses), percent(audit.malformed),
    audit.header ? `${number(audit.header.mean)} (${audit.header.targets} targets)` : "-",
    percent(audit.loops.share), Object.entries(audit.dropped).map(([reason, count]) => `${reason} ${count}`).join(", "),
  ]);
  return table(["run", "groups", "responses", "malformed", "reward of number and title alone",
    "monologues that repeat themselves", "dropped"], rows);
}

// The bars of a histogram; of several runs the outlines, which do not hide each other.
function bars(runs, histogramOf) {
  const traces = runs.map(([audit, place]) => {
    const { edges, shares } = histogramOf(audit);
    if (runs.length > 1) {
      return { x: edges, y: [...shares, 0], mode: "lines", name: plain(DATA.runs[place].name),
        line: { shape: "hv", color: colour(place), width: 1.5 } };
    }
    return { x: shares.map((_, i) => (edges[i] + edges[i + 1]) / 2), y: shares, type: "bar",
      width: shares.map((_, i) => edges[i + 1] - edges[i]), name: plain(DATA.runs[place].name),
      marker: { color: colour(place) } };
  });
  return [traces, { barmode: "overlay", bargap: 0, yaxis: { tickformat: ".0%" }, showlegend: false }];
}

function epsilonLines(runs) {
  const values = new Set(runs.map(([audit]) => audit.epsilon).filter((value) => value !== null));
  return [...values].map((x) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x,
    line: { dash: "dash", width: 1.5, color: "#d33" } }));
}

function spreads(runs) {
  const [traces, layout] = bars(runs, (audit) => audit.spreads);
  return [traces, { ...layout, shapes: epsilonLines(runs) }];
}

function keptByEpsilon(runs) {
  const traces = runs.map(([audit, place]) => ({ x: audit.kept_by_epsilon.map((pair) => pair[0]),
    y: audit.kept_by_epsilon.map((pair) => pair[1]), name: plain(DATA.runs[place].name), mode: "lines+markers",
    line: { color: colour(place) } }));
  return [traces, { shapes: epsilonLines(runs), showlegend: false,
    xaxis: { title: { text: "epsilon", standoff: 4 } }, yaxis: { tickformat: ".0%", rangemode: "tozero" } }];
}

function byValue(runs, partsOf, x, title) {
  const traces = runs.map(([audit, place]) => {
    const parts = partsOf(audit);
    return { x: parts.map(x), y: parts.map((part) => part.mean), name: plain(DATA.runs[place].name),
      text: parts.map((part) => `${part.count} responses`), mode: "lines+markers", line: { color: colour(place) } };
  });
  return [traces, { showlegend: false, xaxis: { title: { text: title, standoff: 4 } } }];
}

function repeats(runs) {
  const traces = runs.flatMap(([audit, place]) => ["actions", "monologues"].map((name, i) => ({
    x: audit.repeats.map((period) => period.step), y: audit.repeats.map((period) => period[name]),
    mode: audit.repeats.length < 20 ? "lines+markers" : "lines",
    name: plain(runs.length > 1 ? `${DATA.runs[place].name}: ${name}` : name),
    line: { color: colour(place), dash: DASHES[i] } })));
  return [traces, { showlegend: false, xaxis: { title: { text: "step", standoff: 4 } },
    yaxis: { tickformat: ".0%", rangemode: "tozero" } }];
}

// The most and least rewarded actions for the targets that were met most often.
function extremes([audit, place]) {
  const actions = (found) => element("ul", { class: "plain" }, ...found.map(([reward, action]) =>
    element("li", {}, element("b", {}, number(reward, 3)), element("pre", {}, action))));
  const entries = audit.extremes.map((entry) => element("details", { class: "fold" },
    element("summary", {}, element("bdi", {}, entry.id), ` (${entry.count} responses)`),
    element("div", { class: "three" },
      element("div", {}, element("p", { class: "dim" }, "target"), element("pre", {}, entry.target)),
      element("div", {}, element("p", { class: "dim" }, "most rewarded"), actions(entry.most)),
      element("div", {}, element("p", { class: "dim" }, "least rewarded"), actions(entry.least)))));
  if (entries.length) entries[0].open = true;
  return element("div", {}, element("h2", {}, `Actions for the same target: ${DATA.runs[place].name}`), ...entries);
}

// ---- evaluations

function evaluationSection() {
  const found = DATA.evaluation;
  const none = found.evaluations.length ? null
    : element("p", {}, "No evaluation (srl_jax.evaluate, evaluate_swe) of these runs was found beside them.");
  const faults = found.faults.length
    ? element("ul", { class: "fault" }, ...found.faults.map((fault) => element("li", {}, fault))) : null;
  return section("evaluation", "Evaluation", none, faults, found.evaluations.length ? evaluationTable(found) : null,
    ...found.changes.map(changes), ...found.reasoning.map(reasoning));
}

function evaluationTable(found) {
  const names = [...new Set(found.evaluations.flatMap((evaluation) =>
    evaluation.rows.flatMap((row) => row.figures.map((figure) => figure.name))))];
  const rows = found.evaluations.flatMap((evaluation) => evaluation.rows.map((row) => [
    evaluation.name, settingsOf(evaluation), row.benchmark, number(row.problems),
    ...names.map((name) => figure(row.figures.find((candidate) => candidate.name === name))), percent(row.unfinished)]));
  return element("div", {}, element("p", { class: "dim" }, "In percent, ± the standard error over problems."),
    table(["evaluation", "settings", "benchmark", "problems", ...names.map((name) => name.replaceAll("_", " ")),
      "unfinished"], rows));
}

function settingsOf(evaluation) {
  const { model, step, mode, style } = evaluation.settings;
  const at = step && step !== "None" ? ` step ${step}` : "";
  return [model + at, mode, style].filter((value) => value).join(", ");
}

function figure(found) {
  if (!found) return "-";
  const error = found.se === null || found.se === undefined ? "" : ` ± ${(100 * found.se).toFixed(1)}`;
  return (100 * found.value).toFixed(1) + error;
}

function changes(change) {
  const title = `${change.benchmark}, ${change.after} against ${change.before}: ${change.right} problems turned right,` +
    ` ${change.wrong} turned wrong, of ${change.common} (greedy)`;
  const rows = change.problems.map((problem) => [problem.turned, element("bdi", {}, problem.id),
    element("details", {}, element("summary", {}, element("bdi", {}, problem.problem.slice(0, 80))),
      element("pre", {}, problem.problem), element("pre", {}, problem.solution)),
    problem.gold, problem.before, problem.after]);
  return element("details", { class: "fold" }, element("summary", {}, title),
    table(["turned", "problem", "text and solution", "gold", "answer before", "answer after"], rows));
}

// Figure 4 of the paper: words and think blocks of two models (srl_jax.evals.reasoning).
function reasoning(found) {
  const boxes = found.pictures.histograms.map((picture) => chart(picture.title, "Dashed: median.", () => {
    const traces = Object.entries(picture.shares).map(([label, shares], i) => ({ x: picture.edges.slice(0, -1),
      y: shares, type: "bar", offset: 0, name: plain(label), marker: { color: colour(i) }, opacity: 0.5,
      width: picture.edges[1] - picture.edges[0] }));
    const shapes = Object.values(picture.medians).map((x, i) => ({ type: "line", yref: "paper", y0: 0, y1: 1,
      x0: x, x1: x, line: { dash: "dash", width: 1.5, color: colour(i) } }));
    return [traces, { barmode: "overlay", shapes, yaxis: { tickformat: ".0%" }, xaxis: { title: { text: "words" } } }];
  }));
  boxes.push(chart("Responses with think blocks", "", () => [
    Object.entries(found.pictures.kinds).map(([label, shares], i) => ({ x: Object.keys(shares), y: Object.values(shares),
      type: "bar", name: plain(label), marker: { color: colour(i) } })), { yaxis: { tickformat: ".0%" } }]));
  return element("div", {}, element("h2", {}, `How the models reason: ${found.name}`),
    element("div", { class: "charts" }, ...boxes));
}

// ---- settings

function settingsSection() {
  const { rows, of_defaults: ofDefaults } = DATA.settings;
  const names = ofDefaults ? ["default", DATA.runs[0].name] : DATA.runs.map((run) => run.name);
  const title = ofDefaults ? "Settings that are not the package's defaults." : "Settings in which the runs differ.";
  return section("settings", "Settings", element("p", { class: "dim" },
    title + " Of folders the last part is shown, addresses are left out."),
  rows.length ? table(["key", ...names], rows) : element("p", {}, "There is no difference."));
}

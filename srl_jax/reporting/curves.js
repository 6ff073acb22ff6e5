"use strict";
// The curves of metrics over steps, tokens or time.

const view = { axis: "step", smooth: true };
const AXES = { step: "step", tokens: "sampled tokens", seconds: "seconds of training" };

function curvesSection() {
  const boxes = [];
  for (const spec of DATA.curves.charts) {
    if (!spec.stacked) boxes.push(curveChart(spec));
    else DATA.runs.forEach((_, place) => boxes.push(stackedChart(spec, place)));
  }
  const smooth = element("input", { type: "checkbox", id: "smooth", checked: true,
    onchange: (event) => { view.smooth = event.target.checked; redraw(); } });
  const controls = element("p", { class: "controls" },
    chooser("Over", Object.entries(AXES), (axis) => { view.axis = axis; redraw(); }),
    element("label", {}, smooth, " smoothed (moving average; the values are behind it)"));
  const empty = boxes.length ? null : element("p", {}, "There are no metrics yet.");
  return section("curves", "Curves", controls, empty, element("div", { class: "charts" }, ...boxes));
}

// The points of a run's metric, without the steps that do not have it.
function points(place, name) {
  const run = DATA.curves.runs[place];
  const values = run.series[name] || [];
  const axis = run[view.axis];
  const found = { x: [], y: [] };
  values.forEach((value, i) => {
    if (value !== null) { found.x.push(axis[i]); found.y.push(value); }
  });
  return found;
}

// The mean of the values around each one; at the ends of fewer.
function movingAverage(values, width) {
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const low = Math.max(0, i - width), high = Math.min(values.length, i + width + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

function halfWidth(count) {
  return view.smooth && count >= 30 ? Math.max(1, Math.round(count / 60)) : 0;
}

function curveChart(spec) {
  const several = DATA.runs.length > 1;
  const names = Object.keys(spec.series);
  // The colours of several runs are those at the top of the page, so a chart needs no legend.
  const dashes = several && names.length > 1
    ? names.map((name, i) => `${DASHES[i % DASHES.length]}: ${spec.series[name]}`).join(", ") + ". " : "";
  return chart(spec.title, dashes + spec.note, () => {
    const traces = [];
    DATA.runs.forEach((run, place) => names.forEach((name, i) => {
      const label = several ? `${run.name}${names.length > 1 ? ": " + spec.series[name] : ""}` : spec.series[name];
      traces.push(...curve(points(place, name), plain(label), {
        color: colour(several ? place : i), dash: several ? DASHES[i % DASHES.length] : "solid" }));
    }));
    if (spec.best) traces.push(...bestPoints());
    return [traces, curveLayout(spec)];
  });
}

// The line of a metric; behind a smoothed one the values themselves.
function curve(found, name, line) {
  if (!found.y.length) return [];
  const width = halfWidth(found.y.length);
  const few = found.y.length < 30;
  const main = { ...found, name, mode: few ? "lines+markers" : "lines", line: { ...line, width: 2 } };
  if (!width) return [main];
  const behind = { ...found, name, mode: "lines", line: { color: line.color, width: 1 }, opacity: 0.25,
    showlegend: false, hoverinfo: "skip" };
  return [behind, { ...main, y: movingAverage(found.y, width) }];
}

function bestPoints() {
  return DATA.runs.flatMap((run, place) => {
    if (!run.best) return [];
    const at = DATA.curves.runs[place].step.indexOf(run.best.step);
    return [{ x: [DATA.curves.runs[place][view.axis][at]], y: [run.best.value], mode: "markers",
      name: plain(DATA.runs.length > 1 ? `${run.name}: best` : `best, step ${run.best.step}`),
      marker: { symbol: "star", size: 13, color: colour(place), line: { width: 1, color: "#888" } },
      showlegend: true }];
  });
}

function curveLayout(spec) {
  const shapes = [...new Set(spec.line.filter((value) => value !== null))].map((y) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { dash: "dash", width: 1.5, color: "#d33" } }));
  return {
    shapes, showlegend: DATA.runs.length === 1,
    yaxis: { tickformat: spec.share ? ".0%" : "", type: spec.log ? "log" : "linear",
      rangemode: spec.share ? "tozero" : "normal" },
  };
}

function stackedChart(spec, place) {
  const several = DATA.runs.length > 1;
  return chart(several ? `${spec.title}: ${DATA.runs[place].name}` : spec.title, spec.note, () => {
    const run = DATA.curves.runs[place];
    const traces = [];
    Object.keys(spec.series).forEach((name, i) => {
      if (!(name in run.series)) return;
      // A reason that did not occur in a step has no value there: it is 0.
      const sampled = run.step.map((step, at) => [step > 0, at]).filter(([is]) => is).map(([, at]) => at);
      const values = sampled.map((at) => run.series[name][at] ?? 0);
      const width = halfWidth(values.length);
      // An area needs some steps to be seen.
      const shape = values.length < 20 ? { type: "bar", marker: { color: colour(i) } }
        : { stackgroup: "all", line: { width: 0.5, color: colour(i) } };
      traces.push({ x: sampled.map((at) => run[view.axis][at]), y: width ? movingAverage(values, width) : values,
        name: plain(spec.series[name]), ...shape });
    });
    return [traces, { ...curveLayout({ ...spec, line: [] }), showlegend: true, hovermode: "x", barmode: "stack" }];
  });
}

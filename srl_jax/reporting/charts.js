"use strict";
// Charts with plotly: colours for light and dark, drawn when they come into view.

const COLOURS = ["#4269d0", "#e8833a", "#3ca951", "#d6457f", "#8d63d9", "#2aa5b8", "#a4763a", "#7d8a99"];
const DASHES = ["solid", "dot", "dash", "dashdot"];
const DARK = matchMedia("(prefers-color-scheme: dark)");
const charts = new Map(); // the element of a chart -> function that returns its [traces, layout]

function colour(place) {
  return COLOURS[place % COLOURS.length];
}

// Plotly reads some markup in its texts: names of runs and reasons are data.
function plain(text) {
  const short = text.length > 60 ? text.slice(0, 57) + "..." : text;
  return short.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// A box with a title, a note and a chart; `make` returns [traces, layout] and is called again when
// the settings change.
function chart(title, note, make) {
  const plot = element("div", { class: "plot" });
  charts.set(plot, make);
  watcher.observe(plot);
  return element("figure", { class: "chart" },
    element("figcaption", {}, element("b", {}, title), note ? element("span", { class: "dim" }, " " + note) : null),
    plot);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) draw(entry.target);
  }
}, { rootMargin: "300px" });

function draw(plot) {
  if (plot.dataset.drawn || typeof Plotly === "undefined") return;
  plot.dataset.drawn = "yes";
  const [traces, layout] = charts.get(plot)();
  Plotly.react(plot, traces, styled(layout), { displayModeBar: false, responsive: true });
}

function styled(layout) {
  const style = getComputedStyle(document.body);
  const text = style.getPropertyValue("--text").trim();
  const grid = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid };
  return {
    height: 250, margin: { l: 48, r: 12, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 11, family: "system-ui, sans-serif" },
    legend: { orientation: "h", y: -0.14, yanchor: "top" }, showlegend: true, hovermode: "closest",
    ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, automargin: "width", ...layout.yaxis },
  };
}

// Draws again what is in view, and the rest when it comes into view.
function redraw() {
  for (const plot of charts.keys()) delete plot.dataset.drawn;
  drawVisible();
}

function drawVisible() {
  for (const plot of charts.keys()) {
    watcher.unobserve(plot);
    watcher.observe(plot);
  }
}

DARK.addEventListener("change", redraw);

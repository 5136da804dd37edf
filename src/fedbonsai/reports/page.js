"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

function dressed(layout, light) {
  const ink = light ? "#1d2329" : "#e6e9ec";
  const grid = light ? "#d9dee3" : "#333b43";
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13 },
    margin: { l: 56, r: 12, t: 12, b: 48 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hovermode: "closest",
    hoverlabel: { namelength: -1 },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

function draw(light) {
  for (const [name, plot] of Object.entries(PLOTS)) {
    Plotly.react(name, plot.data, dressed(plot.layout, light), { displayModeBar: false });
  }
}

draw(!dark.matches);
const watch = new ResizeObserver((seen) => seen.forEach((each) => Plotly.Plots.resize(each.target)));
for (const name of Object.keys(PLOTS)) watch.observe(document.getElementById(name));
dark.addEventListener("change", () => draw(!dark.matches));
narrow.addEventListener("change", () => draw(!dark.matches));
// paper has nothing to unfold: what is closed is opened for it, and closed again
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...folded()];
  for (const each of opened) each.open = true;
  draw(true);
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
  draw(!dark.matches);
});

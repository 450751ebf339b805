// Draws the charts, and lets the page's own legend and choices change them.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  // These alone: by default there is one that sends the chart to a server.
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

// Where a finger points there is no room for buttons, nor beside a small map.
const pointed = matchMedia("(hover: hover) and (min-width: 40rem)").matches;

for (const [id, { figure }] of Object.entries(CHARTS)) {
  const small = figure.data[0].type === "heatmap";
  const displayModeBar = pointed && !small;
  Plotly.newPlot(id, figure.data, figure.layout, { ...CONFIG, displayModeBar });
}

function show(section, group, shown) {
  for (const chart of section.querySelectorAll(".chart")) {
    const traces = [...chart.data.keys()].filter(
      (i) => chart.data[i].legendgroup === group,
    );
    if (traces.length) Plotly.restyle(chart, { visible: shown }, traces);
  }
  for (const element of section.querySelectorAll(`[data-group="${group}"]`)) {
    element.hidden = !shown;
  }
}

document.addEventListener("change", ({ target }) => {
  if (target.matches("select[data-chart]")) {
    const { chart, control } = target.dataset;
    Plotly.update(chart, ...CHARTS[chart].controls[control][target.value]);
  }
  if (target.matches("input[data-legend]")) {
    show(target.closest("section"), target.dataset.legend, target.checked);
  }
});

document.addEventListener("click", ({ target }) => {
  if (!target.matches("button[data-all]")) return;
  const section = target.closest("section");
  for (const box of section.querySelectorAll("input[data-legend]")) {
    box.checked = target.dataset.all === "true";
    show(section, box.dataset.legend, box.checked);
  }
});

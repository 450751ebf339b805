// Draws the charts, and lets the page's own legend and choices change them.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  // These alone: by default there is one that sends the chart to a server.
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

// Where a finger points there is no room for buttons, nor beside a small map.
const wide = matchMedia("(min-width: 40rem)").matches;
const pointed = wide && matchMedia("(hover: hover)").matches;

for (const [id, { figure }] of Object.entries(CHARTS)) {
  const small = figure.data[0].type === "heatmap";
  const displayModeBar = pointed && !small;
  if (!wide && figure.layout.meta) figure.layout.yaxis.ticktext = figure.layout.meta.narrow;
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

function apply(target) {
  if (target.matches("select[data-chart]")) {
    const { chart, control } = target.dataset;
    Plotly.update(chart, ...CHARTS[chart].controls[control][target.value]);
  }
  if (target.matches("input[data-legend]")) {
    show(target.closest("section"), target.dataset.legend, target.checked);
  }
}

// While a sweep runs the page loads itself again: what was chosen stays as it was. By
// names, since numbers move when a run is added.
const kept = document.querySelector("meta[http-equiv=refresh]") ? "gm-report" : null;
const CHOICES = "select[data-chart], input[data-legend], details";
const chosen = JSON.parse((kept && sessionStorage.getItem(kept)) || "{}");

function nameOf(element) {
  const section = element.closest("section")?.querySelector("h2")?.textContent;
  const figure = element.closest("figure")?.querySelector("figcaption")?.textContent;
  const own = element.matches("details")
    ? element.querySelector("summary").textContent
    : element.closest("label").firstChild.textContent.trim() ||
      element.closest("label").textContent;
  return JSON.stringify([section, figure, own.trim()]);
}

function stateOf(element) {
  if (element.matches("details")) return element.open;
  return element.matches("select") ? element.value : element.checked;
}

function keep(element) {
  if (!kept) return;
  chosen[nameOf(element)] = stateOf(element);
  sessionStorage.setItem(kept, JSON.stringify(chosen));
}

for (const element of document.querySelectorAll(CHOICES)) {
  const state = chosen[nameOf(element)];
  if (state === undefined || state === stateOf(element)) continue;
  if (element.matches("details")) element.open = state;
  else if (element.matches("select")) element.value = state;
  else element.checked = state;
  apply(element);
}

document.addEventListener("change", ({ target }) => {
  apply(target);
  if (target.matches(CHOICES)) keep(target);
});

document.addEventListener("toggle", ({ target }) => keep(target), true);

document.addEventListener("click", ({ target }) => {
  if (!target.matches("button[data-all]")) return;
  const section = target.closest("section");
  for (const box of section.querySelectorAll("input[data-legend]")) {
    box.checked = target.dataset.all === "true";
    show(section, box.dataset.legend, box.checked);
    keep(box);
  }
});

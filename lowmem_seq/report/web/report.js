"use strict";
// Draws the page's plots, in light or dark, and lets the keyboard zoom and move them.

const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
const isNarrow = matchMedia("(max-width: 760px)");
const PRINTED_WIDTH = 660;
const LEGEND_LINE_HEIGHT = 20;

/** The theme that the reader chose, or the system's. A browser may refuse to remember. */
function chosenTheme() {
  try {
    return localStorage.getItem("lowmem-seq-theme");
  } catch {
    return null;
  }
}

function rememberTheme(theme) {
  try {
    localStorage.setItem("lowmem-seq-theme", theme);
  } catch {
    // it is forgotten when the page is closed
  }
}

function showTheme(theme) {
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", theme === "dark" ? "Show in light colours" : "Show in dark colours");
}

/** A copy of a value in which each "var(--name)" is replaced by the colour that it is now. */
function coloured(value, style) {
  if (typeof value === "string") {
    const name = /^var\((--[a-z-]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) {
    return value.map((one) => (typeof one === "number" ? one : coloured(one, style)));
  }
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
  }
  return value;
}

function axis(own) {
  const lines = { gridcolor: "var(--grid)", linecolor: "var(--rule)", zeroline: false, automargin: true };
  return { ...lines, ticks: "", ...own, title: { font: { size: 12 }, standoff: 8, ...(own || {}).title } };
}

/** Whether a plot's legend stands below it: above, on a narrow screen, it would cover the buttons. */
function hasLegendBelow(figure) {
  return isNarrow.matches && figure.data.length > 1 && !figure.layout.legend;
}

function heightOf(figure) {
  return figure.height + (hasLegendBelow(figure) ? LEGEND_LINE_HEIGHT * figure.data.length : 0);
}

function legendOf(figure) {
  const legend = { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", traceorder: "normal", bgcolor: "rgba(0,0,0,0)" };
  return hasLegendBelow(figure) ? { ...legend, yref: "container", y: 0 } : legend;
}

function layoutOf(figure) {
  const label = { bgcolor: "var(--card)", bordercolor: "var(--rule)", font: { color: "var(--ink)" }, align: "left", namelength: 40 };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: "var(--ink)", size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 48, r: 14, t: figure.data.length > 1 && !figure.layout.legend && !hasLegendBelow(figure) ? 56 : 30, b: 40 },
    height: heightOf(figure),
    hovermode: "x unified",
    dragmode: "zoom",
    hoverlabel: label,
    showlegend: figure.data.length > 1,
    legend: legendOf(figure),
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--faint)", activecolor: "var(--ink)" },
    ...figure.layout,
    xaxis: axis(figure.layout.xaxis),
    yaxis: axis(figure.layout.yaxis),
  };
}

// Only these buttons: among Plotly's own is one that would send a plot to a server.
const CONFIG = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  toImageButtonOptions: { scale: 2 },
};

const timesSetBack = {};

/** Draw a plot in the present colours. What is zoomed stays so, unless the plot was set back since. */
function draw(figure) {
  const style = getComputedStyle(root);
  document.getElementById(figure.name).style.height = `${heightOf(figure)}px`;
  const layout = { ...layoutOf(figure), uirevision: timesSetBack[figure.name] || 0 };
  return Plotly.react(figure.name, coloured(figure.data, style), coloured(layout, style), CONFIG);
}

function drawAll() {
  return Promise.all(figures.map(draw));
}

function setBack(figure) {
  timesSetBack[figure.name] = (timesSetBack[figure.name] || 0) + 1;
  return draw(figure);
}

/** Zoom by a factor around the middle, or move by a share of what is seen; an axis of dates counts as numbers, too. */
function turn(figure, factor, share) {
  const axis = document.getElementById(figure.name)._fullLayout.xaxis;
  const [begin, end] = axis.range.map((one) => axis.r2l(one));
  const middle = (begin + end) / 2 + share * (end - begin);
  const half = ((end - begin) / 2) * factor;
  const shown = [middle - half, middle + half].map((one) => axis.l2r(one));
  return Plotly.relayout(figure.name, { "xaxis.range": shown });
}

const KEYS = {
  "+": (figure) => turn(figure, 0.5, 0),
  "=": (figure) => turn(figure, 0.5, 0),
  "-": (figure) => turn(figure, 2, 0),
  ArrowLeft: (figure) => turn(figure, 1, -0.25),
  ArrowRight: (figure) => turn(figure, 1, 0.25),
  0: setBack,
};

showTheme(chosenTheme() || (wantsDark.matches ? "dark" : "light"));
themeButton.addEventListener("click", () => {
  const theme = root.dataset.theme === "dark" ? "light" : "dark";
  rememberTheme(theme);
  showTheme(theme);
  drawAll();
});
wantsDark.addEventListener("change", (event) => {
  if (!chosenTheme()) {
    showTheme(event.matches ? "dark" : "light");
    drawAll();
  }
});

isNarrow.addEventListener("change", drawAll);

for (const figure of figures) {
  const place = document.getElementById(figure.name);
  place.addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    if (act && event.target === place && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act(figure);
    }
  });
}

// Paper is light and of one width; afterwards the page is as it was.
let themeOnScreen = null;
addEventListener("beforeprint", () => {
  themeOnScreen = root.dataset.theme;
  showTheme("light");
  drawAll();
  figures.forEach((figure) => Plotly.relayout(figure.name, { width: PRINTED_WIDTH }));
  document.querySelectorAll("details").forEach((one) => one.setAttribute("open", ""));
});
addEventListener("afterprint", () => {
  showTheme(themeOnScreen || "light");
  drawAll().then(() => figures.forEach((figure) => Plotly.Plots.resize(figure.name)));
});

drawAll().then(() => root.setAttribute("data-drawn", String(figures.length)));

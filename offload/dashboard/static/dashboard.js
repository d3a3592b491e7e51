// Refreshes pages in place, and draws their charts. Pages work without it.

const EVERY = 5000; // milliseconds between updates; longer while the dashboard is unavailable
const LONGEST = 60000;

// ------------------------------------------------------------------------------- updates

// Make `old` equal to `fresh` by changing only what differs, to keep focus, scroll positions,
// opened details, and typed text.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const open = old.nodeName === "DETAILS" && old.open;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "class" && old.matches(".plot"))) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !(name === "class" && old.matches(".plot"))) old.setAttribute(name, value);
  }
  if (open) old.open = true;
  if (!old.matches(".plot")) children(old, fresh);
}

function children(old, fresh) {
  const keyed = new Map();
  for (const child of old.children) {
    if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  }
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.dataset?.key === undefined ? undefined : keyed.get(wanted.dataset.key);
    if (known) keyed.delete(known.dataset.key); // a repeated key matches only once
    if (known && known !== at) old.insertBefore(known, at);
    const present = known ?? at;
    const mayChange = present && (known || present.dataset?.key === undefined) && wanted.dataset?.key === present.dataset?.key;
    if (!mayChange) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (present === at) at = at.nextSibling;
    morph(present, wanted);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const stale = document.getElementById("stale");
const pause = document.getElementById("pause");
const still = document.getElementById("main").dataset.still !== undefined; // the response to a form, which can't be requested again
let paused = false;
let wait = EVERY;
let timer;

async function update() {
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    if (!fresh) throw new Error(`answered ${answer.status}`);
    if (!paused && !busy()) {
      document.title = page.title;
      const focused = document.activeElement;
      morph(document.getElementById("main"), document.adoptNode(fresh));
      if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true }); // it was moved
      morph(document.querySelector("footer"), document.adoptNode(page.querySelector("footer")));
      ready();
    }
    stale.hidden = true;
    wait = EVERY;
  } catch (error) {
    console.info("offload: not updated,", error.message);
    stale.hidden = false;
    wait = Math.min(wait * 2, LONGEST);
  }
  again();
}

// Don't refresh while text is selected or a form has focus.
function busy() {
  const inside = (node) => node && document.getElementById("main").contains(node);
  const marked = getSelection();
  return (!marked.isCollapsed && inside(marked.anchorNode)) ||
    (document.activeElement?.closest("form") && inside(document.activeElement) && document.activeElement.matches("input, select, textarea"));
}

function again() {
  clearTimeout(timer);
  if (!paused && !still && !document.hidden) timer = setTimeout(update, wait);
}

pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  if (paused) clearTimeout(timer);
  else if (!still) update();
});
document.addEventListener("visibilitychange", () => (document.hidden || paused || still ? clearTimeout(timer) : update()));

// -------------------------------------------------------------------------------- charts

const LINES = { light: ["#0b57c0", "#b45309", "#13653a", "#7c3aed", "#a5121c"], dark: ["#7db4ff", "#f5b56b", "#74d69b", "#c3a6ff", "#ff8f87"] };
const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

// Plotly interprets markup in labels (links, bold text): escape names of tasks.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const short = (text) => (text.length > 26 ? `…${text.slice(-25)}` : text);

function draw(place) {
  const chart = JSON.parse(place.dataset.chart);
  const bars = chart.kind === "bars";
  const x = bars ? chart.x.map(plain) : chart.x;
  const named = bars ? { type: "category", tickvals: x, ticktext: chart.x.map((text) => plain(short(text))) } : {};
  const style = getComputedStyle(document.body);
  const line = isDark() ? "#39404a" : "#d5dae0";
  const colours = LINES[isDark() ? "dark" : "light"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
  const unit = { bytes: { tickformat: ".3~s", ticksuffix: "B" }, seconds: { tickformat: ".3~s", ticksuffix: "s" } }[chart.unit] ?? { tickformat: ",.3~s" };
  const traces = chart.series.map(({ label, y }, number) => ({
    name: plain(label),
    x,
    y,
    type: bars ? "bar" : "scatter",
    mode: chart.x.length === 1 ? "markers" : "lines",
    line: { width: 2, dash: dashes[number % dashes.length] },
    marker: { color: colours[number % colours.length] },
  }));
  const layout = {
    autosize: true,
    margin: { l: 60, r: 10, t: 10, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style.color, family: style.fontFamily },
    colorway: colours,
    legend: { orientation: "h", y: -0.2 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: style.backgroundColor, font: { color: style.color } },
    xaxis: { gridcolor: line, linecolor: line, automargin: true, ...named },
    yaxis: { gridcolor: line, zerolinecolor: line, rangemode: "tozero", automargin: true, exponentformat: "SI", ...unit },
    barmode: "group",
    uirevision: "kept", // keeps the zoom
  };
  Plotly.react(place, traces, layout, { displaylogo: false, responsive: true, displayModeBar: false });
  place.drawn = place.dataset.chart + isDark();
}

function charts() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    if (place.drawn !== place.dataset.chart + isDark()) draw(place);
  }
}

// --------------------------------------------------------------------------------- theme

const button = document.getElementById("theme");

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.textContent = `Theme: ${name}`;
  charts();
}

button.addEventListener("click", () => {
  const names = ["system", "light", "dark"];
  const next = names[(names.indexOf(localStorage.getItem("offload-theme") ?? "system") + 1) % names.length];
  localStorage.setItem("offload-theme", next);
  theme(next);
});
dark.addEventListener("change", charts);

// --------------------------------------------------------------------------------- times

// Show times in the reader's time zone.
function times() {
  for (const place of document.querySelectorAll("time[datetime]")) {
    const text = new Date(place.dateTime).toLocaleString();
    if (place.textContent !== text) place.textContent = text;
  }
}

function ready() {
  times();
  charts();
}

theme(localStorage.getItem("offload-theme") ?? "system");
ready();
again();

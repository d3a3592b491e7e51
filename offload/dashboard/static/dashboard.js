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
  if (!old.matches(".plot, output")) children(old, fresh);
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
    at.plot?.destroy();
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

const dark = matchMedia("(prefers-color-scheme: dark)");
const contrast = matchMedia("(forced-colors: active)");
const HEIGHT = 240; // pixels
const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3], [14, 4]]; // as in dashboard.css

function look() {
  return `${document.documentElement.dataset.theme} ${dark.matches} ${contrast.matches}`;
}

function scaled(number, units, base) {
  let at = 0;
  while (Math.abs(number) >= base && at < units.length - 1) {
    number /= base;
    at += 1;
  }
  return `${Number(number.toPrecision(3))}${units[at]}`;
}

const FORMATS = {
  bytes: (number) => scaled(number, [" B", " kB", " MB", " GB", " TB"], 1000),
  "": (number) => scaled(number, ["", " k", " M", " G"], 1000),
};

// Label the ticks of a time axis in the reader's language: dates if they are days apart, else times.
function times24(_, seconds, __, ___, step) {
  return seconds.map((at) => {
    const moment = new Date(at * 1000);
    const isDate = step >= 86400 || (moment.getHours() === 0 && moment.getMinutes() === 0);
    return isDate
      ? moment.toLocaleDateString([], { month: "short", day: "numeric" })
      : moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  });
}

// uPlot draws on a canvas, which CSS can't reach: take its colors from elements that CSS has styled.
function draw(place) {
  const chart = JSON.parse(place.dataset.chart);
  const legend = [...place.closest("figure").querySelectorAll(".legend li")];
  const format = FORMATS[chart.unit] ?? FORMATS[""];
  const text = getComputedStyle(place).color;
  const grid = { stroke: getComputedStyle(place.closest("figure")).borderTopColor, width: 1 };
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: text, grid, ticks: grid, font };
  const options = {
    width: Math.max(place.clientWidth, 100),
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
    axes: [{ ...axis, values: times24 }, { ...axis, size: 70, values: (_, numbers) => numbers.map(format) }],
    series: [
      {},
      ...chart.y.map((numbers, at) => ({
        stroke: getComputedStyle(legend[at].querySelector("svg")).color,
        dash: DASHES[at % DASHES.length],
        width: 2,
        points: { show: false },
      })),
    ],
    hooks: {
      setCursor: [
        (plot) => {
          const at = plot.cursor.idx;
          legend.forEach((item, number) => {
            item.querySelector("output").textContent = at == null || plot.cursor.left < 0 ? "" : format(chart.y[number][at]);
          });
        },
      ],
    },
  };
  place.plot?.destroy();
  place.plot = new uPlot(options, [chart.x, ...chart.y], place);
  place.drawn = place.dataset.chart + look();
  sizes.observe(place);
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.plot && target.clientWidth > 0 && target.clientWidth !== target.plot.width) {
      target.plot.setSize({ width: target.clientWidth, height: HEIGHT });
    }
  }
});

function charts() {
  for (const place of document.querySelectorAll("[data-chart]")) {
    if (place.drawn !== place.dataset.chart + look()) draw(place);
  }
}

// --------------------------------------------------------------------------------- theme

const button = document.getElementById("theme");

function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  button.title = `Theme: ${name}`;
  button.setAttribute("aria-label", button.title);
  button.querySelector(".long").textContent = ` ${button.title}`;
  charts();
}

button.addEventListener("click", () => {
  const names = ["system", "light", "dark"];
  const next = names[(names.indexOf(localStorage.getItem("offload-theme") ?? "system") + 1) % names.length];
  localStorage.setItem("offload-theme", next);
  theme(next);
});
dark.addEventListener("change", charts);
contrast.addEventListener("change", charts);

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
const tabs = document.querySelector("header nav"); // scrolls on a phone
const tab = tabs.querySelector("[aria-current]");
if (tab) tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.clientWidth) / 2;
ready();
again();

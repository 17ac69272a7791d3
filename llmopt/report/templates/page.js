"use strict";
// Sorting, filtering, the theme and the charts. Without it the page is a plain table with its reasons.
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const one = (what, where = document) => where.querySelector(what);
  const root = document.documentElement;
  const MOST_DRAWN = 8;

  // --- light and dark: the system's until the reader chooses ---
  const theme = one("#theme"), system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => {
    theme.setAttribute("aria-pressed", String(dark()));
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark() ? "Switch to light colours" : "Switch to dark colours");
  };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; showTheme(); });
  system.addEventListener("change", showTheme);
  showTheme();

  // --- the table ---
  const table = one("#ranking"), rows = table ? all("tbody tr", table) : [];
  const keyOf = (row, column) => row.children[column].dataset.sort;
  const order = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  function sortBy(head, column) {
    const before = head.getAttribute("aria-sort");
    const first = head.dataset.better === "higher" ? "descending" : "ascending";
    const next = before === null ? first : before === "ascending" ? "descending" : "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    // What is not known stands last in either order.
    rows.sort((a, b) => {
      const [x, y] = [keyOf(a, column), keyOf(b, column)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * order(x, y);
    });
    one("tbody", table).append(...rows);
  }
  function filterRows() {
    const words = one("#filter").value.toLowerCase().split(/\s+/).filter(Boolean), engine = one("#engine").value;
    const front = one("#only-front").checked, valid = one("#only-valid").checked;
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (engine && row.dataset.engine !== engine)
        || (front && !row.dataset.front) || (valid && row.dataset.status !== "valid");
      shown += !row.hidden;
    }
    one("#count").textContent = `${shown} of ${rows.length} shown`;
  }
  if (table) {
    all("thead th", table).forEach((head, column) => one("button", head)?.addEventListener("click", () => sortBy(head, column)));
    one("#tools").hidden = false;
    ["#filter", "#engine", "#only-front", "#only-valid"].forEach((what) => one(what).addEventListener("input", filterRows));
    filterRows();
  }

  // --- the charts ---
  const { names, charts: drawn } = JSON.parse(one("#drawn").textContent), tip = one("#tip"), live = new Map();
  const ticked = () => new Set(rows.filter((row) => one(".draw", row)?.checked).map((row) => row.dataset.row));
  const axis = { labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 11.5, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8, labelPadding: 5,
    labelOverlap: "greedy", labelSeparation: 8 };
  const config = { background: null, font: "system-ui, sans-serif", view: { stroke: null }, axis, axisX: { tickCount: { expr: "ceil(width / 110)" } }, text: { fontSize: 12 },
    legend: { labelColor: "var(--ink)", titleColor: "var(--muted)", labelFontSize: 12, symbolStrokeWidth: 2 } };
  // What a name says stays text: nothing of it is read as HTML.
  const handler = (_, event, item, value) => {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    tip.textContent = String(value);
    const box = tip.getBoundingClientRect(), gap = 14;
    tip.style.left = `${Math.max(6, Math.min(event.clientX + gap, innerWidth - box.width - 6))}px`;
    tip.style.top = `${event.clientY + gap + box.height > innerHeight ? event.clientY - gap - box.height : event.clientY + gap}px`;
  };
  function specOf(plot) {
    const name = plot.dataset.chart, variants = Object.values(drawn[name]);
    const picked = Number(one(`select[data-chart="${name}"]`)?.value ?? 0), spec = structuredClone(variants[picked]);
    spec.data.values.forEach((value) => { if (value.row) value.label ??= names[value.row]; });
    if (plot.dataset.byRow) {
      const wanted = ticked();
      spec.data.values = spec.data.values.filter((value) => wanted.has(value.row));
    }
    if (spec.height.step) spec.height = spec.height.step * new Set(spec.data.values.map((value) => value.label)).size;
    return spec;
  }
  async function draw(plot) {
    const spec = specOf(plot), empty = one(".empty", plot.parentElement), about = one(".about", plot.parentElement);
    live.get(plot)?.finalize();
    live.delete(plot);
    plot.replaceChildren();
    plot.hidden = spec.data.values.length === 0;
    empty.hidden = !plot.hidden;
    about.textContent = spec.usermeta?.about ?? "";
    about.hidden = plot.hidden || !about.textContent;
    spec.description = plot.dataset.alt; // Vega makes it the label of what it draws
    if (plot.hidden) return;
    const width = plot.clientWidth, legend = { ...config.legend, labelLimit: width - 110, columns: Math.max(1, Math.floor(width / 170)) };
    live.set(plot, await vegaEmbed(plot, spec, { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: handler, logLevel: 1, config: { ...config, legend } }));
  }
  const plots = all(".plot");
  const drawAll = async (which) => { for (const plot of which) await draw(plot); };
  all("select[data-chart]").forEach((select) => select.addEventListener("input", () => draw(one(`.plot[data-chart="${select.dataset.chart}"]`))));
  function keepToMost() {
    const full = rows.filter((row) => one(".draw", row).checked).length >= MOST_DRAWN;
    rows.forEach((row) => { const box = one(".draw", row); box.disabled = full && !box.checked; });
  }
  all(".draw").forEach((box) => box.addEventListener("input", () => { keepToMost(); drawAll(plots.filter((plot) => plot.dataset.byRow)); }));
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // --- the reasons: a link opens its card, and paper shows all ---
  const cards = all("details.card");
  const openTarget = () => { const card = document.getElementById(location.hash.slice(1)); if (card?.matches("details")) card.open = true; };
  addEventListener("hashchange", openTarget);
  openTarget();
  let closed = [];
  addEventListener("beforeprint", () => { closed = cards.filter((card) => !card.open); cards.forEach((card) => { card.open = true; }); });
  addEventListener("afterprint", () => { closed.forEach((card) => { card.open = false; }); });

  root.dataset.ready = "";
  drawAll(plots).then(() => { root.dataset.ready = "yes"; });
})();

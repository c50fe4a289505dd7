"use strict";
// Draws the charts of a report from the JSON in the page. A text gets into the page as text only.
(() => {
  const { charts, sessions, groups } = JSON.parse(document.getElementById("data").textContent);
  const place = document.getElementById("charts");
  if (!place) return;
  const single = sessions.length == 1;
  const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3]];
  const FEW_POINTS = 30, HEIGHT = 260;
  const state = { axis: "iterations", smooth: 0, logX: false, hidden: new Set(), zoom: null };
  const shown = []; // the charts: what they are of, their elements, their plots

  const make = (name, text = "", attributes = {}) => {
    const node = document.createElement(name);
    node.textContent = text;
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---- numbers

  const between = (x, from, to) => { // from iterations to seconds, straight from line to line of the log
    let low = 0, high = from.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (from[middle] <= x) low = middle; else high = middle;
    }
    return to[low] + (x - from[low]) * (to[high] - to[low]) / (from[high] - from[low]);
  };
  const AXES = {
    iterations: { name: "iteration", can: () => true, at: (x) => x },
    seconds: {
      name: "time in training", can: (s) => s.seconds.length > 1,
      at: (x, s) => Math.max(between(x, s.iterations, s.seconds), 0),
    },
    epochs: { name: "epoch", can: (s) => s.epoch > 0, at: (x, s) => x / s.epoch },
  };

  // The moving mean of `compare --smooth`: corrected for its start at zero.
  const smoothed = (values, weight) => {
    let mean = 0, sum = 0;
    return values.map((value) => {
      if (value == null) return value;
      mean = weight * mean + (1 - weight) * value;
      sum = weight * sum + (1 - weight);
      return mean / sum;
    });
  };

  const format = (value) => {
    if (value == null) return "-";
    const size = Math.abs(value);
    if (value == 0 || Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
    return size < 1e-3 || size >= 1e6 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  };
  const clock = (seconds) => {
    const [s, m] = [Math.round(seconds) % 60, Math.floor(Math.round(seconds) / 60)];
    return m < 60 ? `${m}:${String(s).padStart(2, "0")}` : `${Math.floor(m / 60)}:${String(m % 60).padStart(2, "0")}:${String(s).padStart(2, "0")}`;
  };
  const shownX = (x) => state.axis == "seconds" ? clock(x) : state.axis == "epochs" ? x.toFixed(2) : Math.round(x).toLocaleString("en");

  // ---- curves

  const partsOf = (chart) => [...new Set(chart.curves.map((curve) => curve.part))];
  const look = (chart, curve) => { // one session: a colour for each part; several: for each session
    const part = partsOf(chart).indexOf(curve.part);
    const colour = single ? { train: 0, val: 1, test: 2 }[curve.part] ?? part : sessions[curve.session].group;
    const ofMean = curve.part == "train" && partsOf(chart).length > 1;
    return {
      colour: `--c${colour % 7}`, width: ofMean && !single ? 1 : 2,
      dash: single ? (colour ? [6, 3] : []) : DASHES[Math.floor(colour / 7) % 4],
      alpha: ofMean && !single ? 0.6 : 1,
    };
  };
  const nameOf = (curve) => [single ? "" : sessions[curve.session].label, curve.part].filter(Boolean).join(" ");

  const drawnCurves = (entry) => {
    const axis = AXES[state.axis];
    return entry.chart.curves
      .filter((curve) => !state.hidden.has(single ? curve.part : sessions[curve.session].group) && axis.can(sessions[curve.session]))
      .map((curve) => {
        const positive = (value) => entry.logY && value <= 0 ? null : value;
        const x = curve.x.map((at) => axis.at(at, sessions[curve.session]));
        const kept = x.map((at, i) => !state.logX || at > 0 ? i : -1).filter((i) => i >= 0);
        return { curve, x: kept.map((i) => x[i]), y: kept.map((i) => positive(curve.y[i])), look: look(entry.chart, curve) };
      });
  };

  // A table of several curves for uPlot: where a curve has no point it is undefined, and drawn through.
  const joined = (lines) => {
    if (!lines.length) return [[]];
    return uPlot.join(lines.map((line) => [line.x, line.y]), lines.map(() => [0, 1]));
  };

  const marks = (entry) => (plot) => { // the best score of each session: a ring
    const { ctx } = plot;
    for (const { curve } of entry.lines) {
      const session = sessions[curve.session];
      if (!session.best || session.score != [curve.part, entry.chart.name].filter(Boolean).join("/")) continue;
      const [at, value] = session.best;
      if (value <= 0 && entry.logY) continue;
      ctx.save();
      ctx.beginPath();
      ctx.rect(plot.bbox.left - 8, plot.bbox.top - 8, plot.bbox.width + 16, plot.bbox.height + 16);
      ctx.clip();
      ctx.strokeStyle = css(look(entry.chart, curve).colour);
      ctx.lineWidth = 2 * plot.pxRatio;
      ctx.beginPath();
      const x = plot.valToPos(AXES[state.axis].at(at, session), "x", true);
      ctx.arc(x, plot.valToPos(value, "y", true), 6 * plot.pxRatio, 0, 7);
      ctx.stroke();
      ctx.restore();
    }
  };

  const readOut = (entry) => (plot) => {
    const { idx } = plot.cursor;
    if (idx == null || plot.cursor.left < 0) { entry.read.textContent = ""; return; }
    const x = plot.data[0][idx];
    const nearest = (i) => { // the curve's own point, as near as may be
      const values = plot.data[i];
      for (let d = 0; d < values.length; d++) {
        if (values[idx - d] != null) return idx - d;
        if (values[idx + d] != null) return idx + d;
      }
      return -1;
    };
    const told = [];
    plot.series.forEach((series, i) => {
      const at = i && series.told ? nearest(i) : -1;
      if (at < 0) return;
      const distance = Math.abs(plot.valToPos(plot.data[i][at], "y") - plot.cursor.top);
      told.push({ distance, text: `${series.label || entry.chart.name} ${format(plot.data[i][at])} at ${shownX(plot.data[0][at])}` });
    });
    const few = told.length <= 3 ? told : told.sort((a, b) => a.distance - b.distance).slice(0, 1);
    entry.read.textContent = few.map(({ text }) => text).join("  |  ") || shownX(x);
  };

  // ---- one chart

  const options = (entry, width) => {
    const series = [{}];
    for (const { curve, look } of entry.lines) {
      const n = curve.y.length;
      const base = { label: nameOf(curve), spanGaps: false, dash: look.dash, told: true };
      if (state.smooth)
        series.push({ stroke: () => css(look.colour), width: 1, alpha: 0.25, points: { show: false } });
      series.push({
        ...base, stroke: () => css(look.colour), width: look.width, alpha: look.alpha,
        points: { show: n <= FEW_POINTS, size: 5, stroke: () => css(look.colour), fill: () => css(look.colour) },
      });
    }
    const line = { stroke: () => css("--dim"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line"), width: 1 } };
    const logX = state.logX, seconds = state.axis == "seconds";
    const incrs = seconds ? [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 432000, 864000] : undefined;
    const logRange = (plot, min, max) => min > 0 ? uPlot.rangeLog(min, max, 10, false) : [1, 10];
    return {
      width, height: HEIGHT, pxRatio: document.documentElement.classList.contains("paper") ? 3 : undefined,
      legend: { show: false }, series,
      cursor: { drag: { x: true, y: false }, focus: { prox: 30 }, points: { size: 7 }, sync: { key: "x" } },
      focus: { alpha: 0.35 },
      scales: {
        x: { time: false, distr: logX ? 3 : 1, ...(logX ? { range: logRange } : {}) },
        y: entry.logY ? { distr: 3, range: logRange } : {},
      },
      axes: [
        { ...line, label: AXES[state.axis].name + (seconds ? " (minutes:seconds)" : ""), size: 34, labelSize: 18, labelGap: 0, labelFont: "12px system-ui, sans-serif", space: 60, values: (plot, splits) => splits.map((x) => x == null ? "" : seconds ? clock(x) : format(x)), ...(logX || !seconds ? {} : { incrs }) },
        { ...line, size: 62, values: (plot, splits) => splits.map((y) => y == null ? "" : format(y)) },
      ],
      hooks: {
        draw: [marks(entry)], setCursor: [readOut(entry)],
        setScale: [(plot, key) => key == "x" && zoomed(entry, plot)],
      },
    };
  };

  let zooming = false;
  const zoomed = (entry, plot) => { // all charts show the same part of the axis
    if (zooming || entry.building || plot != entry.plot) return;
    const { min, max } = plot.scales.x, [x] = plot.data;
    const whole = min <= x[0] && max >= x[x.length - 1];
    state.zoom = whole ? null : [min, max];
    zooming = true;
    for (const other of shown) {
      if (other.plot && other != entry) setZoom(other);
      other.back.hidden = whole;
    }
    zooming = false;
  };
  const setZoom = ({ plot }) => {
    const [x] = plot.data;
    const [min, max] = state.zoom ?? [x[0], x[x.length - 1]];
    if (x.length) plot.setScale("x", { min, max: max > min ? max : min + 1 });
  };

  const draw = (entry) => {
    entry.plot?.destroy();
    entry.plot = null;
    if (!entry.seen) return;
    entry.lines = drawnCurves(entry);
    const lines = entry.lines.flatMap((line) => state.smooth
      ? [line, { ...line, y: smoothed(line.y, state.smooth) }] : [line]);
    const data = joined(lines);
    entry.body.replaceChildren();
    if (!data[0].length || !lines.some((line) => line.y.some((y) => y != null))) {
      entry.body.append(make("p", entry.lines.length ? "No number that can be drawn." : "Nothing to show.", { class: "note" }));
      return;
    }
    entry.building = true;
    entry.plot = new uPlot(options(entry, entry.body.clientWidth), data, entry.body);
    if (state.zoom) setZoom(entry);
    entry.building = false;
    byTouch(entry.plot.over);
    const told = lines.map(({ curve }) => `${nameOf(curve)} last ${format(curve.y.at(-1))}`);
    entry.plot.root.setAttribute("role", "img");
    entry.plot.root.setAttribute("aria-label", `${entry.chart.name} over ${AXES[state.axis].name}: ${[...new Set(told)].slice(0, 8).join("; ")}`);
  };

  // uPlot listens to a mouse. A finger that moves sideways is one; up and down it scrolls the page.
  const byTouch = (over) => {
    const names = { pointerdown: "mousedown", pointermove: "mousemove", pointerup: "mouseup", pointercancel: "mouseleave" };
    for (const [from, to] of Object.entries(names))
      over.addEventListener(from, (event) => {
        if (event.pointerType == "mouse" || !event.isPrimary) return;
        const { clientX, clientY } = event;
        if (to == "mousedown") over.dispatchEvent(new MouseEvent("mouseenter", { clientX, clientY }));
        over.dispatchEvent(new MouseEvent(to, { clientX, clientY, bubbles: true, button: 0, movementX: 1 }));
      });
  };

  const chartBox = (chart) => {
    const box = make("div", "", { class: "chart" }), header = make("header");
    const better = { min: "lower is better", max: "higher is better" }[chart.better] ?? "";
    const entry = { chart, logY: chart.log, seen: false, plot: null, lines: [] };
    const [log, back] = [make("input", "", { type: "checkbox" }), make("button", "whole axis")];
    log.checked = chart.log;
    log.addEventListener("change", () => { entry.logY = log.checked; draw(entry); });
    back.hidden = true;
    back.addEventListener("click", () => { state.zoom = null; drawAll(); });
    const label = make("label");
    label.append(log, " log");
    header.append(make("b", chart.name), make("span", better, { class: "note" }), make("span", "", { class: "space" }), back, label);
    entry.body = make("div", "", { class: "plot" });
    entry.read = make("div", "", { class: "read", "aria-live": "off" });
    entry.back = back;
    box.append(header, entry.body, entry.read);
    const fewer = chart.curves.filter((curve) => curve.n > curve.x.length);
    const strange = chart.curves.reduce((sum, curve) => sum + curve.strange, 0);
    const notes = [];
    if (fewer.length) {
      const most = fewer.reduce((a, b) => a.n > b.n ? a : b);
      notes.push(`${most.x.length.toLocaleString("en")} of ${most.n.toLocaleString("en")} points: of each stretch the lowest and the highest`);
    }
    if (strange) notes.push(`${strange.toLocaleString("en")} values are NaN or infinite`);
    if (notes.length) box.append(make("p", notes.join("; "), { class: "note" }));
    shown.push(entry);
    box.entry = entry;
    watch.observe(box);
    return box;
  };

  const watch = new IntersectionObserver((changes) => {
    for (const { isIntersecting, target: { entry } } of changes)
      if (isIntersecting && !entry.seen) { entry.seen = true; draw(entry); }
  }, { rootMargin: "300px" });

  const drawAll = () => {
    for (const entry of shown) { entry.back.hidden = !state.zoom; draw(entry); }
    const cannot = sessions.filter((session) => !AXES[state.axis].can(session)).map(({ label }) => label);
    axisNote.textContent = cannot.length ? `Not known of ${cannot.slice(0, 5).join(", ")}${cannot.length > 5 ? ", ..." : ""}` : "";
  };

  // ---- what a person can choose

  const controls = make("div", "", { class: "controls" });
  const axisNote = make("span", "", { class: "axis" });
  const choice = make("select", "", { "aria-label": "horizontal axis" });
  for (const [key, { can, name }] of Object.entries(AXES)) {
    const option = make("option", name, { value: key });
    option.disabled = !sessions.some(can);
    choice.append(option);
  }
  choice.addEventListener("change", () => { state.axis = choice.value; state.zoom = null; drawAll(); });
  const slider = make("input", "", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0 });
  const weight = make("span", "0");
  slider.addEventListener("input", () => { state.smooth = Number(slider.value); weight.textContent = slider.value; drawAll(); });
  const logX = make("input", "", { type: "checkbox" });
  logX.addEventListener("change", () => { state.logX = logX.checked; state.zoom = null; drawAll(); });
  const labelled = (...parts) => { const label = make("label"); label.append(...parts); return label; };
  controls.append(labelled("over", choice), labelled(logX, "log"), labelled("smooth", slider, weight),
    make("span", "drag: zoom; twice: whole axis", { class: "axis" }), axisNote);

  const keys = make("div", "", { class: "keys" });
  const main = charts.filter((chart) => chart.main), others = charts.filter((chart) => !chart.main);
  const swatch = ({ colour, width, dash, alpha }) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [key, value] of Object.entries({ width: 26, height: 10, "aria-hidden": true })) svg.setAttribute(key, value);
    for (const [key, value] of Object.entries({ x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": width + 1, "stroke-dasharray": dash.join(" "), "stroke-opacity": alpha }))
      line.setAttribute(key, value);
    line.style.stroke = `var(${colour})`;
    svg.append(line);
    return svg;
  };
  const addKey = (name, text, kind) => {
    const key = make("button", "", { type: "button", "aria-pressed": "true", title: "show or hide" });
    key.append(swatch(kind), text);
    key.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      key.setAttribute("aria-pressed", !state.hidden.has(name));
      drawAll();
    });
    keys.append(key);
  };
  if (single) {
    const WORDS = { train: "training", val: "validation", test: "test" };
    const seen = new Map();
    for (const chart of main) for (const curve of chart.curves) if (!seen.has(curve.part)) seen.set(curve.part, look(chart, curve));
    if (seen.size > 1) for (const [part, kind] of seen) addKey(part, part.replace(/^\w+/, (word) => WORDS[word] ?? word), kind);
  } else {
    (groups.length ? groups : sessions.map(({ label }) => label)).forEach((label, n) => addKey(n, label, { colour: `--c${n % 7}`, width: 2, dash: DASHES[Math.floor(n / 7) % 4], alpha: 1 }));
    if (main.some((chart) => partsOf(chart).includes("train") && partsOf(chart).length > 1))
      keys.append(make("span", "thick: validation, thin: training (means since the point before); ring: best score", { class: "axis" }));
  }

  const grid = make("div", "", { class: "grid" });
  place.append(controls, keys, grid);
  grid.append(...main.map(chartBox));
  if (others.length) {
    const rest = make("details"), inside = make("div", "", { class: "grid" });
    rest.append(make("summary", `${others.length} other numbers: ${others.slice(0, 6).map(({ name }) => name).join(", ")}${others.length > 6 ? ", ..." : ""}`), inside);
    rest.addEventListener("toggle", () => { if (rest.open && !inside.children.length) inside.append(...others.map(chartBox)); });
    if (!main.length) rest.open = true;
    place.append(rest);
  }
  drawAll();

  // ---- the page's own changes

  for (const image of document.querySelectorAll("figure img"))
    image.addEventListener("click", () => image.parentNode.classList.toggle("large"));

  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth == width) return;
    width = place.clientWidth;
    for (const { plot, body } of shown) plot?.setSize({ width: body.clientWidth, height: HEIGHT });
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    const opened = sessions.length <= 3 ? "details.session" : "details:has(> .wide > .overview)";
    for (const part of document.querySelectorAll(opened)) part.open = true;
    for (const entry of shown) { entry.seen = true; draw(entry); entry.plot?.setSize({ width: 420, height: HEIGHT }); }
  });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); drawAll(); });
})();


"use strict";
// All text from runs goes into the page through `append` and `setAttribute`, which make text and attributes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 40; // prompts at a time
const MARKS = ["circle", "square", "diamond", "up", "down", "cross"];

// ---- small tools

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const text = (string, attributes = {}) => el("bdi", { class: "text", dir: "auto", ...attributes }, string);
const count = (n) => n.toLocaleString("en");
const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const real = (x) => x !== null && x !== undefined;
const colour = (i) => `var(--s${i % 6})`;

// Not Math.max(...values): a call takes some ten thousand arguments at most.
const largest = (values) => values.reduce((most, value) => (real(value) ? Math.max(most, Math.abs(value)) : most), 0);
function decimals(values) {
  return Math.min(6, Math.max(0, 3 - Math.floor(Math.log10(Math.max(largest(values), 1e-9)))));
}
function format(value, places, signed = false) {
  if (!real(value)) return "–";
  const shown = Math.abs(value).toFixed(places);
  return (value < 0 && Number(shown) !== 0 ? "−" : signed ? "+" : "") + shown;
}
const brief = (value) => (real(value) ? Number(value.toPrecision(4)).toString().replace("-", "−") : "–");

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (real(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return [0, 1];
  const margin = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.05 || 0.5;
  return [low - margin, high + margin];
}
const scale = ([a, b], [from, to]) => (x) => from + ((x - a) / (b - a)) * (to - from);
function ticks([low, high], n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Draws again whenever the width changes.
function chart(label, draw) {
  const box = el("div", { class: "chart" });
  const redraw = () => {
    const width = Math.floor(box.clientWidth);
    if (width) { box.replaceChildren(draw(width)); if (label) fill(box.firstChild, { role: "img", "aria-label": label() }, []); }
  };
  let last = 0;
  new ResizeObserver(() => { if (box.clientWidth !== last) { last = box.clientWidth; redraw(); } }).observe(box);
  box.redraw = redraw;
  return box;
}
function mark(kind, x, y, r, attributes) {
  const points = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], diamond: [[0, -1.35], [1.35, 0], [0, 1.35], [-1.35, 0]],
    up: [[0, -1.3], [1.2, 1], [-1.2, 1]], down: [[0, 1.3], [1.2, -1], [-1.2, -1]],
    cross: [[-0.4, -1.3], [0.4, -1.3], [0.4, -0.4], [1.3, -0.4], [1.3, 0.4], [0.4, 0.4], [0.4, 1.3], [-0.4, 1.3], [-0.4, 0.4], [-1.3, 0.4], [-1.3, -0.4], [-0.4, -0.4]],
  }[kind];
  if (!points) return svg("circle", { cx: x, cy: y, r, ...attributes });
  return svg("polygon", { points: points.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" "), ...attributes });
}

let fields = 0;
function field(label, control) {
  control.id ||= `field-${++fields}`;
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control);
}
function select(label, options, change, value) {
  const box = el("select", { onchange: () => change(box.value) }, options.map(([v, name]) => el("option", { value: v, selected: String(v) === String(value) }, name)));
  return field(label, box);
}
function section(id, title, lead, ...children) {
  document.getElementById("nav").append(el("a", { href: `#${id}` }, title));
  const made = el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), lead ? el("p", {}, lead) : null, ...children);
  document.getElementById("main").append(made);
}

// ---- leaderboard

function leaderboard({ models, metrics, board }) {
  const columns = metrics.map((metric, j) => {
    const cells = board.map((row) => row[j]);
    return {
      name: metric.name, title: metric.what, lower: metric.lower, value: (m) => board[m][j]?.value ?? null,
      domain: extent(cells.flatMap((cell) => (cell ? [cell.low, cell.value, cell.high] : []))), places: decimals(cells.map((cell) => cell?.value)), cells,
    };
  });
  const plain = [
    { name: "model", lower: true, value: (m) => models[m].label },
    { name: "images", value: (m) => models[m].n },
    { name: "complete", value: (m) => (models[m].missing ? 0 : 1) },
  ];
  const all = [...plain, ...columns];
  const head = el("tr"), body = el("tbody"), said = el("p", { class: "hidden", role: "status" });
  let sorted = null, direction = 1;

  function interval(column, cell) {
    const x = scale(column.domain, [2, 110]);
    return svg("svg", { viewBox: "0 0 112 10", "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 112, y1: 5, y2: 5, stroke: "var(--line)" }),
      real(cell.low) ? svg("line", { x1: x(cell.low), x2: x(cell.high), y1: 5, y2: 5, stroke: "var(--accent)", "stroke-width": 2 }) : null,
      svg("circle", { cx: x(cell.value), cy: 5, r: 3.5, fill: "var(--accent)" }));
  }
  const rows = models.map((model, m) => el("tr", { class: model.missing ? "incomplete" : null },
    el("th", { scope: "row" }, text(model.label)),
    el("td", {}, count(model.n)),
    el("td", { class: "wrap" }, model.missing ? [el("span", { class: "state" }, "incomplete"), el("br"), el("small", { class: "text" }, model.missing)] : "complete"),
    columns.map((column) => {
      const cell = column.cells[m];
      if (!cell || !real(cell.value)) return el("td", { class: cell?.note ? "wrap" : null }, "–", cell?.note ? el("small", {}, text(cell.note)) : null);
      return el("td", { class: cell.note ? "wrap" : null },
        el("b", {}, format(cell.value, column.places)),
        el("small", {}, real(cell.low) ? `${format(cell.low, column.places)} to ${format(cell.high, column.places)}` : "no interval"),
        cell.n === model.n ? null : el("small", {}, `of ${counted(cell.n, "image")}`),
        cell.note ? el("small", { class: "text" }, text(cell.note)) : null,
        interval(column, cell));
    })));

  function sort(column, way) {
    sorted = column; direction = way;
    const order = models.map((_, m) => m).sort((a, b) => {
      const x = column.value(a), y = column.value(b);
      if (!real(x) || !real(y)) return (real(x) ? 0 : 1) - (real(y) ? 0 : 1) || a - b;
      return way * (typeof x === "string" ? x.localeCompare(y) : x - y) || a - b;
    });
    body.replaceChildren(...order.map((m) => rows[m]));
    all.forEach((each, i) => {
      if (each === column) head.children[i].setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      else head.children[i].removeAttribute("aria-sort");
    });
    said.textContent = `Sorted by ${column.name}, ${way > 0 ? "ascending" : "descending"}.`;
  }
  // The best first, where a column has a best; again, and it turns round.
  const press = (column) => sort(column, sorted === column ? -direction : column.lower ? 1 : -1);
  head.append(...all.map((column) => el("th", { scope: "col", title: column.title || null, class: column === plain[2] ? "wrap" : null },
    el("button", { type: "button", onclick: () => press(column) }, column.name),
    columns.includes(column) ? el("small", {}, column.lower ? "lower is better" : metrics[columns.indexOf(column)].set ? " " : "higher is better") : null)));
  const first = columns.find((column) => !column.lower) ?? columns[0] ?? plain[0];
  press(first);

  const made = el("details", {}, el("summary", {}, "How each row was made"), models.map((model) => [
    el("h3", {}, text(model.label)),
    el("dl", { class: "metadata" }, Object.entries(model.metadata).map(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, el("code", { class: "text" }, String(value)))])),
  ]));
  section("leaderboard", "Leaderboard", null,
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Leaderboard" },
      el("table", {}, el("caption", { class: "hidden" }, "Leaderboard"), el("thead", {}, head), body)),
    el("p", { class: "about" }, "Mean and 95 % interval, clustered by prompt. A column is one protocol with one file of weights. A Fréchet distance depends on the number of images: compare equal ones."), said, made);
}

// ---- reward against distance

function tradeoff({ models, metrics, board }) {
  const usable = metrics.map((_, j) => j).filter((j) => board.some((row) => real(row[j]?.value)));
  const distances = usable.filter((j) => metrics[j].frechet), rewards = usable.filter((j) => !metrics[j].set);
  if (!distances.length || !rewards.length) return;
  let x = distances[0], y = rewards[rewards.length - 1];
  const points = () => board.map((row, m) => ({ m, a: row[x], b: row[y] })).filter(({ a, b }) => real(a?.value) && real(b?.value));
  const said = () => `${metrics[y].name} against ${metrics[x].name}: ` + points().map(({ m, a, b }) => `${models[m].label} ${brief(b.value)} at ${brief(a.value)}`).join("; ");
  const box = chart(said, (width) => {
    const height = Math.min(460, Math.max(280, width * 0.45)), edge = { left: 58, right: 20, top: 16, bottom: 50 }, found = points();
    const ends = (cell) => [cell.low, cell.value, cell.high];
    const dx = extent(found.flatMap(({ a }) => ends(a))), dy = extent(found.flatMap(({ b }) => ends(b)));
    const sx = scale(dx, [edge.left, width - edge.right]), sy = scale(dy, [height - edge.bottom, edge.top]);
    const root = svg("svg", { width, height });
    for (const t of ticks(dx, Math.max(3, width / 130))) root.append(svg("line", { class: "axis", x1: sx(t), x2: sx(t), y1: edge.top, y2: height - edge.bottom }), svg("text", { x: sx(t), y: height - edge.bottom + 18, "text-anchor": "middle" }, brief(t)));
    for (const t of ticks(dy, 5)) root.append(svg("line", { class: "axis", x1: edge.left, x2: width - edge.right, y1: sy(t), y2: sy(t) }), svg("text", { x: edge.left - 8, y: sy(t) + 4, "text-anchor": "end" }, brief(t)));
    root.append(svg("text", { class: "name", x: width - edge.right, y: height - 10, "text-anchor": "end" }, `${metrics[x].name} (${metrics[x].lower ? "lower is better: ←" : "→"})`), svg("text", { class: "name", x: edge.left + 8, y: edge.top + 6 }, `↑ ${metrics[y].name}`));
    for (const { m, a, b } of found) {
      const stroke = { stroke: colour(m), "stroke-width": 1.5, opacity: 0.6 };
      if (real(a.low)) root.append(svg("line", { x1: sx(a.low), x2: sx(a.high), y1: sy(b.value), y2: sy(b.value), ...stroke }));
      if (real(b.low)) root.append(svg("line", { x1: sx(a.value), x2: sx(a.value), y1: sy(b.low), y2: sy(b.high), ...stroke }));
    }
    const taken = [];
    for (const { m, a, b } of [...found].sort((p, q) => sy(p.b.value) - sy(q.b.value))) {
      const px = sx(a.value), py = sy(b.value), left = px > width * 0.65;
      let ly = py - 8;
      while (taken.some((other) => Math.abs(other.y - ly) < 16 && Math.abs(other.x - px) < 220)) ly += 16;
      taken.push({ x: px, y: ly });
      const label = models[m].label.length > 34 ? `${models[m].label.slice(0, 33)}…` : models[m].label;
      root.append(mark(MARKS[m % 6], px, py, 5.5, { fill: colour(m), stroke: "var(--paper)", "stroke-width": 1.5 }), svg("text", { class: "name", x: px + (left ? -11 : 11), y: ly, "text-anchor": left ? "end" : "start", stroke: "var(--paper)", "stroke-width": 4, "paint-order": "stroke" }, label));
    }
    return root;
  });
  const choose = (label, list, set, value) => select(label, list.map((j) => [j, metrics[j].name]), (v) => { set(Number(v)); box.redraw(); }, value);
  section("tradeoff", "Reward against distance", "Up is a higher reward, left is closer to real images. Lines are 95 % intervals.",
    el("div", { class: "controls" }, choose("Reward", rewards, (v) => { y = v; }, y), choose("Distance", distances, (v) => { x = v; }, x)), box);
}

// ---- distributions

function quantile(sorted, q) {
  const at = (sorted.length - 1) * q, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}
function distributions({ models, metrics, scores }) {
  const scored = metrics.filter((metric) => !metric.set);
  const panels = scored.map((metric, j) => {
    const rows = models.map((model, m) => ({ model, m, values: (scores[m][j] ?? []).filter(real).sort((a, b) => a - b) })).filter(({ values }) => values.length);
    if (!rows.length) return null;
    const everything = rows.flatMap(({ values }) => values).sort((a, b) => a - b);
    const ends = [everything[0], everything[everything.length - 1]], domain = extent(ends), bins = 36;
    const said = () => `Distribution of ${metric.name}. ` + rows.map(({ model, values }) => `${model.label}: median ${brief(quantile(values, 0.5))}, middle half ${brief(quantile(values, 0.25))} to ${brief(quantile(values, 0.75))}`).join("; ");
    return el("div", { class: "panel" }, el("h3", {}, metric.name), chart(said, (width) => {
      const tall = 58, height = rows.length * tall + 24, x = scale(domain, [2, width - 2]), wide = (domain[1] - domain[0]) / bins;
      const root = svg("svg", { width, height });
      for (const t of ticks(domain, Math.max(3, width / 90))) root.append(svg("line", { class: "axis", x1: x(t), x2: x(t), y1: 0, y2: height - 20 }), svg("text", { x: x(t), y: height - 4, "text-anchor": "middle" }, brief(t)));
      const counts = rows.map(({ values }) => {
        const heights = new Array(bins).fill(0);
        for (const value of values) heights[Math.min(bins - 1, Math.floor((value - domain[0]) / wide))] += 1 / values.length;
        return heights;
      });
      const most = Math.max(...counts.flat());
      rows.forEach(({ model, m, values }, i) => {
        const base = (i + 1) * tall, mean = values.reduce((a, b) => a + b, 0) / values.length;
        for (const [k, share] of counts[i].entries()) {
          if (share) root.append(svg("rect", { x: x(domain[0] + k * wide) + 0.5, width: Math.max(1, x(domain[0] + (k + 1) * wide) - x(domain[0] + k * wide) - 1), y: base - (share / most) * (tall - 20), height: (share / most) * (tall - 20), fill: colour(m), opacity: 0.75 }));
        }
        root.append(svg("line", { class: "axis", x1: 0, x2: width, y1: base, y2: base }), svg("line", { x1: x(mean), x2: x(mean), y1: base - tall + 20, y2: base + 3, stroke: "var(--ink)", "stroke-width": 1.5 }));
        root.append(svg("text", { class: "name", x: 2, y: base - tall + 15, stroke: "var(--paper)", "stroke-width": 3, "paint-order": "stroke" }, model.label.length > 40 ? `${model.label.slice(0, 39)}…` : model.label));
      });
      return root;
    }));
  }).filter(real);
  if (panels.length) section("distributions", "Score distributions", "Share of images by score, on one scale for all models of a metric. The upright line is the mean.", el("div", { class: "panels" }, panels));
}

// ---- images

function images({ models, metrics, scores, ids, copy, prompts, groups, state, errors, reasons, sizes }) {
  const scored = metrics.filter((metric) => !metric.set), places = scored.map((_, j) => decimals(scores.flatMap((model) => [largest(model[j] ?? [])])));
  const haystack = prompts.map((prompt, r) => `${prompt}\n${ids[r]}`.toLowerCase());
  const view = { words: "", groups: groups.map(() => ""), failed: false, sort: "suite", metric: scored.length - 1, from: 0, to: Math.min(1, models.length - 1), page: 0 };
  let order = [];
  const path = (m, r, thumbnail) => `${encodeURIComponent(data.files)}/${m}/${r}.${thumbnail && state[m][r] === "2" ? "jpg" : "png"}`;
  const said = el("p", { id: "count", role: "status" }), list = el("ol", { class: "rows" }), pagers = [el("div", { class: "pager" }), el("div", { class: "pager" })];
  const difference = (r) => { const a = scores[view.from][view.metric]?.[r], b = scores[view.to][view.metric]?.[r]; return real(a) && real(b) ? b - a : null; };
  const failed = (r) => models.some((_, m) => errors[m][r] !== undefined);

  function update() {
    const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
    order = [];
    for (let r = 0; r < ids.length; r++) {
      if (groups.every((group, g) => view.groups[g] === "" || group.of[r] === view.groups[g]) && (!view.failed || failed(r)) && words.every((word) => haystack[r].includes(word))) order.push(r);
    }
    if (view.sort !== "suite") {
      const way = view.sort === "worst" ? 1 : -1, gaps = new Map(order.map((r) => [r, difference(r)]));
      order.sort((a, b) => {
        const x = gaps.get(a), y = gaps.get(b);
        return real(x) && real(y) ? way * (x - y) || a - b : (real(x) ? 0 : 1) - (real(y) ? 0 : 1) || a - b;
      });
    }
    turn(0);
  }
  function turn(page) {
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    view.page = Math.min(Math.max(page, 0), pages - 1);
    const first = view.page * PAGE, shown = order.slice(first, first + PAGE);
    list.replaceChildren(...shown.map(row));
    list.start = first + 1;
    const how = view.sort === "suite" ? "in the suite's order" : `${view.sort === "worst" ? "worst regressions" : "greatest gains"} in ${scored[view.metric].name} first, from ${models[view.from].label} to ${models[view.to].label}`;
    const noun = copy ? "row" : "prompt", part = shown.length < order.length ? `, ${count(first + 1)} to ${count(first + shown.length)} on this page` : "";
    said.textContent = order.length ? `${count(order.length)} of ${counted(ids.length, noun)}${part}; ${how}.` : `No ${noun} of ${count(ids.length)} fits.`;
    if (!order.length) list.replaceChildren(el("li", { class: "empty" }, "Nothing fits these filters. Take a word away, or choose all categories."));
    for (const pager of pagers) {
      const held = pager.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      const go = (to, up) => { turn(to); if (up && pager === pagers[1]) document.getElementById("count").scrollIntoView(); };
      const number = el("input", { type: "number", min: 1, max: pages, value: view.page + 1, "aria-label": "Page", "data-key": "page", onchange: () => go(Number(number.value) - 1) });
      pager.replaceChildren(...(pages < 2 ? [] : [
        el("button", { type: "button", disabled: view.page === 0, "data-key": "back", onclick: () => go(view.page - 1, true) }, "← Previous"),
        el("span", {}, "Page "), number, el("span", {}, ` of ${count(pages)}`),
        el("button", { type: "button", disabled: view.page === pages - 1, "data-key": "on", onclick: () => go(view.page + 1, true) }, "Next →"),
      ]));
      if (held) [...pager.querySelectorAll("button, input")].filter((each) => !each.disabled).sort((a, b) => (b.dataset.key === held) - (a.dataset.key === held))[0]?.focus({ preventScroll: true });
    }
  }
  function scoresOf(m, r) {
    return el("dl", { class: "scores" }, scored.map((metric, j) => (scores[m][j] ? [
      el("dt", { class: view.sort !== "suite" && j === view.metric ? "chosen" : null, title: metric.name }, metric.name),
      el("dd", { class: view.sort !== "suite" && j === view.metric ? "chosen" : null }, format(scores[m][j][r], places[j])),
    ] : [])));
  }
  const reasonOf = (m, r) => (reasons[m][r] === undefined ? null : el("p", { class: "reason" }, text(reasons[m][r])));
  const image = (m, r, attributes) => el("img", { alt: `${prompts[r]}, by ${models[m].label}`, width: sizes[m][0], height: sizes[m][1], decoding: "async", class: sizes[m][0] < 160 ? "pixels" : null, ...attributes });
  function shot(m, r) {
    const kind = state[m][r], error = errors[m][r];
    const seen = kind === "1" || kind === "2"
      ? el("button", { type: "button", class: "shot", "data-row": r, "data-model": m, onclick: () => look(m, r) }, image(m, r, { src: path(m, r, true), loading: "lazy" }))
      : el("div", { class: "gone" }, kind === "-" ? "not in this run" : "no image");
    return el("figure", {}, seen, el("figcaption", {}, text(models[m].label, { class: "text who" }), error === undefined ? null : el("p", { class: "error" }, text(error)), kind === "-" ? null : scoresOf(m, r), reasonOf(m, r)));
  }
  function row(r) {
    const gap = view.sort === "suite" ? null : difference(r);
    const about = [ids[r], ...(copy && copy.includes(1) ? [`image ${copy[r] + 1}`] : []), ...groups.map((group) => `${group.name}: ${group.values[group.of[r]]}`)];
    return el("li", { "data-id": ids[r] }, el("div", {}, el("div", { class: "prompt" }, text(prompts[r])),
      el("p", { class: "about" }, real(gap) ? [el("b", { class: gap < 0 ? "worse" : null }, `${format(gap, places[view.metric], true)} ${scored[view.metric].name}`), " · "] : view.sort === "suite" ? null : "no difference · ", text(about.join(" · ")))),
      el("div", { class: "shots" }, models.map((_, m) => shot(m, r))));
  }

  const viewer = document.getElementById("viewer");
  let at = null;
  function look(m, r) {
    at = [m, r];
    const held = viewer.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const step = (label, key, dm, dr) => el("button", { type: "button", "data-key": key, onclick: () => move(dm, dr) }, label);
    viewer.replaceChildren(
      el("div", { class: "bar" }, el("span", { class: "who" }, text(models[m].label)), models.length > 1 ? [step("← model", "left", -1, 0), step("model →", "right", 1, 0)] : [], step("↑ prompt", "up", 0, -1), step("prompt ↓", "down", 0, 1), el("button", { type: "button", "data-key": "close", onclick: () => viewer.close() }, "Close")),
      "12".includes(state[m][r]) ? el("a", { href: path(m, r, false), target: "_blank", rel: "noreferrer", "aria-label": "The file itself" }, image(m, r, { src: path(m, r, false) })) : el("div", { class: "gone" }, state[m][r] === "-" ? "not in this run" : "no image"),
      el("div", { class: "prompt", tabindex: 0 }, text(prompts[r])), el("p", { class: "about" }, text(ids[r])), errors[m][r] === undefined ? "" : el("p", { class: "error" }, text(errors[m][r])), scoresOf(m, r), reasonOf(m, r) ?? "");
    if (!viewer.open) viewer.showModal();
    [...viewer.querySelectorAll("button")].find((each) => each.dataset.key === (held ?? "close"))?.focus();
  }
  function move(dm, dr) {
    const place = order.indexOf(at[1]) + dr;
    if (place < 0 || place >= order.length) return;
    if (Math.floor(place / PAGE) !== view.page) turn(Math.floor(place / PAGE));
    look((at[0] + dm + models.length) % models.length, order[place]);
  }
  viewer.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way && !event.target.classList.contains("prompt")) { event.preventDefault(); move(...way); }
  });
  viewer.addEventListener("close", () => { const [m, r] = at; list.querySelector(`[data-row="${r}"][data-model="${m}"]`)?.focus(); });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  let waiting = 0;
  const search = el("input", { type: "search", placeholder: "words", oninput: () => { clearTimeout(waiting); waiting = setTimeout(() => { view.words = search.value; update(); }, 120); } });
  const tick = el("input", { type: "checkbox", onchange: () => { view.failed = tick.checked; update(); } });
  const names = models.map((model, m) => [m, model.label]);
  const controls = [
    field("Prompt contains", search),
    groups.filter((group) => group.values.length > 1).map((group) => select(group.name, [["", "all"], ...group.values.map((value, v) => [v, value])], (v) => { view.groups[groups.indexOf(group)] = v === "" ? "" : Number(v); update(); }, "")),
  ];
  if (models.length > 1 && scored.length) {
    controls.push(
      select("Order", [["suite", "as in the suite"], ["worst", "worst regressions first"], ["best", "greatest gains first"]], (v) => { view.sort = v; update(); }, "suite"),
      select("Difference in", scored.map((metric, j) => [j, metric.name]), (v) => { view.metric = Number(v); update(); }, view.metric),
      select("from", names, (v) => { view.from = Number(v); update(); }, view.from),
      select("to", names, (v) => { view.to = Number(v); update(); }, view.to),
    );
  }
  if (errors.some((model) => Object.keys(model).length)) controls.push(el("label", { class: "tick" }, tick, "only with errors"));
  const heads = el("div", { class: "heads", "aria-hidden": "true" }, el("div"), el("div", { class: "shots" }, models.map((model) => text(model.label))));
  section("images", "Images", "The same prompts, one column per model. Choose an image to see it whole; the arrow keys then go through models and prompts.",
    el("div", { class: "controls", role: "search", "aria-label": "Images" }, controls), said, pagers[0], heads, list, pagers[1]);
  for (const box of [heads, list]) {
    box.style.setProperty("--columns", models.length);
    box.classList.toggle("beside", models.length < 4);
  }
  update();
}

// ---- training

const KINDS = [
  ["Losses", (name) => ["assistant", "divergence", "reward", "loss"].includes(name)],
  ["Rewards", (name) => name.startsWith("reward/")],
  ["Reward over divergence", (name) => name === "reward_ratio"],
  ["Held-out", (name) => name.startsWith("held_out/")],
  ["Gradient norms", (name) => name.endsWith("_gradient")],
  ["Speed", (name) => ["seconds", "images_per_second"].includes(name)],
  ["Other", () => true],
];

function smooth(values, weight) {
  let mean = 0, mass = 0;
  return values.map((value) => {
    if (!real(value)) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + 1 - weight;
    return mean / mass;
  });
}
function training(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))], charts = [];
  const domain = [Math.min(...runs.flatMap((run) => Object.values(run.curves).map(([steps]) => steps[0]))), Math.max(...runs.map((run) => run.steps))];
  if (domain[0] === domain[1]) domain[0] -= 1;
  let weight = 0.9, cursor = null;
  const line = (r) => ({ stroke: colour(r), "stroke-dasharray": ["", "6 3", "2 3"][Math.floor(r / 6) % 3] || null, fill: "none" });

  function panel(name, kind) {
    const own = runs.map((run, r) => ({ run, r, curve: run.curves[name] })).filter(({ curve }) => curve);
    const reading = el("p", { class: "reading" });
    const read = () => {
      reading.textContent = cursor === null ? "" : `step ${count(Math.round(cursor))}: ` + own.map(({ run, curve: [steps, values] }) => {
        let best = 0;
        steps.forEach((step, i) => { if (Math.abs(step - cursor) < Math.abs(steps[best] - cursor)) best = i; });
        return runs.length > 1 ? `${run.label} ${brief(values[best])}` : brief(values[best]);
      }).join(", ");
    };
    const said = () => `${name} by step. ` + own.map(({ run, curve: [, values] }) => { const seen = values.filter(real); return `${run.label}: from ${brief(seen[0])} to ${brief(seen[seen.length - 1])}`; }).join("; ");
    const box = chart(said, (width) => {
      const height = 170, edge = { left: 54, right: 8, top: 8, bottom: 22 }, x = scale(domain, [edge.left, width - edge.right]);
      // Outliers, a first step or a spike, do not flatten the rest: they leave the frame.
      const seen = own.flatMap(({ curve: [, values] }) => values.filter(real)).sort((a, b) => a - b);
      const range = seen.length > 50 ? [Math.min(quantile(seen, 0.01)), quantile(seen, 0.99)] : seen;
      const dy = extent(range), y = scale(dy, [height - edge.bottom, edge.top]), clip = `clip-${names.indexOf(name)}`;
      const root = svg("svg", { width, height }, svg("clipPath", { id: clip }, svg("rect", { x: edge.left, y: 0, width: width - edge.left - edge.right + 6, height: height - edge.bottom + 2 })));
      for (const t of ticks(dy, 4)) root.append(svg("line", { class: "axis", x1: edge.left, x2: width - edge.right, y1: y(t), y2: y(t) }), svg("text", { x: edge.left - 7, y: y(t) + 4, "text-anchor": "end" }, brief(t)));
      for (const t of ticks(domain, 4)) root.append(svg("text", { x: x(t), y: height - 5, "text-anchor": "middle" }, brief(t)));
      const inside = svg("g", { "clip-path": `url(#${clip})` });
      for (const { r, curve: [steps, values] } of own) {
        const draw = (list, attributes) => {
          let d = "", pen = "M";
          list.forEach((value, i) => { if (real(value)) { d += `${pen}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; } else pen = "M"; });
          inside.append(svg("path", { d, ...line(r), ...attributes }));
        };
        const few = values.length <= 40;
        if (!few && weight) draw(values, { opacity: 0.28, "stroke-width": 1 });
        draw(few ? values : smooth(values, weight), { "stroke-width": 2 });
        if (few) values.forEach((value, i) => { if (real(value)) inside.append(mark(MARKS[r % 6], x(steps[i]), y(value), 2.8, { fill: colour(r) })); });
      }
      root.append(inside);
      if (cursor !== null) root.append(svg("line", { x1: x(cursor), x2: x(cursor), y1: edge.top, y2: height - edge.bottom, stroke: "var(--ink)", "stroke-width": 1 }));
      root.append(svg("rect", { x: edge.left, y: 0, width: Math.max(0, width - edge.left - edge.right), height: height - edge.bottom, fill: "transparent" }));
      root.addEventListener("pointermove", (event) => {
        const inner = root.getBoundingClientRect(), share = (event.clientX - inner.left - edge.left) / (width - edge.left - edge.right);
        point(domain[0] + Math.min(1, Math.max(0, share)) * (domain[1] - domain[0]));
      });
      return root;
    });
    charts.push({ redraw: box.redraw, read });
    return el("div", { class: "panel" }, el("h3", {}, name, el("small", {}, kind)), box, reading);
  }
  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; for (const each of charts) { each.redraw(); each.read(); } });
  }
  const at = el("input", { type: "range", min: domain[0], max: domain[1], step: 1, value: domain[1], oninput: () => { cursor = Number(at.value); redraw(); } });
  function point(step) { cursor = step; at.value = step; redraw(); }
  const soft = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: weight, oninput: () => { weight = Number(soft.value); redraw(); } });

  const rest = new Set(names), panels = [];
  for (const [title, fits] of KINDS) {
    const own = [...rest].filter(fits);
    own.forEach((name) => rest.delete(name));
    panels.push(...own.map((name) => panel(name, title)));
  }
  const legend = runs.length > 1 ? el("ul", { class: "legend", "aria-label": "Runs" }, runs.map((run, r) => el("li", {}, svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 6, y2: 6, "stroke-width": 2.5, ...line(r) }), mark(MARKS[r % 6], 11, 6, 4, { fill: colour(r) })), text(run.label)))) : null;
  const coarse = Math.max(...runs.map((run) => run.per_point));
  section("training", "Training", `Curves over steps: faint as logged, bold smoothed. ${coarse > 1 ? `In long runs a point is the mean of up to ${coarse} steps. ` : ""}Point at a chart, or move the step, to read values off all of them.`,
    el("div", { class: "controls" }, field("Smoothing", soft), field("Step", at)), legend, el("div", { class: "panels" }, panels),
    el("div", {}, runs.map((run, r) => stage(run, r))));
}
function stage(run, t) {
  const kinds = ["samples", "predictions"].filter((kind) => run.samples.some((each) => each[kind]));
  const config = el("details", {}, el("summary", {}, "Config"), el("pre", { tabindex: 0 }, text(run.config)));
  const title = el("h3", {}, text(run.label)), about = el("p", { class: "about" }, text(`${run.folder} · ${counted(run.steps, "step")}`));
  if (!kinds.length) return el("div", { class: "stage" }, title, about, config);
  let kind = kinds[0];
  const steps = () => run.samples.filter((each) => each[kind]);
  const frame = el("div"), step = el("output", {}), slide = el("input", { type: "range", min: 0, step: 1, oninput: () => show() });
  function show() {
    const each = steps()[Number(slide.value)], [width, height, small] = each[kind], file = `${encodeURIComponent(data.files)}/t${t}/${each.step}-${kind}`;
    step.textContent = `step ${count(each.step)}`;
    slide.setAttribute("aria-valuetext", `step ${each.step}`);
    const seen = el("img", { src: `${file}.${small ? "jpg" : "png"}`, width, height, loading: "lazy", alt: `${kind} of ${run.label} at step ${each.step}` });
    frame.replaceChildren(el("a", { href: `${file}.png`, target: "_blank", rel: "noreferrer" }, seen));
  }
  function reset() { slide.max = steps().length - 1; slide.value = steps().length - 1; show(); }
  reset();
  return el("div", { class: "stage" }, title, about, el("div", { class: "controls" },
    kinds.length > 1 ? select("Images", [["samples", "samples, the same noise at every step"], ["predictions", "predictions of assistant and reference"]], (v) => { kind = v; reset(); }, kind) : null,
    field("Step of the images", slide), step), frame, config);
}

// ---- the page

const { measured, training: learned } = data;
const title = measured ? `${measured.suite}: ${counted(measured.models.length, "run")}` : `Training: ${counted(learned.length, "run")}`;
document.title = title;
document.getElementById("title").replaceChildren(text(title));
document.getElementById("lead").textContent = [
  measured ? `${counted(measured.ids.length, measured.copy ? "row" : "prompt")}, ${counted(measured.metrics.length, "metric")}` : null,
  measured && learned.length ? `${counted(learned.length, "training run")}` : null,
].filter(real).join(" · ");
if (measured) for (const part of [leaderboard, tradeoff, distributions, images]) part(measured);
if (learned.length) training(learned);

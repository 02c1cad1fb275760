"use strict";

// The page has its sentences already; this draws what is long or can be asked: the chart, the
// tables, the two orders and the region tree. All text enters as text, never as markup.

const report = JSON.parse(document.getElementById("report").textContent);
const { ops, buffers, before, after } = report;
const steps = before.order.length;
const RUNS = [
  { name: "before", title: "Before", run: before },
  { name: "after", title: "After", run: after },
];

const [UNIT, UNIT_BYTES] = report.unit;
const DECIMALS = UNIT === "B" ? 0 : 2;
const DIGITS = new Intl.NumberFormat("en-US", {
  minimumFractionDigits: DECIMALS,
  maximumFractionDigits: DECIMALS,
  roundingMode: "halfEven", // as in the sentences
});
const figure = (bytes) => DIGITS.format(bytes / UNIT_BYTES);
const counted = (count, noun) => `${count.toLocaleString("en-US")} ${noun}${count === 1 ? "" : "s"}`;
const text = (index) => report.strings[index];

// --- elements ------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

function bar(className, from, to, whole) {
  const inner = html("i");
  inner.style.width = `${(100 * (to - from)) / whole}%`;
  if (className === "span") inner.style.left = `${(100 * from) / whole}%`;
  return html("span", { class: className, "aria-hidden": "true" }, inner);
}

// --- what is known of ops and buffers --------------------------------------------------------------

function shortSource(source) {
  const prefix = report.prefixes.find((candidate) => source.startsWith(candidate));
  return prefix ? source.slice(prefix.length) : source;
}

function sourceOf(op) {
  const source = text(ops.source[op]);
  const parts = shortSource(source).split("/");
  const wrapped = parts.flatMap((part, i) => (i === 0 ? [part] : ["/", html("wbr"), part]));
  return html("span", { title: source || null }, ...wrapped);
}

function shapeOf(buffer) {
  return buffers.shape[buffer] < 0 ? "" : text(buffers.shape[buffer]);
}

/** Buffers have names that nobody gave them. */
const madeBy = (buffer) => (buffers.op[buffer] < 0 ? buffers.name[buffer] : ops.name[buffers.op[buffer]]);

const alive = (run, step) => {
  const found = [];
  for (let b = 0; b < buffers.bytes.length; ++b) {
    if (run.first[b] <= step && step <= run.last[b]) found.push(b);
  }
  return found.sort((a, b) => buffers.bytes[b] - buffers.bytes[a] || a - b);
};

// --- chart ---------------------------------------------------------------------------------------

const HEIGHT = 340;
const MARGIN = { top: 12, right: 8, bottom: 34, left: 52 };

/** Round numbers that divide [0, most] into about `count` parts. */
function ticks(most, count) {
  const rough = most / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => s >= rough);
  const values = [];
  for (let value = 0; value <= most * 1.0001; value += step) values.push(value);
  return values;
}

class Chart {
  constructor(host) {
    this.host = host;
    this.selected = Math.max(0, before.peak);
    fill(host, {
      tabindex: "0",
      role: "slider",
      "aria-label": "Step of the program",
      "aria-orientation": "horizontal",
      "aria-valuemin": "1",
      "aria-valuemax": String(steps),
    }, []);
    host.addEventListener("pointermove", (event) => this.show(this.stepAt(event)));
    host.addEventListener("pointerdown", (event) => this.select(this.stepAt(event)));
    host.addEventListener("pointerleave", () => this.show(this.selected));
    host.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(host);
    this.draw();
    this.select(this.selected);
  }

  draw() {
    const width = Math.max(280, this.host.clientWidth);
    if (width === this.width) return;
    this.width = width;
    const most = Math.max(1, ...before.hill, ...after.hill, report.bound) / UNIT_BYTES;
    this.x = (step) => MARGIN.left + (step * (width - MARGIN.left - MARGIN.right)) / steps;
    const inner = HEIGHT - MARGIN.top - MARGIN.bottom;
    this.y = (bytes) => MARGIN.top + inner * (1 - bytes / UNIT_BYTES / (most * 1.04));
    const floor = this.y(0);
    const parts = [];
    for (const value of ticks(most, 5)) {
      const y = this.y(value * UNIT_BYTES);
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      const label = { class: "chart-text", x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" };
      parts.push(svg("text", label, String(Number(value.toPrecision(4)))));
    }
    const every = ticks(steps, width < 500 ? 3 : 8).filter((s) => Number.isInteger(s) && s > 0);
    for (const step of every) {
      const anchor = this.x(step) > width - 30 ? "end" : "middle";
      const label = { class: "chart-text", x: this.x(step - 0.5), y: floor + 18, "text-anchor": anchor };
      parts.push(svg("text", label, step.toLocaleString("en-US")));
    }
    parts.push(svg("text", { class: "chart-text", x: 0, y: floor + 18 }, "step"));
    parts.push(svg("text", { class: "chart-text", x: 0, y: MARGIN.top + 4 }, UNIT));
    for (const { name, run } of RUNS) {
      const line = this.line(run.hill);
      const end = `V${floor}H${MARGIN.left}Z`;
      parts.push(svg("path", { class: `area ${name}`, d: line + end }));
      const dense = steps > width / 2 ? " dense" : "";
      parts.push(svg("path", { class: `curve ${name}${dense}`, d: line }));
    }
    const bound = this.y(report.bound);
    parts.push(svg("line", { class: "bound", x1: MARGIN.left, x2: width - MARGIN.right, y1: bound, y2: bound }));
    for (const { name, run } of RUNS) {
      if (run.peak < 0) continue;
      const place = { cx: this.x(run.peak + 0.5), cy: this.y(run.hill[run.peak]), r: 4.5 };
      parts.push(svg("circle", { class: `dot ${name}`, ...place }));
    }
    this.cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: floor });
    this.marks = RUNS.map(({ name }) => svg("circle", { class: `dot ${name}`, r: 3.5 }));
    parts.push(this.cursor, ...this.marks);
    this.host.replaceChildren(
      svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" }, ...parts),
    );
    if (this.shown !== undefined) this.show(this.shown);
  }

  /** A step curve: each op as wide as every other, as high as memory while it runs. */
  line(hills) {
    let path = `M${MARGIN.left} ${this.y(0).toFixed(1)}`;
    let last = null;
    hills.forEach((hill, step) => {
      if (hill === last) return;
      path += `H${this.x(step).toFixed(1)}V${this.y(hill).toFixed(1)}`;
      last = hill;
    });
    return `${path}H${this.x(steps).toFixed(1)}`;
  }

  stepAt(event) {
    const box = this.host.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.width) / box.width;
    const share = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    return Math.min(steps - 1, Math.max(0, Math.floor(share * steps)));
  }

  onKey(event) {
    const page = Math.max(1, Math.round(steps / 20));
    const moves = {
      ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1,
      PageDown: -page, PageUp: page, Home: -steps, End: steps,
    };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.move(moves[event.key]);
  }

  move(by) {
    this.select(Math.min(steps - 1, Math.max(0, this.selected + by)));
  }

  select(step) {
    this.selected = step;
    this.show(step);
    const said = RUNS.map(({ name, run }) =>
      `${name}: ${ops.name[run.order[step]]}, ${figure(run.hill[step])} ${UNIT}`);
    this.host.setAttribute("aria-valuenow", String(step + 1));
    this.host.setAttribute("aria-valuetext", `${stepName(step)}; ${said.join("; ")}`);
  }

  show(step) {
    this.shown = step;
    const x = this.x(step + 0.5);
    fill(this.cursor, { x1: x, x2: x }, []);
    RUNS.forEach(({ run }, i) => fill(this.marks[i], { cx: x, cy: this.y(run.hill[step]) }, []));
    inspect(step);
  }
}

const stepName = (step) =>
  `step ${(step + 1).toLocaleString("en-US")} of ${steps.toLocaleString("en-US")}`;

const MOST_ALIVE = 8;

/** How many lines a card may need, so that the page does not move under the pointer. */
const CARD_LINES = Math.min(MOST_ALIVE, Math.max(0, ...RUNS.map(({ run }) => {
  const change = new Int32Array(steps + 1);
  run.first.forEach((first, b) => {
    if (run.last[b] < first) return;
    ++change[first];
    --change[run.last[b] + 1];
  });
  let count = 0;
  return change.reduce((most, delta) => Math.max(most, (count += delta)), 0);
}))) + 2;

function inspect(step) {
  const cards = RUNS.map(({ name, title, run }) => {
    const op = run.order[step];
    const found = alive(run, step);
    const shown = found.slice(0, MOST_ALIVE);
    const rest = found.slice(MOST_ALIVE);
    const most = Math.max(1, run.scratch[op], ...shown.map((b) => buffers.bytes[b]));
    const items = shown.map((b) =>
      html("li", {},
        html("span", { class: "name", title: `${madeBy(b)} ${shapeOf(b)}` },
          html("code", {}, madeBy(b)), " ", html("span", { class: "shape" }, shapeOf(b))), " ",
        bar("track", 0, buffers.bytes[b], most),
        html("span", { class: "size" }, figure(buffers.bytes[b]))));
    if (run.scratch[op] > 0) {
      items.push(html("li", {},
        html("span", { class: "name" }, "scratch memory"),
        bar("track", 0, run.scratch[op], most),
        html("span", { class: "size" }, figure(run.scratch[op]))));
    }
    if (rest.length > 0) {
      const bytes = rest.reduce((sum, b) => sum + buffers.bytes[b], 0);
      items.push(html("li", { class: "more" },
        html("span", { class: "name" }, `and ${rest.length} more`),
        html("span"),
        html("span", { class: "size" }, figure(bytes))));
    }
    const list = html("ul", { class: "alive", "aria-label": "Buffers alive, largest first" }, ...items);
    list.style.minHeight = `${CARD_LINES * 1.7}em`;
    return html("article", { class: `card ${name}`, "aria-label": title },
      html("header", {},
        html("span", {}, title),
        html("span", {}, stepName(step))),
      html("p", { class: "what" },
        html("code", {}, ops.name[op]),
        html("span", {}, `${figure(run.hill[step])} ${UNIT}`)),
      html("p", { class: "where" },
        text(ops.module[op]), text(ops.module[op]) ? html("br") : null,
        sourceOf(op)),
      list);
  });
  document.getElementById("inspector").replaceChildren(...cards);
}

// --- addresses over time -------------------------------------------------------------------------

function showArena(host) {
  const { arena } = report;
  if (arena.block.length === 0) {
    host.closest("section").hidden = true;
    return;
  }
  const said = document.getElementById("arena-block");
  const nameOf = (i) => {
    const block = arena.block[i];
    const what = block < 0 ? `scratch memory of ${ops.name[-1 - block]}` : madeBy(block);
    const op = block < 0 ? -1 - block : buffers.op[block];
    return [
      what,
      block < 0 ? "" : shapeOf(block),
      `${figure(arena.bytes[i])} ${UNIT} at ${figure(arena.offset[i])}`,
      `steps ${range([arena.begin[i] + 1, arena.end[i]])}`,
      op < 0 ? "" : text(ops.module[op]),
      op < 0 ? "" : shortSource(text(ops.source[op])),
    ].filter(Boolean).join(", ");
  };
  // Units of the picture are steps and shares of the height: it is drawn once, and stretched.
  const boxes = arena.block.map((block, i) => svg("rect", {
    class: block < 0 ? "block scratch" : `block shade-${block % 3}`,
    x: arena.begin[i],
    y: 1000 * (1 - (arena.offset[i] + arena.bytes[i]) / arena.height),
    width: arena.end[i] - arena.begin[i],
    height: (1000 * arena.bytes[i]) / arena.height,
    "data-block": i,
  }));
  const show = (event) => {
    const block = event.target.dataset.block;
    said.textContent = block === undefined ? "\u00a0" : nameOf(Number(block));
  };
  host.addEventListener("pointermove", show);
  host.addEventListener("pointerdown", show);
  const label = `${counted(boxes.length, "block")} in an arena of ${figure(arena.height)} ${UNIT}`;
  host.append(svg("svg", {
    viewBox: `0 0 ${steps} 1000`, preserveAspectRatio: "none", role: "img", "aria-label": label,
  }, ...boxes), html("p", { class: "note" }, label));
}

// --- buffers alive at the peak -------------------------------------------------------------------

const FEW_ROWS = 12;

function bufferTable(host, { name, title, run }) {
  if (run.peak < 0) return;
  const rows = alive(run, run.peak);
  const op = run.order[run.peak];
  const bytes = rows.reduce((sum, b) => sum + buffers.bytes[b], 0);
  const scratch = run.scratch[op];
  const caption = html("p", { class: "caption", id: `caption-${name}` },
    html("strong", {}, title), `: ${counted(rows.length, "buffer")} of ${figure(bytes)} ${UNIT} while `,
    html("code", {}, ops.name[op]), ` runs at step ${run.peak + 1}`,
    scratch > 0 ? `, and ${figure(scratch)} ${UNIT} of its scratch memory` : "");
  host.append(caption);
  if (rows.length === 0) return;
  const opOf = (b) => buffers.op[b];
  const opText = (b, column) => (opOf(b) < 0 ? "" : text(ops[column][opOf(b)]));
  const life = (b) => `${run.first[b] + 1}\u2013${run.last[b] + 1}`;
  const every = [
    { title: "Buffer", key: (b) => buffers.name[b], cell: (b) => html("code", {}, buffers.name[b]) },
    { title: UNIT, number: true, key: (b) => buffers.bytes[b], cell: (b) => figure(buffers.bytes[b]) },
    { title: "Shape", key: shapeOf, cell: shapeOf, fixed: true },
    { title: "Type", key: (b) => text(buffers.dtype[b]), cell: (b) => text(buffers.dtype[b]) },
    {
      title: "Made by",
      key: opOf,
      cell: (b) => html("code", {}, opOf(b) < 0 ? "the caller" : ops.name[opOf(b)]),
    },
    { title: "Module", key: (b) => opText(b, "module"), cell: (b) => opText(b, "module") },
    {
      title: "Source",
      key: (b) => opText(b, "source"),
      cell: (b) => (opOf(b) < 0 ? "" : sourceOf(opOf(b))),
    },
    {
      title: "Alive in steps",
      key: (b) => run.last[b] - run.first[b],
      cell: (b) => html("span", {},
        life(b) + (buffers.kept[b] ? ", a result" : ""),
        bar("span", run.first[b], run.last[b] + 1, steps)),
      fixed: true,
    },
  ];
  const columns = every.filter((column) => rows.some((b) => column.key(b) !== ""));
  let sorted = columns.findIndex((column) => column.number);
  let descending = true;
  let all = rows.length <= FEW_ROWS + 3;
  const body = html("tbody");
  const heads = columns.map((column, i) => {
    const button = html("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      descending = sorted === i ? !descending : Boolean(column.number);
      sorted = i;
      update();
    });
    return html("th", { scope: "col", class: column.number ? "number" : null }, button);
  });
  const more = html("button", { type: "button", class: "show" }, `Show all ${rows.length}`);
  more.addEventListener("click", () => {
    all = true;
    update();
  });

  function update() {
    const { key } = columns[sorted];
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      return typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
    };
    const inOrder = [...rows].sort((a, b) => (descending ? -1 : 1) * compare(a, b) || a - b);
    heads.forEach((head, i) => {
      if (i === sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren(...inOrder.slice(0, all ? undefined : FEW_ROWS).map((b) =>
      html("tr", {}, ...columns.map((column) => {
        const className = column.number ? "number" : column.fixed ? "fixed" : null;
        return html("td", { class: className }, column.cell(b));
      }))));
    more.hidden = all;
  }

  update();
  const table = html("table", { class: `buffers ${name}` },
    html("thead", {}, html("tr", {}, ...heads)), body);
  const scroll = { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": caption.id };
  host.append(html("div", scroll, table), more);
}

// --- what moved ----------------------------------------------------------------------------------

const CONTEXT = 1; // ops that stayed, shown on each side of moved ones
const LEAST_FOLDED = 4;
const MOST_GROUPS = 50; // until asked for more

/** Neighbours of one kind are a group; ops that stayed lie in one or, in the middle, in three. */
function diffGroups() {
  const groups = [];
  for (const [kind, old, now, count] of report.diff) {
    const rows = Array.from({ length: count }, (_, at) => ({ kind, old: old + at, now: now + at }));
    const last = groups[groups.length - 1];
    if (last && last[0].kind === kind) last.push(...rows);
    else groups.push(rows);
  }
  return groups.flatMap((rows, i) => {
    if (rows[0].kind !== "same") return [rows];
    const head = i === 0 ? 0 : CONTEXT;
    const tail = rows.length - (i === groups.length - 1 ? 0 : CONTEXT);
    if (tail - head < LEAST_FOLDED) return rows.map((row) => [row]);
    const shown = (from, to) => rows.slice(from, to).map((row) => [row]);
    return [...shown(0, head), rows.slice(head, tail), ...shown(tail, rows.length)];
  });
}

const SIGNS = { same: "", from: "\u2212", to: "+" };
const SAID = { same: "", from: "moved from here:", to: "moved to here:" };

function diffLine(kind, old, now, name, place, way) {
  return html("span", { class: `row ${kind}` },
    html("span", { class: "step" }, kind === "to" ? "" : old),
    html("span", { class: "step" }, kind === "from" ? "" : now),
    html("span", { class: "sign" }, html("span", { "aria-hidden": "true" }, SIGNS[kind]),
      SAID[kind] ? html("span", { class: "visually-hidden" }, SAID[kind]) : null),
    name, place, html("span", { class: "way" }, way));
}

function diffRow({ kind, old, now }) {
  const op = before.order[old];
  const module = text(ops.module[op]);
  const place = html("span", { class: "place", title: text(ops.source[op]) || null },
    module || shortSource(text(ops.source[op])));
  const way = { same: "", from: `to step ${now + 1}`, to: `from step ${old + 1}` }[kind];
  const line = diffLine(kind, old + 1, now + 1, html("code", {}, ops.name[op]), place, way);
  return html("div", { role: "listitem" }, line);
}

/** The first and the last, or the one that there is. */
function range(values, between = "\u2013") {
  const [first, last] = [values[0], values[values.length - 1]];
  return first === last ? String(first) : `${first}${between}${last}`;
}

const sortedRange = (values) => range([...values].sort((a, b) => a - b));

function diffGroup(rows) {
  if (rows.length < LEAST_FOLDED) return rows.map(diffRow);
  const { kind } = rows[0];
  const old = rows.map((row) => row.old + 1);
  const now = rows.map((row) => row.now + 1);
  const modules = rows.map((row) => text(ops.module[before.order[row.old]])).filter(Boolean);
  const away = kind === "from" ? now : old;
  const way = { same: "", from: `to steps ${sortedRange(away)}`, to: `from steps ${sortedRange(away)}` }[kind];
  const name = html("span", { class: "fold" }, counted(rows.length, "operation"));
  const place = html("span", { class: "place" }, modules.length ? range(modules, " \u2026 ") : "");
  const summary = html("summary", {}, diffLine(kind, range(old), range(now), name, place, way));
  const inside = () => html("div", { role: "list", class: "inside" }, ...rows.map(diffRow));
  return [html("div", { role: "listitem" }, lazy(summary, inside))];
}

/** A `details` whose content is made when it is first opened. */
function lazy(summary, make, open = false) {
  const details = html("details", {}, summary);
  const build = () => {
    if (details.open && !details.dataset.built) {
      details.dataset.built = "yes";
      details.append(make());
    }
  };
  details.addEventListener("toggle", build);
  if (open) {
    details.open = true;
    build();
  }
  return details;
}

function showDiff(host) {
  if (!report.diff.some(([kind]) => kind !== "same")) return;
  const list = html("div", { class: "diff", role: "list" });
  const groups = diffGroups();
  list.append(...groups.slice(0, MOST_GROUPS).flatMap(diffGroup));
  host.append(list);
  if (groups.length <= MOST_GROUPS) return;
  const more = html("button", { type: "button", class: "show" }, "Show the rest");
  more.addEventListener("click", () => {
    list.append(...groups.slice(MOST_GROUPS).flatMap(diffGroup));
    more.remove();
  });
  host.append(more);
}

// --- region tree ---------------------------------------------------------------------------------

const MOST_OPS = 60;

function showRegions(host) {
  const { nodes, order } = report.regions;
  if (nodes.length === 0) {
    host.closest("section").hidden = true;
    return;
  }
  const children = nodes.map(() => []);
  nodes.forEach((node, i) => node.parent >= 0 && children[node.parent].push(i));
  const line = (first, count, was, now, attributes = {}) =>
    html("span", { class: "line", ...attributes },
      first, html("span", { class: "count" }, count), html("span", {}, was), html("span", { class: "now" }, now));

  function describe(node) {
    const how = [node.method && node.method !== "original" ? `ordered by ${node.method}` : "",
      node.proof ? `proven by ${node.proof}` : ""].filter(Boolean).join(", ");
    const kind = { run: node.count === 1 ? "single operation" : "single operations" }[node.kind] ?? node.kind;
    const title = html("span", {}, html("span", { class: "kind" }, kind),
      how ? html("small", {}, ` ${how}`) : null);
    return line(title, counted(node.count, "op"), figure(node.before), figure(node.after));
  }

  function listed(node) {
    const names = order.slice(node.begin, node.begin + node.count).map((op) => ops.name[op]);
    const rest = names.length - MOST_OPS;
    const shown = names.slice(0, MOST_OPS).join(", ");
    return html("p", { class: "list" }, html("code", {}, shown), rest > 0 ? ` and ${rest} more` : "");
  }

  function build(i, open) {
    const inside = () => children[i].length === 0
      ? listed(nodes[i])
      : html("div", { class: "children" }, ...children[i].map((child) => build(child, false)));
    return lazy(html("summary", {}, describe(nodes[i])), inside, open);
  }

  const head = html("div", { class: "leaf head" },
    line(html("span", {}, "Region"), "Size", `${UNIT} before`, `${UNIT} after`));
  host.append(html("div", { class: "tree" }, head, build(0, true)));
}

// --- all of it -----------------------------------------------------------------------------------

if (steps > 0) {
  const chart = new Chart(document.getElementById("chart"));
  document.getElementById("to-before-peak").addEventListener("click", () => chart.select(before.peak));
  document.getElementById("to-after-peak").addEventListener("click", () => chart.select(after.peak));
  document.getElementById("step-back").addEventListener("click", () => chart.move(-1));
  document.getElementById("step-on").addEventListener("click", () => chart.move(1));
  for (const run of RUNS) bufferTable(document.getElementById(`alive-${run.name}`), run);
  showArena(document.getElementById("arena"));
  showDiff(document.getElementById("moved"));
  showRegions(document.getElementById("regions"));
  // Paper has no buttons: whoever prints gets all rows.
  addEventListener("beforeprint", () => {
    for (const button of document.querySelectorAll("button.show:not([hidden])")) button.click();
  });
} else {
  for (const id of ["memory", "arena", "alive-before", "moved", "regions"]) {
    document.getElementById(id).closest("section").hidden = true;
  }
}

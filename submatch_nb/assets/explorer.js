// The explorer: what can be seen is in the data it is given; Python, where it runs, is asked for v-minimal matches and intervals. Nothing is asked of the network.
// Text that comes from a reader's networks, such as a layer's name, is only ever set as text.

const SVG = ["svg", "g", "path", "line", "rect", "circle", "text", "title"];
const NETWORKS = ["x", "y"];
const NAMES = { x: "a", y: "b" }; // and the classes of their colours

// An element with attributes and children; a string is text.
function element(tag, attributes = {}, ...children) {
  const node = SVG.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const numbers = text => new Float64Array(bytes(text).buffer); // little-endian, as every browser's machine is
const three = value => value.toFixed(3);
const shown = epsilon => Number(three(epsilon)) === epsilon ? three(epsilon) : String(Number(epsilon.toPrecision(6)));
const several = (n, kind) => `${n.toLocaleString("en")} ${kind}${n === 1 ? "" : "s"}`;

// The largest critical epsilon that counts as at most epsilon: `within` in submatch_nb.match, the same operations on the same doubles.
const within = (epsilon, tolerance) => Math.max(epsilon * (1 + tolerance), tolerance);

// How many of the sorted values are at most the limit.
function rank(sorted, limit) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= limit) low = middle + 1; else high = middle;
  }
  return low;
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0); // two infinite values are equal, which their difference would not say

// One layer as it was packed, unpacked: critical values, their order, the simple matches.
function unpack(layer) {
  const critical = { x: numbers(layer.x), y: numbers(layer.y) };
  const sorted = { x: critical.x.slice().sort(), y: critical.y.slice().sort() };
  const order = {};
  for (const side of NETWORKS) order[side] = Array.from(critical[side].keys()).sort((i, j) => compare(critical[side][i], critical[side][j]) || i - j);
  const residual = layer.residual && { x: numbers(layer.residual.x), y: numbers(layer.residual.y) };
  const simple = layer.simple.map(unpackMatches), untrained = layer.untrained && numbers(layer.untrained);
  const known = new Set(simple.flatMap(s => [...s.of.keys()])), last = simple.at(-1)?.epsilon ?? 0;
  const unknown = [...critical.x, ...critical.y].some((c, i) => c <= last && !known.has(i));
  return { ...layer, critical, sorted, order, residual, simple, untrained, known, partial: simple.length > 0 && unknown,
    chance: unpackChance(layer.chance), total: critical.x.length + critical.y.length };
}
const unpackMatches = found => ({ epsilon: found.epsilon, masks: bytes(found.masks), of: new Map(found.of) });
const unpackChance = c => ({ ...c, null: c.null && numbers(c.null),
  any: c.any && { ...c.any, mean: numbers(c.any.mean), lead: numbers(c.any.lead) },
  band: c.band && { low: numbers(c.band.low), high: numbers(c.band.high) },
  interval: c.interval && { sure: numbers(c.interval.sure), possible: numbers(c.interval.possible) } });
const shareOf = (sorted, limit) => rank(sorted, limit) / sorted.length;

// The interval of the similarity: `similarity_interval` in submatch_nb.engine.intervals, from the same numbers.
function intervalAt(layer, limit) {
  const found = layer.chance.interval, inside = share => Math.min(1, Math.max(0, share));
  return found && [inside((rank(found.sure, limit) - 0.5) / layer.total), inside((rank(found.possible, limit) + 0.5) / layer.total)];
}

// Why a number says nothing, in words: the rule of `void_reasons` in submatch_nb.engine.chance.
const trivially = layer => `${layer.critical.x.length} + ${layer.critical.y.length} neurons span ${several(layer.ranks[2], "dimension")} together: any two networks match here`;
function pAtAny(layer, data, observed, epsilon) {
  const { mean, lead } = layer.chance.any, matched = Math.round(observed * layer.total);
  if (!matched) return 1;
  const ahead = mean[matched - 1] - epsilon;
  return (1 + lead.filter(one => one >= ahead - data.tie).length) / (1 + lead.length);
}
function reasons(layer, data, observed, level, epsilon = null) { // of half-ε where no ε is given
  const found = [], whole = n => n.toLocaleString("en"), images = layer.images ?? layer.count;
  if (images <= layer.live) found.push(`${layer.images === null ? "samples" : "images"} ≤ neurons (${whole(images)} ≤ ${whole(layer.live)})`);
  if (layer.trivial) found.push(trivially(layer));
  let p = layer.chance.p;
  if (p !== null && p > data.level && epsilon !== null) {
    p = pAtAny(layer, data, observed, epsilon);
    if (p <= data.level && layer.chance.any.drawn) p = null; // drawn, so the real one has to agree
  }
  if (p !== null) { if (p > data.level) found.push(`p > ${data.level}`); return found; }
  if (level === null) return found;
  const near = epsilon === null ? null : nullAt(layer, within(Math.min(epsilon + data.margin, 1 - 2 ** -53), data.tolerance));
  if ((epsilon === null ? level - observed : observed - level) <= data.margin) found.push(`no more than chance (null ${level.toFixed(2)})`);
  else if (near !== null && observed - near <= data.margin) found.push(`no more than chance (null ${near.toFixed(2)} at an ε ${data.margin} larger)`);
  return found;
}
const nullAt = (layer, limit) => layer.chance.null && shareOf(layer.chance.null, limit);
const reasonsAt = (layer, data, epsilon) => {
  const limit = within(epsilon, data.tolerance);
  return reasons(layer, data, similarity(layer, limit), nullAt(layer, limit), epsilon);
};
const number = (layer, [side, index]) => side === "x" ? index : layer.critical.x.length + index;
const counts = (layer, limit) => ({ x: rank(layer.sorted.x, limit), y: rank(layer.sorted.y, limit) });
const similarity = (layer, limit) => { const n = counts(layer, limit); return (n.x + n.y) / layer.total; };

// The stored v-minimal match of a neuron at the largest stored epsilon that is at most the present one, or null.
function minimalMatch(layer, v, epsilon) {
  const which = number(layer, v), size = Math.ceil(layer.total / 8);
  const found = layer.simple.filter(s => s.epsilon <= epsilon && s.of.has(which)).sort((a, b) => a.epsilon - b.epsilon).at(-1);
  if (!found) return null;
  const mask = found.masks.subarray(found.of.get(which) * size, (found.of.get(which) + 1) * size);
  const has = u => (mask[number(layer, u) >> 3] >> (number(layer, u) & 7)) & 1;
  return { epsilon: found.epsilon, has };
}

// A staircase of the share of values at most each epsilon.
function staircase(sorted, x, y) {
  const parts = [`M${x(0)},${y(rank(sorted, 0) / sorted.length)}`];
  for (let i = rank(sorted, 0); i < sorted.length && sorted[i] < 1; i++) {
    if (sorted[i + 1] === sorted[i]) continue;
    parts.push(`H${x(sorted[i]).toFixed(2)}V${y((i + 1) / sorted.length).toFixed(2)}`);
  }
  return parts.join("") + `H${x(1)}`;
}

// What lies between two staircases.
function band({ low, high }, x, y) {
  const points = sorted => [...sorted].map((e, i) => [x(Math.min(1, e)).toFixed(2), y((i + 1) / sorted.length).toFixed(2)].join(","));
  return `M${points(low).join("L")}L${points(high).reverse().join("L")}Z`;
}

function render({ model, el }) {
  const data = model.get("data"), token = model.get("token");
  for (const node of document.querySelectorAll(".submatch-static")) if (token && node.dataset.token === token) node.remove(); // it stood in
  const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
  const unpacked = new Map();
  const pairNow = () => data.pairs.find(one => same(one.pair, model.get("pair")));
  const layersNow = () => { const one = pairNow(); if (!unpacked.has(one)) unpacked.set(one, one.layers.map(unpack)); return unpacked.get(one); };
  let layers = layersNow();
  const current = () => layers.find(l => l.name === model.get("layer")) ?? layers[0];
  const choose = changes => { for (const [name, value] of Object.entries(changes)) model.set(name, value); model.save_changes(); };
  let over = null;                      // the neuron under the pointer or with the focus
  let cells = {}, lit = { x: 0, y: 0 }; // one element for each neuron, in order; how many are lit
  let plot = null, marks = [], parts = [];

  // What stays
  const labelled = (text, control) => element("label", { class: "layer" }, element("span", { class: "title" }, text), control);
  const pairMenu = element("select", { "aria-label": "Pair of networks" }, ...data.pairs.map((one, i) => element("option", { value: i }, (one.pair ?? ["a", "b"]).join(" and "))));
  const menu = element("select", { "aria-label": data.pairs[0].cross ? "Layer of a" : "Layer" }), other = element("select", { "aria-label": "Layer of b" });
  const menus = [...(data.pairs.length > 1 || data.pairs[0].pair ? [labelled("networks a and b", pairMenu)] : []),
    labelled(data.pairs[0].cross ? "layer of a" : "layer", menu), ...(data.pairs[0].cross ? [labelled("layer of b", other)] : [])];
  const about = element("p", { class: "about" }), verdict = element("p", { class: "verdict" });
  const nullNumber = element("b"), halfNumber = element("b"), halfNull = element("small"), range = element("small");
  const field = element("input", { type: "search", "aria-label": "Find neurons", placeholder: "a12, shared, private, dead", autocomplete: "off", "data-lm-suppress-shortcuts": "true" });
  const hits = element("span", { class: "hits", role: "status" });
  const epsilonNumber = element("b"), similarityNumber = element("b");
  const slider = element("input", { type: "range", min: 0, max: 0.999, step: 0.001, "aria-label": "Tolerance ε", "data-lm-suppress-shortcuts": "true" });
  const curve = element("svg", { role: "img" }), depth = element("svg", { role: "img" });
  const ticks = element("div", { class: "ticks", "aria-hidden": "true" });
  const paper = data.epsilons.map(e => element("button", { type: "button", "aria-label": `ε = ${e}` }, String(e)));
  const detail = element("div", { class: "detail", role: "status" });
  const key = (color, text) => element("span", { class: "key" }, element("i", { style: `border-color: var(--${color})` }), text);
  const titles = {}, grids = {};
  for (const side of NETWORKS) {
    titles[side] = element("p", { class: "title" });
    grids[side] = element("div", { class: "grid", role: "listbox", "aria-label": `Neurons of network ${NAMES[side]}`, "data-lm-suppress-shortcuts": "true" });
  }
  const networks = element("div", { class: "networks" }, ...NETWORKS.map(side => element("div", { class: `network ${NAMES[side]}` }, titles[side], grids[side])));
  const curveTitle = element("p", { class: "title" });
  const root = element("div", { class: "submatch-explorer", role: "group", "aria-label": "Explorer of matches" }, element("div", { class: "body" },
    element("div", { class: "top" },
      ...menus,
      element("p", { class: "number" }, element("span", { class: "title" }, "tolerance ε"), epsilonNumber),
      element("p", { class: "number similarity" }, element("span", { class: "title" }, "similarity"), similarityNumber, range),
      element("p", { class: "number null" }, element("span", { class: "title" }, "null: images shuffled"), nullNumber),
      element("p", { class: "number half" }, element("span", { class: "title" }, "half-ε"), halfNumber, halfNull),
      about, verdict),
    element("div", { class: "curve" }, curveTitle, curve, slider, ticks, element("div", { class: "paper" }, "The paper’s ε:", ...paper)),
    element("div", { class: "depth" }, element("p", { class: "title" }, element("strong", {}, "Depth"), ": every layer at this ε"), depth),
    element("div", { class: "find" }, element("label", {}, "Find neurons ", field), hits), networks, detail));
  curveTitle.append(element("strong", {}, "Share that matches"), key("matched", "both"), key("a", "a"), key("b", "b"),
    ...(data.pairs.some(one => one.layers.some(l => l.chance.null)) ? [key("chance", "null")] : []), ...(data.pairs.some(one => one.layers.some(l => l.untrained)) ? [key("ink", "untrained")] : []));
  el.replaceChildren(root);

  // The curve of one layer, drawn for the width there is
  function drawCurve() {
    const layer = current(), width = Math.max(180, curve.parentNode.clientWidth), height = 210, left = 34, right = 14, top = 10;
    const x = e => left + e * (width - left - right), y = share => top + (1 - share) * (height - top - 2);
    plot = { x, y, left, inner: width - left - right };
    const both = new Float64Array([...layer.critical.x, ...layer.critical.y]).sort();
    curve.setAttribute("height", height);
    const level = s => [element("line", { class: "grid-line", x1: x(0), x2: x(1), y1: y(s), y2: y(s) }), element("text", { x: left - 7, y: y(s) + 4, "text-anchor": "end" }, s ? String(s) : "")];
    curve.replaceChildren(
      element("title"), ...[0, 0.25, 0.5, 0.75, 1].flatMap(level),
      ...data.epsilons.map(e => element("line", { class: "paper-line", x1: x(e), x2: x(e), y1: y(0), y2: y(1) })),
      ...(layer.chance.band ? [element("path", { class: "band", d: band(layer.chance.band, x, y) })] : []),
      ...(layer.chance.null ? [element("path", { class: "line null", d: staircase(layer.chance.null, x, y) })] : []),
      ...(layer.untrained ? [element("path", { class: "line untrained", d: staircase(layer.untrained, x, y) })] : []),
      element("path", { class: "line a", d: staircase(layer.sorted.x, x, y) }), element("path", { class: "line b", d: staircase(layer.sorted.y, x, y) }),
      element("path", { class: "line both", d: staircase(both, x, y) }));
    marks = [element("line", { class: "here" }), element("circle", { class: "dot", r: 6 })];
    curve.append(...marks);
    slider.style.width = `${plot.inner + 24}px`; // the middle of the thumb is 12 px from the end: it stands where the curve says
    slider.style.marginLeft = `${left - 12}px`;
    ticks.replaceChildren(...[0, 0.2, 0.4, 0.6, 0.8, 1].map(e => {
      const tick = element("span", {}, String(e));
      tick.style.left = `${x(e)}px`;
      return tick;
    }));
  }

  // A column for each layer
  function drawDepth() {
    if (pairNow().cross) { drawCross(); return; }
    const width = Math.max(180, depth.parentNode.clientWidth), count = layers.length, step = width / count;
    const longest = Math.max(...layers.map(l => l.short.length)), upright = longest * 6.2 + 8 > step;
    const room = upright ? Math.min(90, longest * 7 + 12) : 22, bar = Math.max(2, Math.min(38, step - 3));
    const bottom = 208; // where the curve has its 0
    depth.setAttribute("height", bottom + room);
    plot.depth = { bottom, tall: bottom - 10 };
    parts = layers.map((l, i) => {
      const chance = element("line", { class: "chance-mark", x1: (i + 0.5) * step - bar / 2, x2: (i + 0.5) * step + bar / 2 });
      const middle = (i + 0.5) * step, share = element("rect", { class: "share", x: middle - bar / 2, width: bar });
      const label = upright ? { transform: `translate(${middle + 4},${bottom + 9}) rotate(-90)`, "text-anchor": "end" } : { x: middle, y: bottom + 18, "text-anchor": "middle" };
      const name = l.short.length > 13 ? l.short.slice(0, 12) + "…" : l.short;
      const column = element("g", { class: "column" }, element("title", {}, l.name),
        element("rect", { class: "track", x: middle - bar / 2, width: bar, y: 10, height: bottom - 10 }), share, ...(l.chance.null ? [chance] : []),
        element("rect", { class: "under", x: middle - bar / 2, width: bar, y: bottom + 1, height: 3 }),
        ...(upright && step < 11 ? [] : [element("text", label, name)]));
      column.addEventListener("click", () => choose({ selected: null, layer: l.name }));
      return { column, share, chance };
    });
    depth.replaceChildren(element("title"), ...parts.map(p => p.column));
  }

  // A cell for each pair of layers, input at the lower left
  function drawCross() {
    const width = Math.max(180, depth.parentNode.clientWidth), rows = [...new Set(layers.map(l => l.names[0]))], columns = [...new Set(layers.map(l => l.names[1]))];
    const size = Math.min(width / columns.length, 208 / rows.length);
    depth.setAttribute("height", rows.length * size + 20);
    parts = layers.map(l => {
      const cell = element("rect", { class: "share", x: columns.indexOf(l.names[1]) * size, y: (rows.length - 1 - rows.indexOf(l.names[0])) * size, width: size - 1, height: size - 1 });
      const column = element("g", { class: "column" }, element("title", {}, l.name), cell);
      column.addEventListener("click", () => choose({ selected: null, layer: l.name }));
      return { column, cell };
    });
    depth.replaceChildren(element("title"), ...parts.map(p => p.column), element("text", { x: 0, y: rows.length * size + 15 }, "up: layers of a; right: layers of b"));
  }

  // The neurons of one layer, by critical epsilon
  function drawGrids() {
    const layer = current(), most = Math.max(layer.order.x.length, layer.order.y.length);
    for (const side of NETWORKS) {
      grids[side].style.setProperty("--size", `${most <= 64 ? 20 : most <= 128 ? 16 : most <= 256 ? 12 : most <= 600 ? 9 : 6}px`);
      const grid = grids[side], blank = element("span", { role: "option", "aria-selected": "false", tabindex: -1 });
      while (grid.childElementCount > layer.order[side].length) grid.lastChild.remove();
      while (grid.childElementCount < layer.order[side].length) grid.append(blank.cloneNode());
      cells[side] = [...grid.children];
      cells[side].forEach((cell, place) => {
        const index = layer.order[side][place], critical = layer.critical[side][index];
        cell.className = critical === Infinity ? "dead" : layer.partial && layer.known.has(number(layer, [side, index])) ? "drawn" : "";
        cell.setAttribute("data-neuron", index);
        cell.setAttribute("aria-label", `${NAMES[side]}${index}, ${critical === Infinity ? "dead" : critical >= 1 ? "in no match" : `critical ε ${three(critical)}`}`);
      });
      lit[side] = 0;
      reach(side, 0);
    }
  }

  // The one neuron of a network that Tab reaches
  function reach(side, place) {
    grids[side].querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    cells[side][place].setAttribute("tabindex", 0);
  }

  // What changes with epsilon
  function showEpsilon() {
    const layer = current(), epsilon = model.get("epsilon"), limit = within(epsilon, data.tolerance), n = counts(layer, limit), share = similarity(layer, limit);
    slider.value = epsilon;
    slider.setAttribute("aria-valuetext", `ε ${shown(epsilon)}, similarity ${three(share)}`);
    epsilonNumber.textContent = shown(epsilon);
    similarityNumber.textContent = three(share);
    marks[0].setAttribute("x1", plot.x(epsilon)); marks[0].setAttribute("x2", plot.x(epsilon));
    marks[0].setAttribute("y1", plot.y(0)); marks[0].setAttribute("y2", plot.y(share));
    marks[1].setAttribute("cx", plot.x(epsilon)); marks[1].setAttribute("cy", plot.y(share));
    curve.firstChild.textContent = `Share of the neurons of ${layer.name} that match, against ε: ${three(share)} at ε = ${shown(epsilon)}`;
    paper.forEach((button, i) => button.setAttribute("aria-pressed", data.epsilons[i] === epsilon));
    const shares = layers.map(l => similarity(l, limit));
    parts.forEach(({ column, share, chance, cell }, i) => {
      const l = layers[i];
      if (cell) cell.setAttribute("fill-opacity", 0.08 + 0.92 * shares[i]);
      else {
        const tall = shares[i] * plot.depth.tall, level = plot.depth.bottom - (nullAt(l, limit) ?? 0) * plot.depth.tall;
        share.setAttribute("y", plot.depth.bottom - tall); share.setAttribute("height", tall);
        chance.setAttribute("y1", level); chance.setAttribute("y2", level);
      }
      column.setAttribute("class", `column${l.name === layer.name ? " current" : ""}${reasonsAt(l, data, epsilon).length ? " hollow" : ""}`);
    });
    showChance(layer, limit, share);
    depth.firstChild.textContent = `Similarity at ε = ${shown(epsilon)}, from input to output: ` + layers.map((l, i) => `${l.name} ${three(shares[i])}`).join(", ");
    for (const side of NETWORKS) {
      const from = Math.min(lit[side], n[side]), to = Math.max(lit[side], n[side]);
      for (let i = from; i < to; i++) cells[side][i].classList.toggle("lit", n[side] > lit[side]);
      lit[side] = n[side];
      titles[side].replaceChildren(element("strong", {}, `Network ${NAMES[side]}`), `: ${n[side]} of ${layer.order[side].length} match`);
    }
    if (field.value) showSought();
    showNeuron();
  }

  // What the numbers must be read with
  function showChance(layer, limit, share) {
    const chance = layer.chance, level = nullAt(layer, limit), between = intervalAt(layer, limit), range2 = ([low, high]) => `${three(low)} to ${three(high)}`;
    const why = reasonsAt(layer, data, model.get("epsilon")), halfWhy = reasons(layer, data, chance.half, chance.nullHalf);
    range.textContent = between ? `95 %: ${range2(between)}` : "";
    nullNumber.textContent = level === null ? "none" : three(level);
    halfNumber.textContent = three(chance.half);
    halfNull.textContent = [chance.nullHalf === null ? "" : `null ${three(chance.nullHalf)}`, chance.halfInterval ? `95 %: ${range2(chance.halfInterval)}` : "", halfWhy.length ? "void" : ""].filter(Boolean).join("; ");
    root.classList.toggle("void", why.length > 0);
    const parts = [why.length ? `Void at this ε: ${why.join("; ")}.` : ""];
    const p = chance.p === null ? "" : `p = ${chance.p.toPrecision(2)} of half-ε among ${chance.shuffles} shuffles${chance.any.drawn ? " drawn from the moments" : ""}`;
    if (level === null) parts.push(`This comparison has no null, ${p ? `only ${p}` : "so nothing here tells what chance gives"}: compare again, with null=1, which compare does by itself.`);
    else parts.push(`Null: ${[chance.about || "images shuffled", p].filter(Boolean).join("; ")}.`);
    if (chance.pending && !can) parts.push("Interval and p value take time: with Python running, or with save_html(comparison, path, seconds=600), they stand here.");
    verdict.textContent = parts.filter(Boolean).join(" ");
  }

  // The neurons that are sought: by number, or by what they are
  function sought(layer, limit) {
    const words = field.value.trim().toLowerCase().split(/[\s,]+/).filter(Boolean), tests = [], numbersSought = [];
    for (const word of words) {
      const named = /^([ab]?)(\d+)$/.exec(word), kinds = ["shared", "private", "dead"].filter(kind => kind.startsWith(word));
      if (word === "a" || word === "b") tests.push(side => NAMES[side] === word);
      else if (named) numbersSought.push((side, index) => (!named[1] || NAMES[side] === named[1]) && index === Number(named[2]));
      else if (kinds.length) tests.push((side, index) => {
        const c = layer.critical[side][index];
        return kinds[0] === "dead" ? c === Infinity : kinds[0] === "shared" ? c <= limit : c > limit && c < Infinity;
      });
      else return null;
    }
    return (side, index) => tests.every(f => f(side, index)) && (!numbersSought.length || numbersSought.some(f => f(side, index)));
  }
  let found = [];
  function showSought() {
    const layer = current(), test = sought(layer, within(model.get("epsilon"), data.tolerance)), any = field.value.trim() !== "";
    found = [];
    for (const side of NETWORKS) layer.order[side].forEach((index, place) => {
      const inside = any && test !== null && test(side, index), out = any && test !== null && !inside;
      if (inside) found.push(cells[side][place]);
      if (cells[side][place].classList.contains("out") !== out) cells[side][place].classList.toggle("out", out);
    });
    hits.textContent = !any ? "" : test === null ? "Give numbers such as a12 or 7, and shared, private, dead, a, b." : `${several(found.length, "neuron")}${found.length ? "; Enter goes to the first" : ""}`;
  }

  // Python is asked one thing at a time, and only where it runs
  const can = typeof model.send === "function";
  let asked = null, waiting = null, refused = new Map();
  function ask(question) {
    if (!can || asked) return;
    asked = { ...question, pair: model.get("pair") ?? null, layer: current().name };
    model.send(asked);
  }
  const keyOf = (layer, v, epsilon) => `${JSON.stringify(model.get("pair"))} ${layer.name} ${v.join("")} ${epsilon}`;
  function wonder() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const layer = current(), v = over ?? model.get("selected"), epsilon = model.get("epsilon");
      if (wanted(layer, v, epsilon)) ask({ ask: "match", v, epsilon });
      else if (layer.chance.pending) ask({ ask: "chance" });
      if (asked) showNeuron();
    }, 150);
  }
  const wanted = (layer, v, epsilon) => can && v && layer.moments && layer.critical[v[0]][v[1]] <= within(epsilon, data.tolerance)
    && !layer.simple.some(s => s.epsilon === epsilon && s.of.has(number(layer, v))) && !refused.has(keyOf(layer, v, epsilon));
  function hear(reply) {
    if (!reply || !reply.ask) return;
    const one = data.pairs.find(p => same(p.pair, reply.pair)), layer = unpacked.get(one)?.find(l => l.name === reply.layer);
    asked = null;
    if (!layer) return;
    if (reply.chance) { layer.chance = unpackChance(reply.chance); if (layer === current()) { drawCurve(); drawDepth(); showEpsilon(); } }
    else if (reply.simple) layer.simple.push(unpackMatches(reply.simple));
    else if (reply.why && reply.v) refused.set(keyOf(layer, reply.v, reply.epsilon), reply.why);
    else if (reply.why) layer.chance.pending = false;
    showNeuron();
    wonder();
  }

  // What changes with the neuron looked at
  function showNeuron() {
    const layer = current(), chosen = model.get("selected"), v = over ?? chosen, epsilon = model.get("epsilon");
    const match = v && minimalMatch(layer, v, epsilon), size = { x: 0, y: 0 };
    networks.classList.toggle("picked", Boolean(match));
    for (const side of NETWORKS) layer.order[side].forEach((index, place) => {
      const cell = cells[side][place], isV = Boolean(v) && v[0] === side && v[1] === index, inside = Boolean(match && match.has([side, index]));
      size[side] += inside;
      if (cell.classList.contains("part") !== inside) cell.classList.toggle("part", inside);
      if (cell.classList.contains("chosen") !== isV) cell.classList.toggle("chosen", isV);
      const selected = String(Boolean(chosen) && chosen[0] === side && chosen[1] === index);
      if (cell.getAttribute("aria-selected") !== selected) cell.setAttribute("aria-selected", selected);
    });
    detail.replaceChildren(...(v ? describe(layer, v, epsilon, match, size) : introduce(layer)));
    if (can && (wanted(layer, v, epsilon) || layer.chance.pending)) wonder();
  }

  const line = (...children) => element("p", {}, ...children);
  const quiet = text => { const p = line(text); p.className = "quiet"; return p; };

  const howToGet = layer => layer.moments ? "In a notebook with Python running, explore(comparison) searches when you point at a neuron; save_html(comparison, path, seconds=600) searches longer beforehand."
    : "It was saved without its moments: compare again, and explore that, or save it with save(path, moments=True).";
  function introduce(layer) {
    return [line("Point at a neuron, or move to one with the arrow keys, to see what it takes to explain it. Click to keep it."),
      quiet("Squares are neurons by critical ε, the ε from which each matches; filled ones match now, dotted ones are dead." +
        (can && layer.moments ? " A v-minimal match, which holds the neuron and no smaller match inside it does, is searched for where you rest." :
          layer.partial ? " Round ones come with a v-minimal match: it holds the neuron, and no smaller match inside it does. The others were not searched for. " + howToGet(layer) :
          layer.simple.length ? "" : ![...layer.critical.x, ...layer.critical.y].some(c => c <= Math.max(...data.epsilons)) ? " None matches at the paper’s ε." : " No v-minimal matches were stored with this page. " + howToGet(layer)))];
  }

  function describe(layer, v, epsilon, match, size) {
    const [side, index] = v, other = side === "x" ? "y" : "x", critical = layer.critical[side][index], name = element("b", {}, `${NAMES[side]}${index}`);
    if (critical === Infinity) return [line(name, " is dead: 0 on every sample, and in no match.")];
    const facts = critical >= 1 ? " is in no match below ε = 1" : critical <= within(epsilon, data.tolerance) ? ` matches now: critical ε ${three(critical)}` : ` does not match yet: critical ε ${three(critical)}`;
    const busy = wanted(layer, v, epsilon) ? " Searching for a v-minimal match at this ε …" : "";
    const rest = layer.residual ? `, residual ${three(layer.residual[side][index])} on all of ${NAMES[other]}.` : ".";
    return [line(name, facts, rest, busy), match
      ? line("A v-minimal match of it, so that no smaller match inside holds it: ", element("b", {}, `${size.x} in A, ${size.y} in B`), `, minimal at ε = ${match.epsilon}` +
          (match.epsilon === epsilon ? "." : ", the closest stored ε at or below this one."))
      : quiet(busy ? "" : unknown(layer, v, critical, epsilon))];
  }

  function unknown(layer, v, critical, epsilon) {
    const why = refused.get(keyOf(layer, v, epsilon)), next = layer.simple.find(s => s.of.has(number(layer, v)));
    if (why) return why;
    if (can && layer.moments) return "";
    if (next) return `A v-minimal match of it is stored from ε = ${next.epsilon} on.`;
    if (!layer.simple.length) return "No v-minimal matches were stored with this page. " + howToGet(layer);
    if (critical > layer.simple.at(-1).epsilon) return `It is in no match at the stored ε, ${layer.simple.map(s => s.epsilon).join(", ")}.`;
    return "No v-minimal match of it was searched for in the time there was. " + howToGet(layer);
  }

  function fillMenus() {
    const layer = current(), options = (select, names, chosen) => {
      select.replaceChildren(...names.map((name, i) => element("option", { value: i }, name)));
      select.value = String(names.indexOf(chosen));
    };
    pairMenu.value = String(data.pairs.indexOf(pairNow()));
    if (!pairNow().cross) options(menu, layers.map(l => l.name), layer.name);
    else {
      options(menu, [...new Set(layers.map(l => l.names[0]))], layer.names[0]);
      options(other, layers.filter(l => l.names[0] === layer.names[0]).map(l => l.names[1]), layer.names[1]);
    }
  }

  function showLayer() {
    layers = layersNow();
    const layer = current();
    over = null;
    fillMenus();
    const n = [layer.order.x.length, layer.order.y.length];
    about.textContent = `${n[0]} + ${several(n[1], layer.kind)}, ${several(layer.count, "sample")}${layer.images === null ? "" : `, ${several(layer.images, "image")}`}` +
      (layer.ranks ? `; ranks ${layer.ranks[0]} and ${layer.ranks[1]}, together ${layer.ranks[2]}` : "") + (layer.centered ? "; centred: affine matches" : "") + (layer.positions === "all" ? "" : `; positions ${layer.positions}`);
    drawCurve(); drawDepth(); drawGrids(); showEpsilon(); if (field.value) showSought();
  }

  // What the reader does
  const set = epsilon => choose({ epsilon: Math.min(999, Math.max(0, Math.round(epsilon * 1000))) / 1000 });
  slider.addEventListener("input", () => set(slider.valueAsNumber));
  slider.addEventListener("keydown", event => {
    const by = { ArrowRight: 0.005, ArrowUp: 0.005, ArrowLeft: -0.005, ArrowDown: -0.005, PageUp: 0.05, PageDown: -0.05 }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    set(model.get("epsilon") + (event.shiftKey ? by / 5 : by));
  });
  const drag = event => set((event.clientX - curve.getBoundingClientRect().left - plot.left) / plot.inner);
  curve.addEventListener("pointerdown", event => { curve.setPointerCapture(event.pointerId); drag(event); });
  curve.addEventListener("pointermove", event => { if (curve.hasPointerCapture(event.pointerId)) drag(event); });
  paper.forEach((button, i) => button.addEventListener("click", () => choose({ epsilon: data.epsilons[i] })));
  const named = (a, b) => layers.find(l => l.names[0] === a && l.names[1] === b) ?? layers.find(l => l.names[0] === a);
  menu.addEventListener("change", () => {
    const rows = [...new Set(layers.map(l => l.names[0]))];
    choose({ selected: null, layer: (pairNow().cross ? named(rows[menu.value], current().names[1]) : layers[menu.value]).name });
  });
  other.addEventListener("change", () => choose({ selected: null, layer: layers.filter(l => l.names[0] === current().names[0])[other.value].name }));
  pairMenu.addEventListener("change", () => choose({ selected: null, pair: data.pairs[pairMenu.value].pair }));
  field.addEventListener("input", showSought);
  field.addEventListener("keydown", event => {
    if (event.key === "Enter" && found.length) { event.preventDefault(); const side = grids.x.contains(found[0]) ? "x" : "y"; reach(side, cells[side].indexOf(found[0])); found[0].focus(); }
    else if (event.key === "Escape") { field.value = ""; showSought(); }
  });
  for (const side of NETWORKS) {
    const of = target => target.dataset.neuron === undefined ? null : [side, Number(target.dataset.neuron)];
    const look = v => { over = v; showNeuron(); };
    const pick = v => {
      const chosen = model.get("selected"), again = chosen && chosen[0] === v[0] && chosen[1] === v[1];
      if (again) over = null;
      choose({ selected: again ? null : v });
    };
    grids[side].addEventListener("pointerover", event => { if (event.pointerType !== "touch") look(of(event.target) ?? over); });
    grids[side].addEventListener("pointerleave", () => look(null));
    grids[side].addEventListener("focusin", event => look(of(event.target)));
    grids[side].addEventListener("focusout", () => look(null));
    grids[side].addEventListener("click", event => { if (of(event.target)) pick(of(event.target)); });
    grids[side].addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const all = cells[side], place = all.indexOf(event.target), row = all.filter(cell => cell.offsetTop === all[0].offsetTop).length;
      if (event.key === "Enter" || event.key === " ") pick(of(event.target));
      else if (event.key === "Escape") { over = null; choose({ selected: null }); showNeuron(); }
      else {
        const to = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + row, ArrowUp: place - row, Home: 0, End: all.length - 1 }[event.key];
        if (to === undefined) return;
        const next = Math.min(all.length - 1, Math.max(0, to));
        reach(side, next);
        all[next].focus();
      }
      event.preventDefault();
    });
  }

  // What Python does, and the width of the page
  const listeners = { "change:epsilon": showEpsilon, "change:layer": showLayer, "change:pair": showLayer, "change:selected": showNeuron };
  for (const [name, f] of Object.entries(listeners)) model.on(name, f);
  if (can) model.on("msg:custom", hear);
  let width = 0;
  const resize = new ResizeObserver(() => {
    if (root.clientWidth === width || !root.clientWidth) return;
    width = root.clientWidth;
    drawCurve(); drawDepth(); showEpsilon();
  });
  showLayer();
  resize.observe(root);
  return () => {
    resize.disconnect();
    clearTimeout(waiting);
    if (can) model.off("msg:custom", hear);
    for (const [name, f] of Object.entries(listeners)) model.off(name, f);
  };
}

export default { render };

// The explorer: everything that can be seen is in the data it is given, so nothing is asked of Python or of the network.
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
  const simple = layer.simple.map(found => ({ epsilon: found.epsilon, masks: bytes(found.masks), of: new Map(found.of) }));
  return { ...layer, critical, sorted, order, residual, simple, total: critical.x.length + critical.y.length };
}
const number = (layer, [side, index]) => side === "x" ? index : layer.critical.x.length + index;
const counts = (layer, limit) => ({ x: rank(layer.sorted.x, limit), y: rank(layer.sorted.y, limit) });
const similarity = (layer, limit) => { const n = counts(layer, limit); return (n.x + n.y) / layer.total; };

// The stored v-minimal match of a neuron at the largest stored epsilon that is at most the present one, or null.
function minimalMatch(layer, v, epsilon) {
  const which = number(layer, v), size = Math.ceil(layer.total / 8);
  const found = layer.simple.filter(s => s.epsilon <= epsilon && s.of.has(which)).at(-1);
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

function render({ model, el }) {
  const data = model.get("data"), layers = data.layers.map(unpack);
  const current = () => layers.find(l => l.name === model.get("layer"));
  const choose = changes => { for (const [name, value] of Object.entries(changes)) model.set(name, value); model.save_changes(); };
  let over = null;                      // the neuron under the pointer or with the focus
  let cells = {}, lit = { x: 0, y: 0 }; // one element for each neuron, in order; how many are lit
  let plot = null, marks = [], parts = [];

  // What stays
  const menu = element("select", { "aria-label": "Layer" }, ...data.layers.map((l, i) => element("option", { value: i }, l.name)));
  const about = element("p", { class: "about" });
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
      element("label", { class: "layer" }, element("span", { class: "title" }, "layer"), menu),
      element("p", { class: "number" }, element("span", { class: "title" }, "tolerance ε"), epsilonNumber),
      element("p", { class: "number similarity" }, element("span", { class: "title" }, "similarity"), similarityNumber),
      about),
    element("div", { class: "curve" }, curveTitle, curve, slider, ticks, element("div", { class: "paper" }, "The paper’s ε:", ...paper)),
    element("div", { class: "depth" }, element("p", { class: "title" }, element("strong", {}, "Depth"), ": every layer at this ε"), depth),
    networks, detail));
  curveTitle.append(element("strong", {}, "Share that matches"), key("matched", "both"), key("a", "a"), key("b", "b"));
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
      ...(layer.chance > 0 && layer.chance < 1 ? [
        element("line", { class: "chance-line", x1: x(layer.chance), x2: x(layer.chance), y1: y(0), y2: y(1) }),
        element("text", { class: "chance", x: x(layer.chance) - 6, y: y(0.5) + 4, "text-anchor": layer.chance > 0.2 ? "end" : "start", dx: layer.chance > 0.2 ? 0 : 12 }, "chance")] : []),
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
    const width = Math.max(180, depth.parentNode.clientWidth), count = data.layers.length, step = width / count;
    const longest = Math.max(...data.layers.map(l => l.short.length)), upright = longest * 6.2 + 8 > step;
    const room = upright ? Math.min(90, longest * 7 + 12) : 22, bar = Math.max(2, Math.min(38, step - 3));
    const bottom = 208; // where the curve has its 0
    depth.setAttribute("height", bottom + room);
    plot.depth = { bottom, tall: bottom - 10 };
    parts = data.layers.map((l, i) => {
      const middle = (i + 0.5) * step, share = element("rect", { class: "share", x: middle - bar / 2, width: bar });
      const label = upright ? { transform: `translate(${middle + 4},${bottom + 9}) rotate(-90)`, "text-anchor": "end" } : { x: middle, y: bottom + 18, "text-anchor": "middle" };
      const name = l.short.length > 13 ? l.short.slice(0, 12) + "…" : l.short;
      const column = element("g", { class: "column" }, element("title", {}, l.name),
        element("rect", { class: "track", x: middle - bar / 2, width: bar, y: 10, height: bottom - 10 }), share,
        element("rect", { class: "under", x: middle - bar / 2, width: bar, y: bottom + 1, height: 3 }),
        ...(upright && step < 11 ? [] : [element("text", label, name)]));
      column.addEventListener("click", () => choose({ selected: null, layer: l.name }));
      return { column, share };
    });
    depth.replaceChildren(element("title"), ...parts.map(p => p.column));
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
        cell.className = critical === Infinity ? "dead" : layer.sampled && layer.simple.some(s => s.of.has(number(layer, [side, index]))) ? "drawn" : "";
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
    parts.forEach(({ column, share }, i) => {
      const tall = shares[i] * plot.depth.tall, l = data.layers[i];
      share.setAttribute("y", plot.depth.bottom - tall); share.setAttribute("height", tall);
      column.setAttribute("class", `column${l.name === layer.name ? " current" : ""}${l.chance <= epsilon ? " hollow" : ""}`);
    });
    depth.firstChild.textContent = `Similarity at ε = ${shown(epsilon)}, from input to output: ` + data.layers.map((l, i) => `${l.name} ${three(shares[i])}`).join(", ");
    for (const side of NETWORKS) {
      const from = Math.min(lit[side], n[side]), to = Math.max(lit[side], n[side]);
      for (let i = from; i < to; i++) cells[side][i].classList.toggle("lit", n[side] > lit[side]);
      lit[side] = n[side];
      titles[side].replaceChildren(element("strong", {}, `Network ${NAMES[side]}`), `: ${n[side]} of ${layer.order[side].length} match`);
    }
    showNeuron();
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
    detail.replaceChildren(...(v ? describe(layer, v, epsilon, match, size) : introduce(layer, epsilon)));
  }

  const line = (...children) => element("p", {}, ...children);
  const quiet = text => { const p = line(text); p.className = "quiet"; return p; };

  function introduce(layer, epsilon) {
    const known = layer.simple.map(s => s.epsilon);
    return [line("Point at a neuron, or move to one with the arrow keys, to see what it takes to explain it. Click to keep it."),
      quiet((layer.chance <= epsilon ? (layer.full ? "One network has no fewer live neurons than there are samples, so all of the other's lie in its span and the similarity says nothing. "
                                                   : "At or above the chance level: random neurons would match as well. ") : "") +
        "Squares are neurons by critical ε, the ε from which each matches; filled ones match now, dotted ones are dead." +
        (layer.sampled && known.length ? ` Round ones, ${layer.sampled} neurons drawn at random (seed 0), come with a v-minimal match: it holds the neuron, and no smaller match inside it does.` : "") +
        (known.length ? "" : " No v-minimal matches were stored with this comparison."))];
  }

  function describe(layer, v, epsilon, match, size) {
    const [side, index] = v, other = side === "x" ? "y" : "x", critical = layer.critical[side][index], name = element("b", {}, `${NAMES[side]}${index}`);
    if (critical === Infinity) return [line(name, " is dead: 0 on every sample, and in no match.")];
    const facts = critical >= 1 ? " is in no match below ε = 1" : critical <= within(epsilon, data.tolerance) ? ` matches now: critical ε ${three(critical)}` : ` does not match yet: critical ε ${three(critical)}`;
    const rest = layer.residual ? `, residual ${three(layer.residual[side][index])} on all of ${NAMES[other]}.` : ".";
    return [line(name, facts, rest), match
      ? line("A v-minimal match of it, so that no smaller match inside holds it: ", element("b", {}, `${size.x} in A, ${size.y} in B`), `, minimal at ε = ${match.epsilon}` +
          (match.epsilon === epsilon ? "." : ", the closest stored ε at or below this one."))
      : quiet(unknown(layer, v, critical))];
  }

  function unknown(layer, v, critical) {
    const next = layer.simple.find(s => s.of.has(number(layer, v)));
    if (next) return `A v-minimal match of it is stored from ε = ${next.epsilon} on.`;
    if (!layer.simple.length) return "No v-minimal matches were stored with this comparison.";
    if (critical > layer.simple.at(-1).epsilon) return `It is in no match at the stored ε, ${layer.simple.map(s => s.epsilon).join(", ")}.`;
    return `No v-minimal match of it is stored: only those of the round ones are, ${layer.sampled} neurons drawn at random (seed 0).`;
  }

  function showLayer() {
    const layer = current();
    over = null;
    menu.value = String(layers.indexOf(layer));
    const n = [layer.order.x.length, layer.order.y.length];
    about.textContent = `${n[0]} + ${several(n[1], layer.kind)}, ${several(layer.count, "sample")}; chance level ε = ${three(layer.chance)}`;
    drawCurve(); drawDepth(); drawGrids(); showEpsilon();
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
  menu.addEventListener("change", () => choose({ selected: null, layer: data.layers[menu.value].name }));
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
  const listeners = { "change:epsilon": showEpsilon, "change:layer": showLayer, "change:selected": showNeuron };
  for (const [name, f] of Object.entries(listeners)) model.on(name, f);
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
    for (const [name, f] of Object.entries(listeners)) model.off(name, f);
  };
}

export default { render };

// The maps of layers and experts, the costs, and the moves through the run.

const GUTTER = 28; // pixels for the layers' numbers
const maps = { "map-token": null, "map-run": null };

function tokenShares() {
  const t = state.token, shares = new Float32Array(data.moe.length * data.n_experts);
  if (t >= N) return shares;
  data.moe.forEach((layer, i) => {
    for (const [e, mix] of expertsOf(layer, t)) shares[i * data.n_experts + e] = mix;
  });
  return shares;
}

function drawMap(id, shares, label, describe) {
  const canvas = $(id), style = getComputedStyle(canvas);
  const E = data.n_experts, rows = data.moe.length;
  const width = canvas.parentElement.clientWidth;
  const wide = Math.min(52, (width - GUTTER) / E), high = rows > 16 ? 5 : 24;
  const height = rows * high + 16, scale = window.devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colour = (name) => style.getPropertyValue(name);
  const most = shares.reduce((a, b) => Math.max(a, b), 0) || 1;
  pen.fillStyle = colour("--empty");
  pen.fillRect(GUTTER, 0, wide * E, rows * high);
  const gap = wide > 6 ? 1 : 0;
  shares.forEach((share, k) => {
    if (!share) return;
    pen.fillStyle = `rgba(${colour("--heat")}, ${0.12 + 0.88 * share / most})`;
    pen.fillRect(GUTTER + (k % E) * wide + gap, Math.floor(k / E) * high + gap,
      Math.max(1, wide - gap), high - gap);
  });
  pen.font = "11px system-ui, sans-serif";
  shares.forEach((share, k) => { // numbers, where there is room for them
    if (!share || wide < 30) return;
    pen.fillStyle = colour(share / most > 0.5 ? "--on-choice" : "--ink");
    pen.textAlign = "center";
    pen.fillText(label(share), GUTTER + (k % E + 0.5) * wide, (Math.floor(k / E) + 0.5) * high + 4);
  });
  pen.textAlign = "start";
  pen.fillStyle = colour("--dim");
  data.moe.forEach((layer, i) => {
    if (rows <= 16 || layer % 10 === 0) pen.fillText(layer, 4, i * high + high / 2 + 4);
  });
  const step = E <= 16 ? 1 : E <= 64 ? 8 : 64;
  for (let e = 0; e < E; e += step) pen.fillText(e, GUTTER + e * wide + 2, rows * high + 13);
  const here = data.moe.indexOf(state.layer);
  if (here >= 0) {
    pen.strokeStyle = colour("--choice");
    pen.lineWidth = 2;
    pen.strokeRect(GUTTER, here * high, wide * E, high);
  }
  maps[id] = { wide, high, describe };
}

function drawMaps() {
  if (!data.moe.length) return;
  $("maps").classList.toggle("wide", data.n_experts > 64);
  const shares = tokenShares(), counts = Float32Array.from(data.counts.values);
  drawMap("map-token", shares, (share) => share.toFixed(2),
    (k) => (shares[k] ? `weight ${shares[k].toFixed(3)}` : "not chosen"));
  drawMap("map-run", counts, (count) => `${count}`,
    (k) => `${counts[k]} of ${data.n_run} tokens (${percent(counts[k] / data.n_run)})`);
  const said = state.token >= N ? ["none"] : data.moe.map((layer) =>
    `layer ${layer}: ${expertsOf(layer, state.token).map(([e]) => e).join(", ")}`);
  $("map-token").setAttribute("aria-label", `Experts of this token, ${said.join("; ")}`);
  $("map-run").setAttribute("aria-label", "How often each expert was chosen, by layer");
  const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);
  put("map-token-read", state.token < N ? `Fullest colour: ${most(shares).toFixed(3)}` : "");
  put("map-run-read", `Fullest colour: ${most(counts)} of ${data.n_run} tokens`);
}

// The cell of a map under the pointer: its layer, expert, and place in the list.
function cellAt(event) {
  const { wide, high } = maps[event.target.id], i = Math.floor(event.offsetY / high);
  const e = Math.floor((event.offsetX - GUTTER) / wide);
  if (i < 0 || i >= data.moe.length || e < 0 || e >= data.n_experts) return null;
  return { layer: data.moe[i], e, k: i * data.n_experts + e };
}

function readMap(event) {
  const cell = maps[event.target.id] && cellAt(event);
  if (!cell) return;
  const { describe } = maps[event.target.id];
  put(`${event.target.id}-read`,
    `Layer ${cell.layer}, expert ${cell.e}: ${describe(cell.k)}`);
}

const COSTS = { embed: "embedding", attn: "attention", mlp: "dense MLP", moe: "router and experts",
  rest: "norms and sums", logits: "last norm and logits" };

function kindOf(stage) {
  if (stage in COSTS) return stage;
  const kind = stage.split(".").at(-1);
  return kind in COSTS ? kind : "rest";
}

function drawCost() {
  const mean = {}, mine = {}, written = [];
  for (let t = 0; t < N; t++) if (isWritten(t)) written.push(t);
  data.stages.forEach((stage, s) => {
    const kind = kindOf(stage), of = (t) => row(data.time_s, t)[s];
    mine[kind] = (mine[kind] || 0) + (state.token < N ? of(state.token) : 0);
    const sum = written.reduce((total, t) => total + of(t), 0);
    mean[kind] = (mean[kind] || 0) + sum / Math.max(1, written.length);
  });
  const total = (of) => Object.values(of).reduce((a, b) => a + b, 0);
  const line = (name, a, b, bytes) => el("tr", {}, el("td", { textContent: name }),
    ...[a, b, bytes].map((textContent) => el("td", { className: "number", textContent })));
  const time = (s) => (s ? seconds(s) : "–");
  const kinds = Object.keys(COSTS).filter((kind) => data.bytes[kind]);
  const cache = (data.first + Math.min(state.token, N - 1) + 1) * data.kv_bytes;
  const head = ["stage", "this token", "mean of reply", "bytes read"].map((textContent, i) =>
    el("th", { textContent, className: i ? "number" : "" }));
  put("cost", el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {},
    ...kinds.map((kind) => line(COSTS[kind], time(mine[kind]), time(mean[kind]),
      size(data.bytes[kind]))),
    line("KV cache, in attention", "", "", size(cache)),
    line("in all", time(total(mine)), time(total(mean)), size(total(data.bytes) + cache)))));
}

function draw() {
  drawToken();
  drawLayers();
  drawLayer();
  drawHeads();
  drawMaps();
  drawCost();
  shade();
  $("at-token").textContent = data.first + state.token;
  $("at-layer").textContent = state.layer < 0 ? "in" : state.layer;
  $("at-head").textContent = HEADS[state.head] < 0 ? "mean" : HEADS[state.head];
}

// Go to another token, layer or head; out of range is the nearest there is.
function go(change) {
  const within = (x, low, high) => Math.min(high, Math.max(low, x));
  Object.assign(state, change);
  state.token = within(state.token, 0, LAST);
  state.layer = within(state.layer, -1, L - 1);
  state.head = within(state.head, 0, HEADS.length - 1);
  draw();
  const span = spans[state.token];
  if (document.activeElement.matches(".token")) span.focus({ preventScroll: true });
  reveal($("tokens"), span);
  $("spoken").textContent = `token ${data.first + state.token}, ${span.textContent.trim()}, ` +
    `layer ${layerName(state.layer)}, head ${$("at-head").textContent}`;
}

const MOVES = {
  ArrowLeft: () => go({ token: state.token - 1 }), ArrowRight: () => go({ token: state.token + 1 }),
  ArrowUp: () => go({ layer: state.layer - 1 }), ArrowDown: () => go({ layer: state.layer + 1 }),
  h: () => go({ head: state.head - 1 }), l: () => go({ head: state.head + 1 }),
  Home: () => go({ token: 0 }), End: () => go({ token: LAST }),
};

function begin() {
  $("asked").textContent = data.asked;
  put("facts", ...data.facts.map((fact) => el("span", { textContent: fact })));
  put("notes", ...data.notes.map((note) => el("li", { textContent: note })));
  $("notes").hidden = !data.notes.length;
  drawTokens();
  const toToken = (event) => {
    const chosen = event.target.closest("[data-t]");
    if (chosen && chosen.dataset.t >= 0) go({ token: Number(chosen.dataset.t) });
  };
  $("tokens").addEventListener("click", toToken);
  $("keys").addEventListener("click", toToken);
  $("layers").addEventListener("click", (event) => {
    const line = event.target.closest("[data-layer]");
    if (line) go({ layer: Number(line.dataset.layer) });
  });
  for (const id of Object.keys(maps)) {
    $(id).addEventListener("pointermove", readMap);
    $(id).addEventListener("click", (event) => {
      const cell = cellAt(event);
      if (cell) go({ layer: cell.layer });
      readMap(event);
    });
  }
  for (const [id, key] of [["token-back", "ArrowLeft"], ["token-on", "ArrowRight"],
    ["layer-back", "ArrowUp"], ["layer-on", "ArrowDown"], ["head-back", "h"], ["head-on", "l"]]) {
    $(id).addEventListener("click", MOVES[key]);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in MOVES)) return;
    event.preventDefault();
    MOVES[event.key]();
  });
  window.addEventListener("resize", drawMaps);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMaps);
  const first = spans.findIndex((_, t) => isWritten(t));
  go({ token: first < 0 ? 0 : first });
}

begin();

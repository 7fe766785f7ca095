// The tokens, and the panels about the chosen one.

function bar(share, mine, ...children) {
  const node = el("div", { className: mine ? "mine" : "" }, ...children);
  node.style.setProperty("--part", `${100 * Math.min(1, Math.max(0, share))}%`);
  return node;
}

function likely(p) {
  return p < 0 || p >= 0.9 ? "p0" : p >= 0.5 ? "p1" : p >= 0.1 ? "p2" : "p3";
}

function drawTokens() {
  data.sections.forEach(([label, start, written], s) => {
    const stop = s + 1 < data.sections.length ? data.sections[s + 1][1] : data.tokens.length;
    const flow = el("div", { className: "flow" });
    for (let t = start; t < stop; t++) {
      const span = tokenSpan(t); // the line ends after the token, so that its colour does, too
      flow.append(span, span.textContent.includes("↵") ? "\n" : "");
    }
    const heading = el("h3", { textContent: label, "aria-hidden": "true" });
    $("tokens").append(el("div", { className: `part ${written ? label : ""}`, role: "group",
      "aria-label": label }, heading, flow));
  });
}

function tokenSpan(t) {
  const id = data.tokens[t], p = data.p.values[t];
  const kind = id === null ? "end" : KINDS[data.words[id][1]];
  const shown = id === null ? ` ${ending()}` : text(id).replace(/\n/g, "↵");
  const span = el("span", { className: `token ${kind} ${likely(p)}`, role: "option",
    tabIndex: -1, textContent: shown, title: p < 0 ? "" : percent(p) });
  if (!shown.trim()) span.setAttribute("aria-label", "space");
  span.dataset.t = t;
  spans.push(span);
  return span;
}

function drawToken() {
  const t = state.token, p = data.p.values[t], q = data.q.values[t];
  put("token-title", `Token ${data.first + t}: `, tokenCode(t));
  const id = data.tokens[t] === null ? "" : `id ${data.tokens[t]}, `;
  let facts = `${id}${sectionOf(t)[0]}. `;
  if (p < 0) facts += t === 0 && data.first === 0 ? "Nothing comes before it." : "";
  else {
    facts += `The model gave it ${percent(p)}, rank ${data.rank.values[t]}`;
    facts += q >= 0 && Math.abs(q - p) >= 5e-4 ? `; it was drawn with ${percent(q)}.` : ".";
  }
  $("token-facts").textContent = facts;
  const top = row(data.top, t), topP = row(data.top_p, t), topQ = row(data.top_q, t);
  const lines = [...top].map((word, k) => {
    const mine = word === data.tokens[t] || (data.tokens[t] === null && isStop(word));
    const drawn = topQ[k] >= 0 && q >= 0 ? ` → ${percent(topQ[k])}` : "";
    return bar(topP[k], mine, code(word), el("span", { textContent: percent(topP[k]) + drawn }));
  });
  if (p >= 0 && data.tokens[t] !== null && !top.includes(data.tokens[t])) {
    lines.push(bar(p, true, tokenCode(t), el("span", { textContent: percent(p) })));
  }
  const known = data.first + t > 0;
  put("alternatives", ...(known ? [el("h3", { textContent: t > LAST - 1 && p < 0
    ? "What the model would have said" : "What the model held likely here" +
    (q >= 0 ? " → what it was drawn from" : "") }),
  el("div", { className: "bars" }, ...lines)] : []));
}

function isStop(id) { return data.stop_ids.includes(id); }

function guessesOf(layer, t) {
  const place = data.lens.indexOf(layer);
  if (place < 0) return [];
  const p = row(data.guess_p, place, t);
  return [...row(data.guess, place, t)].map((id, k) => [id, p[k] / 65535]);
}

function expertsOf(layer, t) {
  const place = data.moe.indexOf(layer);
  if (place < 0) return [];
  const mix = row(data.mix, place, t);
  return [...row(data.chosen, place, t)].map((e, k) => [e, mix[k]]);
}

function keysOf(t) {
  const l = attention.layers.indexOf(state.layer);
  if (l < 0 || t >= N) return null;
  const i = (l * HEADS.length + state.head) * N + t, keys = [];
  for (let k = starts[i]; k < starts[i + 1]; k++) {
    keys.push([attention.at.values[k] - data.first, attention.weight.values[k] / 255]);
  }
  return keys;
}

const layerName = (layer) => (layer < 0 ? "embedding" : `${layer}`);

const brief = (x) => (x < 1000 ? x.toPrecision(3) : Math.round(x).toLocaleString("en"));

// The first experts of a token, as many as stand in a few characters, and how many there are more.
function few(experts) {
  const shown = [];
  for (const [e] of experts) {
    if (shown.length && [...shown, e].join(" ").length > 7) break;
    shown.push(e);
  }
  const more = experts.length - shown.length;
  return shown.join(" ") + (more ? ` +${more}` : "");
}

function drawLayers() {
  const t = state.token;
  if (t >= N) {
    put("layers", el("p", { className: "dim", textContent: "The model did not read it." }));
    return;
  }
  const norms = [...Array(L + 1).keys()].map((i) => row(data.norm, i)[t]);
  const most = Math.max(...norms);
  const body = el("tbody");
  for (let layer = -1; layer < L; layer++) {
    const pick = el("button", { className: "pick", textContent: layer < 0 ? "in" : layer,
      "aria-label": `layer ${layerName(layer)}`, "aria-pressed": layer === state.layer });
    const length = el("td", { className: "length" }, el("span"), brief(norms[layer + 1]));
    length.firstChild.style.setProperty("--part", `${100 * norms[layer + 1] / most}%`);
    const [guess] = guessesOf(layer, t);
    const line = el("tr", { className: layer === state.layer ? "here" : "" },
      el("td", {}, pick), length,
      el("td", { className: "word" }, ...(guess ? [code(guess[0])] : ["–"])),
      el("td", { className: "number", textContent: guess ? percent(guess[1]) : "" }),
      el("td", { className: "number",
        textContent: layer < 0 ? "" : few(expertsOf(layer, t)) || "dense" }));
    line.dataset.layer = layer;
    body.append(line);
  }
  const names = ["layer", "norm", "guess", "", "experts"].map((textContent, i) =>
    el("th", { textContent, className: i > 2 ? "number" : "" }));
  put("layers", el("table", {}, el("thead", {}, el("tr", {}, ...names)), body));
  reveal($("layers"), $("layers").querySelector(".here"));
}

function layerTimes(layer, t) {
  const times = row(data.time_s, t), parts = [];
  data.stages.forEach((stage, s) => {
    const kind = stage.split(".").at(-1);
    if (stage.startsWith(`layers.${layer}.`)) parts.push(`${COSTS[kind]} ${seconds(times[s])}`);
  });
  return parts.join(", ");
}

function drawLayer() {
  const t = state.token, layer = state.layer, none = el("p", { className: "dim" });
  put("layer-title", layer < 0 ? "The embedding, before any layer" : `Layer ${layer}`, ", reading ",
    tokenCode(t));
  $("layer-facts").textContent = t < N ? layerTimes(layer, t) : "";
  for (const id of ["guesses", "chosen", "keys", "next"]) put(id);
  if (t >= N) return;
  put("next", " (it was ", tokenCode(t + 1), ")");
  put("guesses", el("div", { className: "bars" }, ...guessesOf(layer, t).map(([id, p]) =>
    bar(p, id === data.tokens[t + 1], code(id), el("span", { textContent: percent(p) })))));
  const experts = expertsOf(layer, t), sum = experts.reduce((total, [, mix]) => total + mix, 0);
  none.textContent = layer < 0 ? "–" : "A dense MLP, the same for every token.";
  put("chosen", experts.length ? el("div", { className: "bars" }, ...experts.map(([e, mix]) =>
    bar(mix / sum, false, el("code", { textContent: `expert ${e}` }),
      el("span", { textContent: mix.toFixed(3) })))) : none);
  const keys = keysOf(t);
  if (!keys) {
    put("keys", el("p", { className: "dim", textContent: layer < 0 ? "–" : "Not kept." }));
    return;
  }
  put("keys", el("div", { className: "bars" }, ...keys.slice(0, 6).map(([at, weight]) => {
    const place = el("span", { className: "dim", textContent: `${data.first + at} ` });
    const label = el("span", {}, place, at < 0 ? "not on this page" : tokenCode(at));
    const line = bar(weight, false, label, el("span", { textContent: percent(weight) }));
    line.dataset.t = at;
    return line;
  })));
}

function drawHeads() {
  put("heads", ...HEADS.map((head, i) => el("button", { className: "pick",
    textContent: head < 0 ? "mean" : head, "aria-pressed": i === state.head,
    "aria-label": head < 0 ? "mean of all heads" : `head ${head}`,
    onclick: () => go({ head: i }) })));
}

function shade() {
  const keys = new Map(keysOf(state.token) || []);
  spans.forEach((span, t) => {
    // The square root, as most of what a head looks at is a small share of the whole.
    const weight = keys.has(t) ? Math.sqrt(keys.get(t)) * 0.75 : 0;
    span.style.setProperty("--weight", weight.toFixed(3));
    span.tabIndex = t === state.token ? 0 : -1;
    span.setAttribute("aria-selected", t === state.token);
  });
}

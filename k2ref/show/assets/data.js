"use strict";

// Everything the model said goes into the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
for (const [name, value] of Object.entries(data)) {
  if (Array.isArray(value) && Array.isArray(value[1]) && TYPES[value[0]]) {
    data[name] = unpack(value);
  }
}
const attention = data.attention;
for (const name of ["n", "at", "weight"]) attention[name] = unpack(attention[name]);
const starts = new Uint32Array(attention.n.values.length + 1);
attention.n.values.forEach((n, i) => { starts[i + 1] = starts[i] + n; });

const N = data.time_s.shape[0]; // tokens that were read; one more may follow, or the end
const LAST = data.tokens.length - 1;
const L = data.norm.shape[0] - 1; // layers; the embedding counts as layer -1
const HEADS = [-1, ...attention.heads]; // -1 is the mean of all
const $ = (id) => document.getElementById(id);
const spans = []; // of the tokens, in order
const state = { token: 0, layer: data.moe.length ? data.moe[0] : 0, head: 0 };

function unpack([type, shape, text]) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return { values: new TYPES[type](bytes.buffer), shape };
}

// The values of an array under leading indices: row(a, 2, 5) is a[2][5].
function row(array, ...index) {
  let size = array.values.length, start = 0;
  index.forEach((i, axis) => { size /= array.shape[axis]; start += i * size; });
  return array.values.subarray(start, start + size);
}

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (/^(aria-|role)/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

function put(id, ...children) { $(id).replaceChildren(...children); }

// Scroll a box, and nothing around it, until a part of it can be seen.
function reveal(box, part) {
  const outer = box.getBoundingClientRect(), inner = part.getBoundingClientRect();
  if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top + 8;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 8;
}

function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  return p >= 0.9995 ? "100 %" : `${(100 * p).toFixed(1)} %`;
}

function size(n) {
  for (const unit of ["B", "kB", "MB"]) {
    if (n < 1000) return `${n < 10 && unit !== "B" ? n.toFixed(1) : Math.round(n)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(1)} GB`;
}

function seconds(s) {
  if (s >= 1) return `${s.toPrecision(3)} s`;
  return s >= 1e-3 ? `${(1e3 * s).toPrecision(3)} ms` : `${(1e6 * s).toFixed(0)} µs`;
}

const KINDS = ["", "control", "raw"];
// Control characters have pictures, so that nothing is said that cannot be seen.
function visible(text) {
  return text.replace(/[\u0000-\u0009\u000b-\u001f]/g, (c) =>
    String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/[\u007f-\u009f]/g, "\u25a1");
}

function text(id) {
  const [word, kind] = data.words[id];
  return kind === 2 ? `⟨${word}⟩` : visible(word);
}

// A token in a list: spaces at its ends and line ends can be seen.
function code(id) {
  const seen = text(id).replace(/\n/g, "↵").replace(/^ +| +$/g, (s) => "␣".repeat(s.length));
  return el("code", { className: KINDS[data.words[id][1]], textContent: seen });
}

function tokenCode(t) {
  return data.tokens[t] === null ? el("code", { className: "control", textContent: ending() })
    : code(data.tokens[t]);
}

function ending() {
  return { stop: "end of the reply", tool_calls: "end of the reply" }[data.reason] || "cut short";
}

function sectionOf(t) { return data.sections.filter(([, start]) => start <= t).at(-1); }
function isWritten(t) { return sectionOf(t)[2]; }

"use strict";
// Shared helpers: elements, numbers in words, and the run's own data.
// Whatever comes from a data set enters the page as text (textContent), never as markup; figures
// get it escaped (clean).
const D = JSON.parse(document.getElementById("content").textContent);
const main = document.getElementById("main"),
  nav = document.getElementById("nav"),
  dialog = document.getElementById("dialog");
// Okabe and Ito: told apart by everyone
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x"];
const DIVERGING = [
  [0, "#b35806"],
  [0.25, "#f1a340"],
  [0.5, "#f7f7f7"],
  [0.75, "#8e9ecb"],
  [1, "#3a4f9a"],
];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const rowsOf = (table) => {
  const keys = Object.keys(table),
    n = keys.length ? table[keys[0]].length : 0;
  return Array.from({ length: n }, (_, i) => Object.fromEntries(keys.map((k) => [k, table[k][i]])));
};
const known = (v) => v !== null && v !== undefined;
const number = (v, digits = 3) =>
  !known(v)
    ? "–"
    : Number(v) === 0
      ? "0"
      : Math.abs(v) >= 1e-2 && Math.abs(v) < 1e4
        ? Number(v).toPrecision(digits)
        : Number(v).toExponential(digits - 1);
const signed = (v, digits) => (known(v) && v > 0 ? "+" : "") + number(v, digits);
const percent = (v) => (known(v) ? `${Math.round(100 * v)} %` : "–");
const words = (name) =>
  ({
    mean_delta_y: "mean ΔY",
    r2_delta_y: "ΔY",
    r2_delta_x: "ΔX",
    r2_delta_w: "ΔW",
    r2_score: "score",
  })[name] ?? name.replaceAll("_", " ");
// " (low … high)", where there is an interval
const between = (low, high) => (known(low) ? ` (${signed(low)} … ${signed(high)})` : "");
const stable = (share) => (known(share) ? ` (stable ${percent(share)})` : "");
const several = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const clean = (v) =>
  String(v).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (v, n = 70) => (v === null ? "" : v.length > n ? v.slice(0, n - 1) + "…" : v);
const median = (v) => {
  const s = [...v].sort((a, b) => a - b),
    h = s.length >> 1;
  return s.length % 2 ? s[h] : (s[h - 1] + s[h]) / 2;
};

const PAIRS = rowsOf(D.pairs),
  FEATURES = rowsOf(D.features),
  GAPS = rowsOf(D.gaps);
const CLASSES = D.classes,
  classOf = (p) => p.label ?? "unlabelled";
const colour = (name) => PALETTE[CLASSES.indexOf(name) % PALETTE.length];
const featureAt = new Map(FEATURES.map((f, k) => [f.feature_id, k]));
const featureName = (id) => {
  const f = FEATURES[featureAt.get(id)];
  return f && f.label ? `${id} ${f.label}` : String(id);
};
const PAIR_ID = ["pair_id", "pair", (v) => v.slice(0, 8)]; // a column of tables
const pairName = (p) => p.pair_id.slice(0, 8);
const total = D.contribution.x
  ? D.contribution.x.map((row, i) => row.map((v, k) => v + D.contribution.y[i][k]))
  : null;

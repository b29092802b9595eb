"use strict";
// Whatever comes from a data set enters the page as text (textContent), never as markup; figures get it escaped (clean).
const D = JSON.parse(document.getElementById("content").textContent);
const main = document.getElementById("main"), nav = document.getElementById("nav"), dialog = document.getElementById("dialog");
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]; // Okabe and Ito: told apart by everyone
const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "x"];
const DIVERGING = [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f7f7f7"], [0.75, "#8e9ecb"], [1, "#3a4f9a"]];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const rowsOf = (table) => {
  const keys = Object.keys(table), n = keys.length ? table[keys[0]].length : 0;
  return Array.from({ length: n }, (_, i) => Object.fromEntries(keys.map((k) => [k, table[k][i]])));
};
const known = (v) => v !== null && v !== undefined;
const number = (v, digits = 3) => (!known(v) ? "–" : Number(v) === 0 ? "0"
  : Math.abs(v) >= 1e-2 && Math.abs(v) < 1e4 ? Number(v).toPrecision(digits) : Number(v).toExponential(digits - 1));
const signed = (v, digits) => (known(v) && v > 0 ? "+" : "") + number(v, digits);
const percent = (v) => (known(v) ? `${Math.round(100 * v)} %` : "–");
const words = (name) => ({ mean_delta_y: "mean ΔY", r2_delta_y: "ΔY", r2_delta_x: "ΔX", r2_delta_w: "ΔW", r2_score: "score" }[name] ?? name.replaceAll("_", " "));
const several = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const clean = (v) => String(v).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (v, n = 70) => (v === null ? "" : v.length > n ? v.slice(0, n - 1) + "…" : v);
const median = (v) => { const s = [...v].sort((a, b) => a - b), h = s.length >> 1; return s.length % 2 ? s[h] : (s[h - 1] + s[h]) / 2; };

const PAIRS = rowsOf(D.pairs), FEATURES = rowsOf(D.features), GAPS = rowsOf(D.gaps);
const CLASSES = D.classes, classOf = (p) => p.label ?? "unlabelled";
const colour = (name) => PALETTE[CLASSES.indexOf(name) % PALETTE.length];
const featureAt = new Map(FEATURES.map((f, k) => [f.feature_id, k]));
const featureName = (id) => { const f = FEATURES[featureAt.get(id)]; return f && f.label ? `${id} ${f.label}` : String(id); };
const PAIR_ID = ["pair_id", "pair", (v) => v.slice(0, 8)]; // a column of tables
const pairName = (p) => p.pair_id.slice(0, 8);
const total = D.contribution.x ? D.contribution.x.map((row, i) => row.map((v, k) => v + D.contribution.y[i][k])) : null;

// --- figures: drawn when they come into view, and again when the theme changes ------------------------------------------------
const figures = new Map();
function style() {
  const css = getComputedStyle(document.documentElement), ink = css.getPropertyValue("--ink"), line = css.getPropertyValue("--line");
  return { ink, line, ground: css.getPropertyValue("--sheet"), soft: css.getPropertyValue("--soft") };
}
// The figures' library is large, and reading it holds up everything else: not before the first figure is to be seen.
function library() {
  if (!window.Plotly) document.head.append(Object.assign(document.createElement("script"), { textContent: document.getElementById("plotly").textContent }));
}
function plot(node, traces, layout) {
  library();
  const s = style(), axis = { gridcolor: s.line, zerolinecolor: s.soft, linecolor: s.line, automargin: true, exponentformat: "power" };
  const merged = {
    paper_bgcolor: s.ground, plot_bgcolor: s.ground, font: { color: s.ink, family: "system-ui, sans-serif", size: 12 },
    margin: { l: 60, r: 20, t: 20, b: 50 }, hoverlabel: { align: "left" }, legend: { orientation: "h", y: -0.18 }, ...layout,
  };
  for (const key of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) if (merged[key] || key.length === 5) merged[key] = { ...axis, ...merged[key] };
  node.removeAllListeners?.("plotly_click"); // a figure that is drawn again listens again
  return Plotly.react(node, traces, merged, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
}
function figure(parent, name, draw, height = 380) {
  const node = el("div", { class: "plot", id: `plot-${name}`, role: "img", "aria-label": name, style: `height:${height}px` });
  parent.append(node);
  figures.set(node, { draw: () => draw(node), drawn: false });
  return () => { const f = figures.get(node); if (f.drawn) f.draw(); };
}
function start() {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const f = figures.get(target);
      if (isIntersecting && !f.drawn) { f.drawn = true; f.draw(); }
    }
  }, { rootMargin: "0px" });
  for (const node of figures.keys()) seen.observe(node);
  addEventListener("beforeprint", () => { for (const f of figures.values()) { f.drawn = true; f.draw(); } });
}

// --- parts of the page --------------------------------------------------------------------------------------------------------
function section(id, title, note) {
  const node = el("section", { id }, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null);
  main.append(node);
  nav.append(el("a", { href: `#${id}` }, title));
  return node;
}
function choose(parent, label, options, change) {
  const select = el("select", { "aria-label": label, onchange: (e) => change(e.target.value) });
  for (const [value, text] of options) select.append(el("option", { value }, text));
  parent.append(el("label", { class: "row" }, `${label} `, select));
}
function download(name, rows) {
  const keys = rows.length ? Object.keys(rows[0]).filter((k) => rows.every((r) => r[k] === null || typeof r[k] !== "object" || Array.isArray(r[k]))) : [];
  // A spreadsheet would run a text that begins like a formula.
  const cell = (v) => { const t = typeof v === "string" && /^[=+\-@\t\r]/.test(v) ? `'${v}` : Array.isArray(v) ? v.join(" ") : v ?? "";
    return `"${String(t).replaceAll('"', '""')}"`; };
  const text = [keys, ...rows.map((r) => keys.map((k) => r[k]))].map((r) => r.map(cell).join(",")).join("\r\n");
  const link = el("a", { href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })), download: `${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
// columns: [key, title, how to show it (number unless text), whether it may wrap]
function table(parent, name, rows, columns, open, step = 40) {
  let order = null, up = false, asked = "", limit = step;
  const body = el("tbody"), count = el("span", { class: "note" }), head = el("tr");
  const more = el("button", { onclick: () => { limit += 5 * step; fill(); } }, "More");
  const search = el("input", { type: "search", placeholder: "Search", "aria-label": `Search ${name}`,
    oninput: (e) => { asked = e.target.value.toLowerCase(); limit = step; fill(); } });
  for (const [key, title, show] of columns) {
    const th = el("th", { scope: "col", class: show ? "n" : null });
    th.append(el("button", { title: (D.columns[`${name}.parquet`] ?? {})[key], onclick: () => {
      up = order === key ? !up : false; order = key;
      for (const other of head.children) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      fill();
    } }, title));
    head.append(th);
  }
  function chosen() {
    let some = rows.filter((r) => !asked || Object.values(r).some((v) => (typeof v === "string" || typeof v === "number" || Array.isArray(v)) && String(v).toLowerCase().includes(asked)));
    if (order) {
      const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
      some = [...some].sort((a, b) => (!known(a[order]) ? 1 : !known(b[order]) ? -1 : (up ? 1 : -1) * compare(a[order], b[order])));
    }
    return some;
  }
  function fill() {
    const some = chosen();
    body.replaceChildren(...some.slice(0, limit).map((r) => {
      const tr = el("tr", open ? { class: "open", tabindex: "0", onclick: () => open(r),
        onkeydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); open(r); } } } : {});
      for (const [key, , show, wide] of columns) {
        tr.append(el("td", { class: show ? "n" : wide ? "wide" : null }, show ? show(r[key]) : String(r[key] ?? "–")));
      }
      return tr;
    }));
    if (!some.length) body.append(el("tr", {}, el("td", { colspan: columns.length }, "Nothing matches.")));
    count.textContent = some.length > limit ? `${limit} of ${some.length}` : `${some.length}`;
    more.hidden = some.length <= limit;
  }
  fill();
  parent.append(
    el("div", { class: "row" }, search, count, more, el("button", { onclick: () => download(name, chosen()) }, "CSV")),
    el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), body)),
  );
}

// --- drill-down ---------------------------------------------------------------------------------------------------------------
// What is open stands in the address, so that it can be linked to: #pair=…, #feature=…, #category=….
let shownIn = [], visited = [];
const named = (hash) => /^#(pair|feature|category)=/.exec(hash);
const address = (hash) => { try { history.replaceState(null, "", location.pathname + location.search + hash); } catch { /* some places have none */ } };
dialog.addEventListener("close", () => { visited = []; if (named(location.hash)) address(""); });
function follow(hash) {
  const kind = named(hash)?.[1];
  if (!kind) { if (dialog.open) dialog.close(); return; }
  let id = hash.slice(kind.length + 2);
  try { id = decodeURIComponent(id); } catch { /* then as it stands */ }
  const found = kind === "pair" ? PAIRS.filter((p) => id && p.pair_id.startsWith(id.toLowerCase()))
    : kind === "feature" ? FEATURES.filter((f) => String(f.feature_id) === id) : GAPS.filter((g) => g.category === id);
  if (found.length === 1) { if (kind === "pair") showPair(found[0]); else if (kind === "feature") showFeature(found[0].feature_id); else showCategory(found[0]); return; }
  show(() => follow(hash), hash, found.length ? "Not one pair" : "Not on this page",
    el("p", {}, found.length ? `${found.length} pairs begin so: give more of the id.` : `This page shows no ${kind} ${short(id)}. `
      + (kind === "pair" && PAIRS.length < D.pairs_in_run ? `It shows ${PAIRS.length} of the run's ${D.pairs_in_run} pairs.` : "")));
}
addEventListener("hashchange", () => follow(location.hash));
function show(again, hash, title, ...parts) {
  visited.push(again);
  address(hash);
  for (const node of shownIn) { figures.delete(node); Plotly.purge(node); }
  const inside = el("div");
  dialog.replaceChildren(
    el("div", { class: "row" }, el("h3", { id: "dialog-title", tabindex: "-1", style: "flex:1;outline:none" }, title),
      visited.length > 1 ? el("button", { onclick: () => { visited.pop(); visited.pop()(); } }, "Back") : null,
      el("button", { onclick: () => dialog.close() }, "Close")),
    inside);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  const before = new Set(figures.keys());
  for (const part of parts) if (part) typeof part === "function" ? part(inside) : inside.append(part);
  shownIn = [...figures.keys()].filter((n) => !before.has(n));
  for (const node of shownIn) { const f = figures.get(node); f.drawn = true; f.draw(); }
  dialog.querySelector("h3").focus(); // so that keys move what is open, not the page behind it
}
const facts = (list) => el("p", {}, list.filter(Boolean).join(" · "));
const quote = (text) => el("blockquote", {}, text ?? "(the text was left out)");
function showPair(p) {
  const i = PAIRS.indexOf(p);
  show(() => showPair(p), `#pair=${p.pair_id.slice(0, 16)}`, `Pair ${pairName(p)}: ${classOf(p)}`,
    facts([`score ${signed(p.score)}${known(p.score_low) ? ` (${signed(p.score_low)} … ${signed(p.score_high)})` : ""}`,
      known(p.mean_delta_y) && `mean ΔY ${signed(p.mean_delta_y)} nats`, `loss ${number(p.loss)}`,
      known(p.off_target_share) && `off target ${percent(p.off_target_share)}${known(p.off_target_category) ? ` (by its category ${percent(p.off_target_category)})` : ""}`, known(p.through_x) && `through X ${percent(p.through_x)}`,
      p.flagged && `flagged by score${known(p.flag_stability) ? ` (stable ${percent(p.flag_stability)})` : ""}`,
      p.flagged_delta_y && `flagged by mean ΔY${known(p.flag_delta_y_stability) ? ` (stable ${percent(p.flag_delta_y_stability)})` : ""}`,
      p.category && `category ${p.category}`, p.planted && "planted"]),
    el("h3", {}, "Prompt"), quote(p.prompt), el("h3", {}, "Response"), quote(p.response),
    el("h3", {}, "Features active on its own prompt"),
    el("p", {}, ...(p.own_features.length ? p.own_features.map((id) => el("button", { onclick: () => showFeature(id) }, featureName(id))) : ["none of those chosen"])),
    total && ((node) => {
      node.append(el("h3", {}, "Where its effect falls"));
      const order = FEATURES.map((_, k) => k).sort((a, b) => Math.abs(total[i][b]) - Math.abs(total[i][a])).slice(0, 25);
      figure(node, "pair", (at) => {
        const names = order.map((k) => clean(short(featureName(FEATURES[k].feature_id), 40)) + (p.own_features.includes(FEATURES[k].feature_id) ? " •" : ""));
        plot(at, [["x", "through activations (ΔX)", PALETTE[0]], ["y", "through probabilities (ΔY)", PALETTE[1]]].map(([way, name, c]) => ({
          type: "bar", orientation: "h", name, y: names, x: order.map((k) => D.contribution[way][i][k]), marker: { color: c },
        })), { barmode: "relative", yaxis: { autorange: "reversed" }, xaxis: { title: { text: "W·ΔW" } } });
        at.on("plotly_click", (e) => showFeature(FEATURES[order[e.points[0].pointNumber]].feature_id));
      }, 80 + 22 * order.length);
      node.append(el("p", { class: "note" }, "• active on the pair's own prompt. The rest is off target."));
      table(node, "influence", order.map((k) => ({ feature_id: FEATURES[k].feature_id, label: FEATURES[k].label, contribution: total[i][k],
        delta_w: D.delta_w.value[i][k], delta_w_low: D.delta_w.low?.[i][k], delta_w_high: D.delta_w.high?.[i][k] })),
        [["feature_id", "feature", String], ["label", "label"], ["contribution", "W·ΔW", signed], ["delta_w", "ΔW", signed],
          ["delta_w_low", "low", signed], ["delta_w_high", "high", signed]], (r) => showFeature(r.feature_id));
    }));
}
function showFeature(id) {
  const k = featureAt.get(id), f = FEATURES[k];
  if (!f) return;
  const candidates = rowsOf(D.candidates).filter((c) => c.feature_id === id);
  const movers = !total ? [] : PAIRS.map((p, i) => ({ ...p, row: p, moved: total[i][k], delta_w: D.delta_w.value[i][k] }))
    .sort((a, b) => Math.abs(b.moved) - Math.abs(a.moved));
  show(() => showFeature(id), `#feature=${id}`, `Feature ${id}${f.label ? `: ${f.label}` : ""}`,
    facts([`W ${signed(f.weight)}${known(f.weight_low) ? ` (${signed(f.weight_low)} … ${signed(f.weight_high)}, sign stable in ${percent(f.sign_stability)})` : ""}`,
      `active on ${percent(f.active_share)} of the prompts`, total && `${percent(f.share)} of all shifts`, total && `through X ${percent(f.through_x)}`,
      total && `dominant in ${f.dominant_pairs} pairs`]),
    f.link ? el("p", {}, el("a", { href: f.link, rel: "noopener noreferrer", target: "_blank" }, "Its page on Neuronpedia")) : "",
    candidates.length ? el("p", { class: "note" }, "Before each prompt its pre-activation z; where z is not above the gate, the feature is off.") : "",
    ...["top", "contrastive", "bottom"].flatMap((kind) => {
      const some = candidates.filter((c) => c.kind === kind).slice(0, 5);
      return some.length ? [el("h3", {}, `${kind[0].toUpperCase()}${kind.slice(1)} prompts`),
        ...some.map((c) => quote(`${number(c.activation)}  ${c.prompt ?? c.prompt_id}`))] : [];
    }),
    total && ((node) => {
      node.append(el("h3", {}, "Pairs that move it most"));
      table(node, "movers", movers, [PAIR_ID, ["label", "class"], ["moved", "W·ΔW", signed], ["delta_w", "ΔW", signed], ["prompt", "prompt", null, true]], (r) => showPair(r.row), 15);
    }));
}

function showCategory(g) {
  const prompts = rowsOf(D.category_prompts).filter((p) => p.category === g.category).map((p) => ({ ...p, refused: p.refused ? "yes" : "no", prompt: p.prompt ?? p.prompt_id }));
  const carried = rowsOf(D.gap_features).filter((c) => c.category === g.category && known(c.carried)).sort((a, b) => Math.abs(b.carried) - Math.abs(a.carried))
    .map((c) => ({ ...c, label: FEATURES[featureAt.get(c.feature_id)]?.label ?? null }));
  const pairs = PAIRS.filter((p) => p.category === g.category);
  show(() => showCategory(g), `#category=${encodeURIComponent(g.category)}`, `Category ${g.category}`,
    facts([g.label, several(g.prompts, "prompt"), `${percent(g.refused)} refused`, `mean Y ${signed(g.y)} nats`, `policy ${signed(g.prediction)}`, `residual ${signed(g.residual)}`,
      known(g.gap) && `gap ${signed(g.gap)}${known(g.gap_low) ? ` (${signed(g.gap_low)} … ${signed(g.gap_high)})` : ""}`]),
    (node) => {
      if (carried.length) {
        node.append(el("h3", {}, "Features that carry the policy's part of the gap"));
        table(node, "gap_features", carried, [["feature_id", "feature", String], ["label", "label"], ["carried", "carried, nats", signed]], (c) => showFeature(c.feature_id), 10);
      }
      node.append(el("h3", {}, "Prompts"), el("p", { class: "note" }, prompts.length < g.prompts ? `Of ${g.prompts}, those that the policy knows least of.` : ""));
      table(node, "prompts", prompts, [["prompt", "prompt", null, true], ["refused", "refused"], ["y", "Y", signed], ["prediction", "policy", signed], ["residual", "residual", signed]], null, 20);
      if (pairs.length) {
        node.append(el("h3", {}, "Pairs of the category"));
        table(node, "pairs", pairs, [PAIR_ID, ["label", "class"], ["score", "score", signed], ["mean_delta_y", "mean ΔY", signed], ["prompt", "prompt", null, true]], showPair, 10);
      }
    });
}

// --- first screen -------------------------------------------------------------------------------------------------------------
function overview() {
  const s = D.summary, fit = s.fits.all, test = fit.test ?? fit.train, where = fit.test ? "held-out prompts" : "the prompts it was fitted to";
  const node = el("section", { id: "finding" });
  const sure = GAPS.filter((g) => known(g.gap_low)), harmful = sure.filter((g) => g.label === "harmful");
  const gap = (harmful.length ? harmful : sure)[0], t = D.totals, says = [];
  const against = rowsOf(D.agreement).find((r) => r.class === "all" && r.figure === "score" && r.other === "mean_delta_y");
  const turned = Boolean(against && against.spearman < -0.3), held = Boolean(fit.test);
  says.push(`A policy of ${s.features} features predicts the behaviour with R² ${number(test.r2, 2)} on ${test.prompts} ${where} `
    + `(0 is the mean), and refusals with accuracy ${number(test.accuracy, 2)} (always the commoner answer: ${number(test.majority, 2)}).`);
  if (FEATURES.length && known(FEATURES[0].sign_stability)) {
    const steady = FEATURES.filter((f) => f.sign_stability >= 0.95).length;
    says.push(`${steady} of ${FEATURES.length} coefficients keep their sign in at least 95 % of the resamples.`);
  }
  if (gap) {
    const carry = rowsOf(D.gap_features).filter((g) => g.category === gap.category).sort((a, b) => a.carried - b.carried).slice(0, 2);
    says.push(`The strongest gap is ${gap.category}: mean Y ${number(gap.y)} nats, ${number(gap.gap)} from the other ${gap.label ?? ""} prompts `
      + `(95 %: ${number(gap.gap_low)} … ${number(gap.gap_high)}); ${percent(gap.refused)} are refused. The policy predicts ${number(gap.prediction)} there; `
      + `${carry.map((g) => `${featureName(g.feature_id)} (${signed(g.carried)})`).join(" and ")} carry most of its part of the gap.`);
  } else if (GAPS.length) says.push("No category has ten prompts, and ten others of its label beside it: nothing is said of gaps.");
  const over = sure.filter((g) => g.label === "harmless").sort((a, b) => b.gap - a.gap)[0];
  if (harmful.length && over && over.refused > 0) says.push(`Among harmless prompts, ${over.category} is refused most for its label: ${percent(over.refused)} (gap ${signed(over.gap)} nats).`);
  if (test.prompts < 20) says.push(`Only ${several(test.prompts, "prompt")} ${held ? "were held out" : "were read"}: figures of the fit say little.`);
  if (total) says.push(`${t.unintended} of ${several(D.pairs_in_run, "pair")} act mostly off target: their dominant feature is not active on their own prompt.`);
  const holds = (n) => (t.sure ? `, ${n} of them in at least 95 % of the resamples` : "");
  const few = Object.values(t.scores).some((s) => s.length < 5) ? " A class has fewer than five pairs: flags against its median say little." : "";
  if (!t.delta_y) says.push("Which pairs move the behaviour as the other class does is not known: the run kept scores only.");
  else says.push(`${several(t.flagged_delta_y, "pair")} move the behaviour as the other class does (mean ΔY on the far side of its median)${holds(t.stable_flagged_delta_y)}`
    + `${t.planted ? `; ${t.planted_flagged} of the ${t.planted} planted pairs are among them` : ""}.${few}`);
  says.push(turned
    ? `The paper's flags, by score, cannot be read as misaligned here: the score runs against mean ΔY (ρ ${number(against.spearman, 2)}), since Y is below zero and the policy has no `
      + `intercept, so that steps which make the behaviour likelier move the policy against itself. By score, ${t.flagged} would be flagged.`
    : `By score, as in the paper, ${several(t.flagged, "pair")} are flagged${holds(t.stable_flagged)}.`
      + (against ? "" : " Whether they are misaligned cannot be told here: Y is below zero and the policy has no intercept, so that the score may run against the behaviour, and mean ΔY, which would show it, was not kept."));
  for (const [name, a] of Object.entries(s.planted_pairs_auc ?? {})) {
    says.push(`Planted pairs among ${name}: AUC ${Object.entries(a).map(([k, v]) => `${words(k)} ${number(v, 2)}`).join(", ")} `
      + "(oriented as the paper flags; near 0 separates as well as near 1, the other way round).");
  }
  const verified = rowsOf(D.verify).filter((v) => v.figure === "score");
  if (verified.length) {
    const fails = verified.filter((v) => !v.holds).map((v) => v.learning_rate), good = verified.filter((v) => v.holds && !fails.some((x) => x < v.learning_rate));
    says.push(good.length ? `First order holds for the score up to η = ${number(Math.max(...good.map((v) => v.learning_rate)))} (${verified[0].pairs} true steps).`
      : "First order does not hold for the score at any learning rate that was verified.");
  } else if (s.first_order && Object.keys(s.first_order).length) {
    says.push(`First order against ${s.first_order.pairs} true steps: R² ${Object.entries(s.first_order).filter(([k]) => k !== "pairs")
      .map(([k, v]) => `${number(v, 6)} (${words(k)})`).join(", ")}.`);
  } else says.push(total ? "Whether first order holds was not checked: smda-jax verify RUN does." : "Whether first order holds was not checked, and cannot be of scores alone.");
  const boxes = [[number(test.r2, 2), held ? "R², held out" : "R², where it was fitted"], [gap ? number(gap.gap) : "–", gap ? `nats: gap of ${gap.category}` : "no gap with enough prompts"],
    [total ? `${t.unintended} / ${D.pairs_in_run}` : "–", "pairs act off target"], [t.delta_y ? String(t.flagged_delta_y) : "–", t.delta_y ? "pairs flagged by mean ΔY" : "mean ΔY was not kept"],
    [`${D.pairs_in_run} × ${D.prompts_in_run}`, "pairs × prompts"]];
  node.append(
    el("div", { class: "figures" }, ...boxes.map(([value, text]) => el("div", {}, el("b", {}, value), el("span", {}, text)))),
    el("ul", { class: "lead" }, ...says.map((text) => el("li", {}, text))));
  if (PAIRS.length < D.pairs_in_run) node.append(el("p", { class: "note" }, `Pair by pair, this page shows the ${PAIRS.length} with the largest |score| of ${D.pairs_in_run}; the tables of the run folder hold all.`));
  if (D.redacted) node.append(el("p", { class: "note" }, "Texts of prompts and responses were left out of this page."));
  const settings = el("details", {}, el("summary", {}, "Settings of the run"));
  table(settings, "settings", Object.entries({ engine_used: D.engine, ...D.settings, ...D.versions, device: `${D.device.count} × ${D.device.kind}` })
    .map(([key, value]) => ({ key, value: Array.isArray(value) ? value.join(" ") : String(value) })), [["key", "setting"], ["value", "value", null, true]]);
  node.append(settings);
  main.append(node);
}

// --- sections -----------------------------------------------------------------------------------------------------------------
function coefficients() {
  if (!FEATURES.length) return;
  const node = section("policy", "Policy", "Coefficients W of the policy with 95 % intervals over resamples of the prompts; positive: the behaviour is likelier. Click a bar for its feature.");
  const order = FEATURES.map((_, k) => k).sort((a, b) => Math.abs(FEATURES[b].weight) - Math.abs(FEATURES[a].weight)).slice(0, 60);
  figure(node, "coefficients", (at) => {
    const f = order.map((k) => FEATURES[k]), sure = known(f[0].weight_low);
    plot(at, [{
      type: "bar", orientation: "h", y: f.map((x) => clean(short(featureName(x.feature_id), 44))), x: f.map((x) => x.weight),
      marker: { color: f.map((x) => (x.weight > 0 ? PALETTE[0] : PALETTE[5])), opacity: f.map((x) => (!sure || x.sign_stability >= 0.95 ? 1 : 0.45)) },
      error_x: sure ? { type: "data", symmetric: false, array: f.map((x) => x.weight_high - x.weight), arrayminus: f.map((x) => x.weight - x.weight_low), color: style().soft, thickness: 1.2, width: 3 } : undefined,
      hovertemplate: "%{y}<br>W %{x:.4g}<extra></extra>",
    }], { yaxis: { autorange: "reversed" }, xaxis: { title: { text: "W, nats per unit of activation (pale: sign not stable)" } } });
    at.on("plotly_click", (e) => showFeature(f[e.points[0].pointNumber].feature_id));
  }, 90 + 20 * order.length);
  table(node, "features", FEATURES, [["feature_id", "feature", String], ["label", "label"], ["weight", "W", signed], ["weight_low", "low", signed],
    ["weight_high", "high", signed], ["sign_stability", "sign", percent], ["active_share", "active", percent], ["share", "of shifts", percent],
    ["through_x", "through X", percent], ["cancellation", "cancelled", percent], ["dominant_pairs", "dominant in", String]], (f) => showFeature(f.feature_id));
}
function categories() {
  if (!GAPS.length) return;
  const node = section("gaps", "Gaps", "Each category of prompts against the other prompts of its label: below zero, the behaviour passes it over. The bar says what the policy knows of the gap, feature by feature.");
  figure(node, "gaps", (at) => {
    const rows = GAPS.filter((g) => known(g.gap)).slice(0, 40), names = rows.map((g) => clean(short(g.category, 40)));
    const carried = rows.map((g) => rowsOf(D.gap_features).filter((c) => c.category === g.category));
    const most = [...new Set(carried.flatMap((c) => [...c].sort((a, b) => Math.abs(b.carried) - Math.abs(a.carried)).slice(0, 2).map((x) => x.feature_id)))].slice(0, 6);
    const bars = most.map((id, j) => ({ type: "bar", orientation: "h", name: clean(short(featureName(id), 30)), y: names, marker: { color: PALETTE[j], opacity: 0.75 },
      x: carried.map((c) => c.find((x) => x.feature_id === id).carried) }));
    bars.push({ type: "bar", orientation: "h", name: "other features", y: names, marker: { color: style().line }, x: carried.map((c) => c.filter((x) => !most.includes(x.feature_id)).reduce((s, x) => s + x.carried, 0)) });
    plot(at, [...bars, { type: "scatter", mode: "markers", name: "observed gap, 95 %", y: names, x: rows.map((g) => g.gap), marker: { color: style().ink, size: 9, symbol: "diamond" },
      error_x: { type: "data", symmetric: false, array: rows.map((g) => g.gap_high - g.gap), arrayminus: rows.map((g) => g.gap - g.gap_low), color: style().ink, width: 4 } }],
      { barmode: "relative", yaxis: { autorange: "reversed" }, xaxis: { title: { text: "mean Y less that of the label's other prompts, nats" } } });
    at.on("plotly_click", (e) => showCategory(rows[e.points[0].pointNumber]));
  }, 150 + 34 * Math.min(40, GAPS.filter((g) => known(g.gap)).length));
  table(node, "gaps", GAPS, [["category", "category"], ["label", "label"], ["prompts", "prompts", String], ["refused", "refused", percent], ["y", "mean Y", signed],
    ["prediction", "policy", signed], ["residual", "residual", signed], ["gap", "gap", signed], ["gap_low", "low", signed], ["gap_high", "high", signed]], showCategory);
}
function heatmaps() {
  if (!total) return;
  const node = section("effects", "Effects", "How far a step on each pair moves the policy along every feature (W·ΔW). Pairs with like effects stand together within their class, features too; click a cell for its pair.");
  let what = "total";
  const values = { total, x: D.contribution.x, y: D.contribution.y };
  const tools = el("div", { class: "row" });
  choose(tools, "Pathway", [["total", "both"], ["x", "feature activations (ΔX)"], ["y", "output probabilities (ΔY)"]], (v) => { what = v; again(); });
  node.append(tools);
  const again = figure(node, "effects", (at) => {
    const rows = D.pair_order, columns = D.feature_order, z = rows.map((i) => columns.map((k) => values[what][i][k]));
    const all = z.flat().map(Math.abs).sort((a, b) => a - b), top = all[Math.floor(0.98 * (all.length - 1))] || 1;
    const starts = rows.map((i, r) => r).filter((r) => !r || classOf(PAIRS[rows[r]]) !== classOf(PAIRS[rows[r - 1]]));
    const edges = rows.map((i, r) => r).filter((r) => r && classOf(PAIRS[rows[r]]) !== classOf(PAIRS[rows[r - 1]]));
    plot(at, [{ type: "heatmap", z, colorscale: DIVERGING, zmid: 0, zmin: -top, zmax: top, colorbar: { title: { text: "W·ΔW" }, thickness: 12 },
      customdata: rows.map((i) => columns.map((k) => `${pairName(PAIRS[i])} ${clean(classOf(PAIRS[i]))}<br>${clean(short(featureName(FEATURES[k].feature_id), 50))}`)),
      hovertemplate: "%{customdata}<br>%{z:.3g}<extra></extra>" }],
      { xaxis: { title: { text: "feature" }, tickvals: columns.map((_, c) => c), ticktext: columns.map((k) => String(FEATURES[k].feature_id)), tickangle: -60, showticklabels: columns.length <= 80, showgrid: false },
        yaxis: { tickvals: starts.map((r, j) => (r + (starts[j + 1] ?? rows.length)) / 2), ticktext: starts.map((r) => clean(short(classOf(PAIRS[rows[r]]), 22))), autorange: "reversed", showgrid: false },
        shapes: edges.map((r) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: r - 0.5, y1: r - 0.5, line: { color: style().ink, width: 1.5 } })) });
    at.on("plotly_click", (e) => showPair(PAIRS[rows[Math.round(e.points[0].y)]]));
  }, 620);
  const scatter = section("pathways", "Pathways", "The score of every pair through feature activations against that through output probabilities. On the falling diagonal the two undo each other.");
  figure(scatter, "pathways", (at) => {
    const part = (way) => D.contribution[way].map((row) => row.reduce((s, v) => s + v, 0)), x = part("x"), y = part("y");
    const reach = Math.max(...x.map(Math.abs), ...y.map(Math.abs)) || 1;
    const shown = CLASSES.map((name) => PAIRS.map((_, i) => i).filter((i) => classOf(PAIRS[i]) === name));
    plot(at, CLASSES.map((name, c) => ({ type: "scatter", mode: "markers", name: clean(name), x: shown[c].map((i) => x[i]), y: shown[c].map((i) => y[i]),
      text: shown[c].map((i) => `${pairName(PAIRS[i])}<br>${clean(short(PAIRS[i].prompt, 80))}`), hovertemplate: "%{text}<br>X %{x:.3g}, Y %{y:.3g}<extra></extra>",
      marker: { color: colour(name), symbol: SYMBOLS[c % SYMBOLS.length], size: 8, opacity: 0.8 } })),
      { xaxis: { title: { text: "score through feature activations" } }, yaxis: { title: { text: "score through output probabilities" } },
        shapes: [{ type: "line", x0: -reach, y0: reach, x1: reach, y1: -reach, line: { color: style().soft, dash: "dot", width: 1 } }] });
    at.on("plotly_click", (e) => showPair(PAIRS[shown[e.points[0].curveNumber][e.points[0].pointNumber]]));
  }, 440);
  const byClass = rowsOf(D.class_features).filter((r) => r.class !== "all");
  if (byClass.length) {
    const detail = el("details", {}, el("summary", {}, "Shares by class and feature"));
    table(detail, "class_features", byClass, [["class", "class"], ["feature_id", "feature", String], ["label", "label"], ["mean_contribution", "mean W·ΔW", signed], ["share", "of the class's shifts", percent],
      ["through_x", "through X", percent], ["cancellation", "cancelled", percent], ["dominant_pairs", "dominant in", String]], (f) => showFeature(f.feature_id));
    scatter.append(detail);
  }
}
function interference() {
  const rows = rowsOf(D.interference);
  if (!rows.length) return;
  const kinds = [["co_shift", "co-shift: correlation of ΔW over pairs"], ["landing", "landing: share of the effect of pairs that have the row's feature"],
    ["encoder_cosine", "cosine of the encoder directions"], ["activation_correlation", "correlation of activations"]];
  const geometry = Object.entries(D.summary.geometry ?? {}).filter(([, t]) => known(t.spearman))
    .map(([name, t]) => `${name.replaceAll("_", " ")}: ρ ${signed(t.spearman, 2)}, p ${number(t.p, 2)}`).join("; ");
  const node = section("interference", "Interference", "Which features shift together, beside what the geometry of the encoder and of the activations would suggest. "
    + (geometry ? `Does geometry explain the co-shifts (Mantel's test, ranks)? ${geometry}.` : ""));
  let what = "co_shift";
  const ids = [...new Set(rows.map((r) => r.feature_id))], n = ids.length, order = D.feature_order.map((k) => ids.indexOf(FEATURES[k].feature_id)).filter((k) => k >= 0);
  const tools = el("div", { class: "row" });
  choose(tools, "Matrix", kinds, (v) => { what = v; again(); });
  node.append(tools);
  const again = figure(node, "interference", (at) => {
    const z = order.map((a) => order.map((b) => rows[a * n + b][what])), names = order.map((k) => clean(short(featureName(ids[k]), 26)));
    const top = Math.max(...z.flatMap((r, i) => r.filter((v, j) => known(v) && (i !== j || what === "landing")).map(Math.abs))) || 1;
    plot(at, [{ type: "heatmap", z, x: order.map((_, i) => i), y: order.map((_, i) => i), colorscale: DIVERGING, zmid: 0, zmin: -top, zmax: top, colorbar: { thickness: 12 },
      customdata: order.map((a, i) => order.map((b, j) => `${names[i]}<br>${names[j]}`)), hovertemplate: "%{customdata}<br>%{z:.3g}<extra></extra>" }],
      { xaxis: { tickvals: order.map((_, i) => i), ticktext: order.map((k) => String(ids[k])), tickangle: -60, showticklabels: n <= 80, showgrid: false },
        yaxis: { tickvals: order.map((_, i) => i), ticktext: n <= 80 ? names : [], autorange: "reversed", showgrid: false } });
  }, 560);
  const groups = rowsOf(D.landing), kindsOf = [...new Set(groups.map((r) => r.kind))];
  if (groups.length) {
    let kind = kindsOf[0];
    const by = el("div", { class: "row" });
    node.append(el("h3", {}, "Where the effect of pairs falls"),
      el("p", { class: "note" }, "Mean share of a pair's effect, Σ|W·ΔW|, that falls on each feature. Click a column for its feature."), by);
    choose(by, "Pairs by", kindsOf.map((k) => [k, k]), (v) => { kind = v; redraw(); });
    const redraw = figure(node, "landing", (at) => {
      const own = groups.filter((r) => r.kind === kind), names = [...new Set(own.map((r) => r.group))];
      const columns = D.feature_order.map((k) => FEATURES[k].feature_id).filter((id) => own.some((r) => r.feature_id === id));
      const share = new Map(own.map((r) => [`${r.group}\n${r.feature_id}`, r.share]));
      plot(at, [{ type: "heatmap", z: names.map((g) => columns.map((id) => share.get(`${g}\n${id}`))), x: columns.map((_, i) => i), y: names.map((_, i) => i), colorscale: [[0, "#f7f7f7"], [1, "#3a4f9a"]], zmin: 0, colorbar: { thickness: 12, tickformat: ".0%", title: { text: "share" } },
        customdata: names.map((g) => columns.map((id) => `${clean(short(g, 40))}<br>${clean(short(featureName(id), 50))}`)), hovertemplate: "%{customdata}<br>%{z:.1%} of the effect<extra></extra>" }],
        { xaxis: { title: { text: "feature" }, tickvals: columns.map((_, i) => i), ticktext: columns.map(String), tickangle: -60, showticklabels: columns.length <= 80, showgrid: false },
          yaxis: { tickvals: names.map((_, i) => i), ticktext: names.map((g) => clean(short(g, 26))), autorange: "reversed", showgrid: false } });
      at.on("plotly_click", (e) => showFeature(columns[Math.round(e.points[0].x)]));
    }, 140 + 22 * Math.min(30, Math.max(...kindsOf.map((k) => new Set(groups.filter((r) => r.kind === k).map((r) => r.group)).size))));
    const detail = el("details", {}, el("summary", {}, "The figures behind it"));
    table(detail, "landing", groups, [["kind", "by"], ["group", "group"], ["pairs", "pairs", String], ["feature_id", "feature", String], ["share", "share", percent], ["mean_contribution", "mean W·ΔW", signed]], (r) => showFeature(r.feature_id), 20);
    node.append(detail);
  }
  table(node, "interference", rows.filter((r) => r.feature_id !== r.other_id), [["feature_id", "feature", String], ["other_id", "other", String], ["co_shift", "co-shift", signed],
    ["landing", "landing", percent], ["encoder_cosine", "encoder cosine", signed], ["activation_correlation", "activations", signed]], (r) => showFeature(r.feature_id), 15);
}
function pairs() {
  const node = section("pairs", "Pairs", "Scores by class with their medians. The paper flags a pair that scores on the other class's side of that class's median" + (D.totals.sure ? " (×)" : "") + "; ΔY flags apply the rule to mean ΔY, whatever the sign of the score. Stable: how many of the resamples agree.");
  figure(node, "scores", (at) => {
    const s = style();
    const flags = !D.totals.sure ? [] : CLASSES.map((name) => [name, PAIRS.filter((p) => classOf(p) === name && p.flagged)]).filter(([, own]) => own.length);
    plot(at, CLASSES.map((name) => ({ type: "histogram", name: clean(name), x: D.totals.scores[name], opacity: 0.6, nbinsx: 50, marker: { color: colour(name) } }))
      .concat(flags.map(([name, own]) => ({ type: "scatter", mode: "markers", name: `${clean(name)}: flagged`, yaxis: "y2", x: own.map((p) => p.score), y: own.map((p) => p.flag_stability ?? 1), text: own.map(pairName),
        hovertemplate: "%{text}: score %{x:.3g}, stable in %{y:.0%}<extra></extra>", marker: { color: colour(name), symbol: "x", size: 7, line: { color: s.ink, width: 0.5 } } }))),
      { barmode: "overlay", xaxis: { title: { text: "score" } }, yaxis: { title: { text: "pairs" } },
        ...(flags.length ? { yaxis2: { overlaying: "y", side: "right", range: [0, 1.05], tickvals: [0, 0.5, 0.95, 1], tickformat: ".0%", title: { text: "flag stability (×)" }, showgrid: false } } : {}),
        shapes: CLASSES.map((name) => { const m = median(D.totals.scores[name]); return { type: "line", x0: m, x1: m, yref: "paper", y0: 0, y1: 1, line: { color: colour(name), width: 2, dash: "dash" } }; }) });
    at.on("plotly_click", (e) => { const own = flags[e.points[0].curveNumber - CLASSES.length]; if (own) showPair(own[1][e.points[0].pointNumber]); });
  });
  const shown = PAIRS.map((p) => ({ ...p, pair: p, flag: [p.flagged ? "score" : "", p.flagged_delta_y ? "ΔY" : ""].filter(Boolean).join(", "), dominant: known(p.dominant_feature) ? featureName(p.dominant_feature) : "–" }));
  table(node, "pairs", shown, [PAIR_ID, ["label", "class"], ["prompt", "prompt", null, true], ["flag", "flags"], ["score", "score", signed], ["mean_delta_y", "mean ΔY", signed],
    ["flag_delta_y_stability", "ΔY flag stable", percent], ["flag_stability", "score flag stable", percent], ["score_low", "low", signed], ["score_high", "high", signed], ["dominant", "dominant feature", null, true], ["off_target_share", "off target", percent], ["through_x", "through X", percent], ["cancellation", "cancelled", percent], ["category", "category"]], (r) => showPair(r.pair));
}
function agreement() {
  const rows = rowsOf(D.agreement);
  if (!rows.length) return;
  const node = section("agreement", "Baselines", "Do simpler figures order the pairs alike? The label alone may explain an agreement over all pairs: look within a class. To first order the gradient dot is mean ΔY over η, so these two always agree.");
  let among = "all", what = "spearman";
  const names = [...new Set(rows.flatMap((r) => [r.figure, r.other]))], tools = el("div", { class: "row" });
  choose(tools, "Pairs", [...new Set(rows.map((r) => r.class))].map((c) => [c, c]), (v) => { among = v; again(); });
  choose(tools, "Figure", [["spearman", "Spearman's ρ"], ["kendall", "Kendall's τ"], ["overlap", "overlap of the first ten"]], (v) => { what = v; again(); });
  node.append(tools);
  const again = figure(node, "agreement", (at) => {
    const of = new Map(rows.filter((r) => r.class === among).map((r) => [`${r.figure} ${r.other}`, r[what]]));
    const z = names.map((a) => names.map((b) => (a === b ? 1 : of.get(`${a} ${b}`) ?? of.get(`${b} ${a}`) ?? null)));
    const titles = names.map(words);
    plot(at, [{ type: "heatmap", z, x: titles, y: titles, colorscale: DIVERGING, zmin: -1, zmax: 1, zmid: 0, texttemplate: "%{z:.2f}", colorbar: { thickness: 12 }, hovertemplate: "%{y} and %{x}: %{z:.3f}<extra></extra>" }],
      { yaxis: { autorange: "reversed", showgrid: false }, xaxis: { tickangle: -30, showgrid: false } });
  }, 460);
  table(node, "agreement", rows, [["class", "class"], ["figure", "figure"], ["other", "other"], ["pairs", "pairs", String], ["spearman", "ρ", signed], ["kendall", "τ", signed], ["overlap", "overlap", percent], ["expected", "by chance", percent]], null, 15);
}
function trueSteps() {
  const points = rowsOf(D.verify_points), rows = rowsOf(D.verify);
  if (!rows.length) return;
  const node = section("verify", "True steps", "What steps really do, in float64, against the first-order prediction; both over η, so that the line is the same for all. On the line first order holds.");
  let what = "score";
  const tools = el("div", { class: "row" });
  choose(tools, "Figure", [["score", "score"], ["mean_delta_y", "mean ΔY"]], (v) => { what = v; again(); });
  node.append(tools);
  const again = figure(node, "verify", (at) => {
    const some = points.filter((p) => p.figure === what), rates = [...new Set(some.map((p) => p.learning_rate))];
    const ends = [Math.min(...some.map((p) => p.predicted / p.learning_rate)), Math.max(...some.map((p) => p.predicted / p.learning_rate))];
    plot(at, [...rates.map((eta, j) => { const own = some.filter((p) => p.learning_rate === eta); return { type: "scatter", mode: "markers", name: `η = ${eta}`, x: own.map((p) => p.predicted / eta), y: own.map((p) => p.true / eta),
      text: own.map((p) => p.pair_id.slice(0, 8)), marker: { color: PALETTE[j % 6], symbol: SYMBOLS[j % 6], size: 8, opacity: 0.8 } }; }),
      { type: "scatter", mode: "lines", name: "first order", x: ends, y: ends, line: { color: style().soft, dash: "dot" } }],
      { xaxis: { title: { text: "predicted, over η" } }, yaxis: { title: { text: "true, over η" } } });
  });
  table(node, "verify", rows.map((r) => ({ ...r, holds: r.holds ? "yes" : "no" })), [["learning_rate", "η", number], ["figure", "figure"], ["pairs", "pairs", String], ["r2", "R²", (v) => number(v, 6)], ["slope", "slope", (v) => number(v, 5)], ["spearman", "ρ", (v) => number(v, 5)], ["holds", "holds"]]);
}
function rest() {
  const node = section("tables", "Tables", "The tables of the run folder, their columns, units and signs. " + D.conventions);
  const sweeps = Object.entries(D.sweep_columns).map(([name, columns]) => [`of a sweep: ${name}`, columns]);
  for (const [name, columns] of [...Object.entries(D.columns), ...sweeps]) {
    const part = el("details", {}, el("summary", {}, name));
    part.append(el("table", {}, el("tbody", {}, ...Object.entries(columns).map(([key, text]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", { class: "wide" }, text))))));
    node.append(part);
  }
  const stages = Object.entries(D.timings);
  if (!stages.length) return;
  const time = section("timings", "Timings", "Wall-clock seconds of the stages of the run, compilation included.");
  figure(time, "timings", (at) => plot(at, [{ type: "bar", orientation: "h", y: stages.map(([name]) => name), x: stages.map(([, s]) => s), marker: { color: PALETTE[0] } }],
    { yaxis: { autorange: "reversed" }, xaxis: { title: { text: "seconds" } } }), 90 + 30 * stages.length);
}

const button = document.getElementById("theme");
function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("smda-theme", name); } catch { /* a file may have no storage */ }
  button.textContent = name === "dark" ? "Light" : "Dark";
  for (const f of figures.values()) if (f.drawn) f.draw();
}
button.addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
let chosenTheme = null;
try { chosenTheme = localStorage.getItem("smda-theme"); } catch { /* a file may have no storage */ }
theme(chosenTheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
dialog.addEventListener("click", (e) => { if (e.target === dialog) dialog.close(); });
requestAnimationFrame(() => setTimeout(() => { // the first screen stands before any figure
  start();
  follow(location.hash);
}));
for (const part of [overview, coefficients, categories, heatmaps, interference, pairs, agreement, trueSteps, rest]) part();

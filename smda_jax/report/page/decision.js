// Sections: what acting on the run came to, and how good its figures are.
const ARM_METRICS = [
  ["f1", "soft F1"],
  ["correctness", "correctness"],
  ["precision", "precision"],
  ["recall", "recall"],
  ["mean_y", "mean Y"],
];
function mean(values) {
  return values.reduce((s, v) => s + v, 0) / values.length;
}
function spread(values) {
  const m = mean(values);
  return values.length < 2
    ? 0
    : Math.sqrt(values.reduce((s, v) => s + (v - m) ** 2, 0) / (values.length - 1));
}
function decision() {
  if (!D.experiment) return;
  const e = D.experiment,
    rows = rowsOf(e.arms),
    arms = [...new Set(rows.map((r) => r.arm))];
  const node = section(
    "experiment",
    "Experiment",
    `${e.finding} ${e.removed} of ${e.pairs} pairs are left out` +
      (e.planted ? `, ${e.planted_removed} of the ${e.planted} planted among them.` : "."),
  );
  const of = (arm, key) => rows.filter((r) => r.arm === arm).map((r) => r[key]);
  figure(
    node,
    "arms",
    (at) =>
      plot(
        at,
        arms.map((arm, i) => ({
          type: "scatter",
          mode: "markers",
          name: arm,
          x: of(arm, "f1"),
          y: of(arm, "f1").map(() => arm),
          marker: {
            size: 11,
            opacity: 0.75,
            color: PALETTE[arm === "curated" ? 2 : arm.startsWith("control") ? 1 : 0],
            symbol: SYMBOLS[i % SYMBOLS.length],
          },
          hovertemplate: "%{y}: soft F1 %{x:.3f}<extra></extra>",
        })),
        {
          showlegend: false,
          xaxis: { title: { text: "soft F1 after training, one mark for each order" } },
          yaxis: { autorange: "reversed" },
        },
      ),
    165 + 34 * arms.length,
  );
  table(
    node,
    "experiment/experiment",
    arms.map((arm) => ({
      arm,
      pairs: of(arm, "pairs")[0],
      orders: of(arm, "f1").length,
      ...Object.fromEntries(ARM_METRICS.map(([key]) => [key, mean(of(arm, key))])),
      f1_spread: spread(of(arm, "f1")),
    })),
    [
      ["arm", "arm"],
      ["pairs", "pairs", String],
      ["orders", "orders", String],
      ...ARM_METRICS.map(([key, title]) => [key, title, number]),
      ["f1_spread", "sd of F1", number],
    ],
  );
  const shifts = rowsOf(e.shifts).filter((r) => r.arm === "curated"),
    kinds = ["coefficient", "category"];
  const shown = kinds.map((kind) =>
    shifts.filter((r) => r.target.startsWith(`${kind}:`) && known(r.predicted)),
  );
  if (shown.some((some) => some.length)) {
    node.append(
      el(
        "p",
        { class: "note" },
        "Shift of every coefficient and category between training on all pairs and without " +
          "those left out: what the run predicted against what came.",
      ),
    );
    figure(
      node,
      "shifts",
      (at) =>
        plot(
          at,
          kinds.map((kind, i) => ({
            type: "scatter",
            mode: "markers",
            name: kind,
            xaxis: i ? "x2" : "x",
            yaxis: i ? "y2" : "y",
            x: shown[i].map((r) => r.predicted),
            y: shown[i].map((r) => r.realised),
            error_y: { array: shown[i].map((r) => 2 * r.standard_error), color: style().soft },
            text: shown[i].map((r) => clean(shiftName(r.target))),
            hovertemplate: "%{text}<br>predicted %{x:.3g}, realised %{y:.3g}<extra></extra>",
            marker: { color: PALETTE[i], size: 8 },
          })),
          {
            grid: { rows: 1, columns: 2, pattern: "independent" },
            xaxis: { title: { text: "predicted, coefficients" } },
            yaxis: { title: { text: "realised" } },
            xaxis2: { title: { text: `predicted, categories (${D.unit})` } },
            yaxis2: {},
          },
        ),
      380,
    );
  }
  const detail = el("details", {}, el("summary", {}, "Every target, before and after"));
  table(
    detail,
    "experiment/shifts",
    rowsOf(e.shifts).map((r) => ({ ...r, target: shiftName(r.target) })),
    [
      ["arm", "arm"],
      ["target", "target"],
      ["before", "before", signed],
      ["full", "all pairs", signed],
      ["after", "without", signed],
      ["predicted", "predicted", signed],
      ["realised", "realised", signed],
      ["standard_error", "standard error", number],
    ],
  );
  node.append(detail);
}
function shiftName(target) {
  const [kind, rest] = [target.split(":")[0], target.slice(target.indexOf(":") + 1)];
  return kind === "coefficient" ? featureName(Number(rest)) : rest;
}
function card() {
  const rows = rowsOf(D.validation);
  if (!rows.length) return;
  const node = section(
    "validation",
    "How good is it?",
    "Models trained on random subsets of the pairs, against what every figure of a pair predicts " +
      "of them. The line is the ceiling: how well another order of the same subset would do.",
  );
  const targets = ["mean_y", "coefficient median", "coefficient worst", "category median"].filter(
    (t) => rows.some((r) => r.measure === "lds" && r.target === t),
  );
  const own = rows.filter((r) => r.measure === "lds"),
    names = [...new Set(own.map((r) => r.figure))];
  const at_ = (figure, target) => own.find((r) => r.figure === figure && r.target === target);
  figure(
    node,
    "lds",
    (at) =>
      plot(
        at,
        targets.map((target, i) => ({
          type: "bar",
          orientation: "h",
          name: target.replace("_", " "),
          y: names,
          x: names.map((n) => at_(n, target).value),
          error_x: {
            type: "data",
            symmetric: false,
            array: names.map((n) => at_(n, target).high - at_(n, target).value),
            arrayminus: names.map((n) => at_(n, target).value - at_(n, target).low),
            color: style().soft,
            thickness: 1,
            width: 2,
          },
          marker: { color: PALETTE[i] },
          hovertemplate: "%{y}: %{x:.3f}<extra>" + target + "</extra>",
        })),
        {
          barmode: "group",
          legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
          yaxis: { autorange: "reversed" },
          xaxis: { title: { text: "LDS: rank correlation with what training came to" } },
          shapes: targets
            .map((target, i) => [at_(names[0], target).reference, i])
            .filter(([value]) => known(value))
            .map(([value, i]) => ({
              type: "line",
              yref: "paper",
              x0: value,
              x1: value,
              y0: 0,
              y1: 1,
              line: { color: PALETTE[i], dash: "dot", width: 1.5 },
            })),
        },
      ),
    120 + 20 * names.length * targets.length,
  );
  const columns = [
    ["figure", "figure"],
    ["target", "of"],
    ["value", "value", number],
    ["low", "low", number],
    ["high", "high", number],
    ["reference", "ceiling, or chance", number],
    ["count", "over", String],
  ];
  const kinds = {
    lds: "LDS by target",
    auprc: "Planted pairs: area under precision and recall",
    auc: "Planted pairs: AUC",
    "leave out": "Mean Y without the pairs that a figure puts first",
    "tail patch": "Mean Y after one step on them",
  };
  for (const [measure, title] of Object.entries(kinds)) {
    const some = rows.filter((r) => r.measure === measure);
    if (!some.length) continue;
    const detail = el("details", {}, el("summary", {}, title));
    table(detail, "validation", some, columns);
    node.append(detail);
  }
}

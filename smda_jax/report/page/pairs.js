// Sections: pairs, agreement of figures, and true steps.
function pairs() {
  const node = section(
    "pairs",
    "Pairs",
    "Scores by class with their medians. The paper flags a pair that is expected to raise the " +
    "behaviour and scores below the median of those expected to lower it, and the other way " +
    "round" +
      (D.totals.sure ? " (×)" : "") +
      "; ΔY flags apply the rule to mean ΔY, whatever the sign of the score. Stable: how many " +
      "of the resamples agree.",
  );
  figure(node, "scores", (at) => {
    const s = style();
    const flags = !D.totals.sure
      ? []
      : CLASSES.map((name) => [name, PAIRS.filter((p) => classOf(p) === name && p.flagged)]).filter(
          ([, own]) => own.length,
        );
    plot(
      at,
      CLASSES.map((name) => ({
        type: "histogram",
        name: clean(name),
        x: D.totals.scores[name],
        opacity: 0.6,
        nbinsx: 50,
        marker: { color: colour(name) },
      })).concat(
        flags.map(([name, own]) => ({
          type: "scatter",
          mode: "markers",
          name: `${clean(name)}: flagged`,
          yaxis: "y2",
          x: own.map((p) => p.score),
          y: own.map((p) => p.flag_stability ?? 1),
          text: own.map(pairName),
          hovertemplate: "%{text}: score %{x:.3g}, stable in %{y:.0%}<extra></extra>",
          marker: { color: colour(name), symbol: "x", size: 7, line: { color: s.ink, width: 0.5 } },
        })),
      ),
      {
        barmode: "overlay",
        xaxis: { title: { text: "score" } },
        yaxis: { title: { text: "pairs" } },
        ...(flags.length
          ? {
              yaxis2: {
                overlaying: "y",
                side: "right",
                range: [0, 1.05],
                tickvals: [0, 0.5, 0.95, 1],
                tickformat: ".0%",
                title: { text: "flag stability (×)" },
                showgrid: false,
              },
            }
          : {}),
        shapes: CLASSES.map((name) => {
          const m = median(D.totals.scores[name]);
          return {
            type: "line",
            x0: m,
            x1: m,
            yref: "paper",
            y0: 0,
            y1: 1,
            line: { color: colour(name), width: 2, dash: "dash" },
          };
        }),
      },
    );
    at.on("plotly_click", (e) => {
      const own = flags[e.points[0].curveNumber - CLASSES.length];
      if (own) showPair(own[1][e.points[0].pointNumber]);
    });
  });
  const shown = PAIRS.map((p) => ({
    ...p,
    pair: p,
    flag: [p.flagged ? "score" : "", p.flagged_delta_y ? "ΔY" : ""].filter(Boolean).join(", "),
    dominant: known(p.dominant_feature) ? featureName(p.dominant_feature) : "–",
  }));
  table(
    node,
    "pairs",
    shown,
    [
      PAIR_ID,
      ["label", "class"],
      ["prompt", "prompt", null, true],
      ["flag", "flags"],
      ["score", "score", signed],
      ["mean_delta_y", "mean ΔY", signed],
      ["flag_delta_y_stability", "ΔY flag stable", percent],
      ["flag_stability", "score flag stable", percent],
      ["score_low", "low", signed],
      ["score_high", "high", signed],
      ["dominant", "dominant feature", null, true],
      ["off_target_share", "off target", percent],
      ["through_x", "through X", percent],
      ["cancellation", "cancelled", percent],
      ["category", "category"],
    ],
    (r) => showPair(r.pair),
  );
}
function agreement() {
  const rows = rowsOf(D.agreement);
  if (!rows.length) return;
  const node = section(
    "agreement",
    "Baselines",
    "Do simpler figures order the pairs alike? The label alone may explain an agreement over " +
    "all pairs: look within a class. To first order the gradient dot is mean ΔY over η, so " +
    "these two always agree.",
  );
  let among = "all",
    what = "spearman";
  const names = [...new Set(rows.flatMap((r) => [r.figure, r.other]))],
    tools = el("div", { class: "row" });
  choose(
    tools,
    "Pairs",
    [...new Set(rows.map((r) => r.class))].map((c) => [c, c]),
    (v) => {
      among = v;
      again();
    },
  );
  choose(
    tools,
    "Figure",
    [
      ["spearman", "Spearman's ρ"],
      ["kendall", "Kendall's τ"],
      ["overlap", "overlap of the first ten"],
    ],
    (v) => {
      what = v;
      again();
    },
  );
  node.append(tools);
  const again = figure(
    node,
    "agreement",
    (at) => {
      const of = new Map(
        rows.filter((r) => r.class === among).map((r) => [`${r.figure} ${r.other}`, r[what]]),
      );
      const z = names.map((a) =>
        names.map((b) => (a === b ? 1 : (of.get(`${a} ${b}`) ?? of.get(`${b} ${a}`) ?? null))),
      );
      const titles = names.map(words);
      plot(
        at,
        [
          {
            type: "heatmap",
            z,
            x: titles,
            y: titles,
            colorscale: DIVERGING,
            zmin: -1,
            zmax: 1,
            zmid: 0,
            texttemplate: "%{z:.2f}",
            colorbar: { thickness: 12 },
            hovertemplate: "%{y} and %{x}: %{z:.3f}<extra></extra>",
          },
        ],
        {
          yaxis: { autorange: "reversed", showgrid: false },
          xaxis: { tickangle: -30, showgrid: false },
        },
      );
    },
    460,
  );
  table(
    node,
    "agreement",
    rows,
    [
      ["class", "class"],
      ["figure", "figure"],
      ["other", "other"],
      ["pairs", "pairs", String],
      ["spearman", "ρ", signed],
      ["kendall", "τ", signed],
      ["overlap", "overlap", percent],
      ["expected", "by chance", percent],
    ],
    null,
    15,
  );
}
function trueSteps() {
  const points = rowsOf(D.verify_points),
    rows = rowsOf(D.verify);
  if (!rows.length) return;
  const node = section(
    "verify",
    "True steps",
    "What steps really do, in float64, against the first-order prediction; both over η, so " +
    "that the line is the same for all. On the line first order holds.",
  );
  let what = "score";
  const tools = el("div", { class: "row" });
  choose(
    tools,
    "Figure",
    [
      ["score", "score"],
      ["mean_delta_y", "mean ΔY"],
    ],
    (v) => {
      what = v;
      again();
    },
  );
  node.append(tools);
  const again = figure(node, "verify", (at) => {
    const some = points.filter((p) => p.figure === what),
      rates = [...new Set(some.map((p) => p.learning_rate))];
    const ends = [
      Math.min(...some.map((p) => p.predicted / p.learning_rate)),
      Math.max(...some.map((p) => p.predicted / p.learning_rate)),
    ];
    plot(
      at,
      [
        ...rates.map((eta, j) => {
          const own = some.filter((p) => p.learning_rate === eta);
          return {
            type: "scatter",
            mode: "markers",
            name: `η = ${eta}`,
            x: own.map((p) => p.predicted / eta),
            y: own.map((p) => p.true / eta),
            text: own.map((p) => p.pair_id.slice(0, 8)),
            marker: { color: PALETTE[j % 6], symbol: SYMBOLS[j % 6], size: 8, opacity: 0.8 },
          };
        }),
        {
          type: "scatter",
          mode: "lines",
          name: "first order",
          x: ends,
          y: ends,
          line: { color: style().soft, dash: "dot" },
        },
      ],
      {
        xaxis: { title: { text: "predicted, over η" } },
        yaxis: { title: { text: "true, over η" } },
      },
    );
  });
  table(
    node,
    "verify",
    rows.map((r) => ({ ...r, holds: r.holds ? "yes" : "no" })),
    [
      ["learning_rate", "η", number],
      ["figure", "figure"],
      ["pairs", "pairs", String],
      ["r2", "R²", (v) => number(v, 6)],
      ["slope", "slope", (v) => number(v, 5)],
      ["spearman", "ρ", (v) => number(v, 5)],
      ["holds", "holds"],
    ],
  );
}

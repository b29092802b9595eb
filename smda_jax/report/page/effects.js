// Sections: effects of pairs on features, and their pathways.
function heatmaps() {
  if (!total) return;
  const node = section(
    "effects",
    "Effects",
    "How far a step on each pair moves the policy along every feature (W·ΔW). Pairs with like " +
    "effects stand together within their class, features too; click a cell for its pair.",
  );
  let what = "total";
  const values = { total, x: D.contribution.x, y: D.contribution.y };
  const tools = el("div", { class: "row" });
  choose(
    tools,
    "Pathway",
    [
      ["total", "both"],
      ["x", "feature activations (ΔX)"],
      ["y", "output probabilities (ΔY)"],
    ],
    (v) => {
      what = v;
      again();
    },
  );
  node.append(tools);
  const again = figure(
    node,
    "effects",
    (at) => {
      const rows = D.pair_order,
        columns = D.feature_order,
        z = rows.map((i) => columns.map((k) => values[what][i][k]));
      const all = z
          .flat()
          .map(Math.abs)
          .sort((a, b) => a - b),
        top = all[Math.floor(0.98 * (all.length - 1))] || 1;
      const starts = rows
        .map((i, r) => r)
        .filter((r) => !r || classOf(PAIRS[rows[r]]) !== classOf(PAIRS[rows[r - 1]]));
      const edges = rows
        .map((i, r) => r)
        .filter((r) => r && classOf(PAIRS[rows[r]]) !== classOf(PAIRS[rows[r - 1]]));
      plot(
        at,
        [
          {
            type: "heatmap",
            z,
            colorscale: DIVERGING,
            zmid: 0,
            zmin: -top,
            zmax: top,
            colorbar: { title: { text: "W·ΔW" }, thickness: 12 },
            customdata: rows.map((i) =>
              columns.map(
                (k) =>
                  `${pairName(PAIRS[i])} ` +
                  `${clean(classOf(PAIRS[i]))}<br>` +
                    clean(short(featureName(FEATURES[k].feature_id), 50)),
              ),
            ),
            hovertemplate: "%{customdata}<br>%{z:.3g}<extra></extra>",
          },
        ],
        {
          xaxis: {
            title: { text: "feature" },
            tickvals: columns.map((_, c) => c),
            ticktext: columns.map((k) => String(FEATURES[k].feature_id)),
            tickangle: -60,
            showticklabels: columns.length <= 80,
            showgrid: false,
          },
          yaxis: {
            tickvals: starts.map((r, j) => (r + (starts[j + 1] ?? rows.length)) / 2),
            ticktext: starts.map((r) => clean(short(classOf(PAIRS[rows[r]]), 22))),
            autorange: "reversed",
            showgrid: false,
          },
          shapes: edges.map((r) => ({
            type: "line",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: r - 0.5,
            y1: r - 0.5,
            line: { color: style().ink, width: 1.5 },
          })),
        },
      );
      at.on("plotly_click", (e) => showPair(PAIRS[rows[Math.round(e.points[0].y)]]));
    },
    620,
  );
  const scatter = section(
    "pathways",
    "Pathways",
    "The score of every pair through feature activations against that through output " +
    "probabilities. On the falling diagonal the two undo each other.",
  );
  figure(
    scatter,
    "pathways",
    (at) => {
      const part = (way) => D.contribution[way].map((row) => row.reduce((s, v) => s + v, 0)),
        x = part("x"),
        y = part("y");
      const reach = Math.max(...x.map(Math.abs), ...y.map(Math.abs)) || 1;
      const shown = CLASSES.map((name) =>
        PAIRS.map((_, i) => i).filter((i) => classOf(PAIRS[i]) === name),
      );
      plot(
        at,
        CLASSES.map((name, c) => ({
          type: "scatter",
          mode: "markers",
          name: clean(name),
          x: shown[c].map((i) => x[i]),
          y: shown[c].map((i) => y[i]),
          text: shown[c].map(
            (i) => `${pairName(PAIRS[i])}<br>${clean(short(PAIRS[i].prompt, 80))}`,
          ),
          hovertemplate: "%{text}<br>X %{x:.3g}, Y %{y:.3g}<extra></extra>",
          marker: {
            color: colour(name),
            symbol: SYMBOLS[c % SYMBOLS.length],
            size: 8,
            opacity: 0.8,
          },
        })),
        {
          xaxis: { title: { text: "score through feature activations" } },
          yaxis: { title: { text: "score through output probabilities" } },
          shapes: [
            {
              type: "line",
              x0: -reach,
              y0: reach,
              x1: reach,
              y1: -reach,
              line: { color: style().soft, dash: "dot", width: 1 },
            },
          ],
        },
      );
      at.on("plotly_click", (e) =>
        showPair(PAIRS[shown[e.points[0].curveNumber][e.points[0].pointNumber]]),
      );
    },
    440,
  );
  const byClass = rowsOf(D.class_features).filter((r) => r.class !== "all");
  if (byClass.length) {
    const detail = el("details", {}, el("summary", {}, "Shares by class and feature"));
    table(
      detail,
      "class_features",
      byClass,
      [
        ["class", "class"],
        ["feature_id", "feature", String],
        ["label", "label"],
        ["mean_contribution", "mean W·ΔW", signed],
        ["share", "of the class's shifts", percent],
        ["through_x", "through X", percent],
        ["cancellation", "cancelled", percent],
        ["dominant_pairs", "dominant in", String],
      ],
      (f) => showFeature(f.feature_id),
    );
    scatter.append(detail);
  }
}

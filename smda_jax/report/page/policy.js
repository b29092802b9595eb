// Sections: the policy's coefficients, and gaps between categories.
function coefficients() {
  if (!FEATURES.length) return;
  const node = section(
    "policy",
    "Policy",
    "Coefficients W of the policy with 95 % intervals over resamples of the prompts; positive: " +
    "Y is higher. Click a bar for its feature.",
  );
  const order = FEATURES.map((_, k) => k)
    .sort((a, b) => Math.abs(FEATURES[b].weight) - Math.abs(FEATURES[a].weight))
    .slice(0, 60);
  figure(
    node,
    "coefficients",
    (at) => {
      const f = order.map((k) => FEATURES[k]),
        sure = known(f[0].weight_low);
      plot(
        at,
        [
          {
            type: "bar",
            orientation: "h",
            y: f.map((x) => clean(short(featureName(x.feature_id), 44))),
            x: f.map((x) => x.weight),
            marker: {
              color: f.map((x) => (x.weight > 0 ? PALETTE[0] : PALETTE[5])),
              opacity: f.map((x) => (!sure || x.sign_stability >= 0.95 ? 1 : 0.45)),
            },
            error_x: sure
              ? {
                  type: "data",
                  symmetric: false,
                  array: f.map((x) => x.weight_high - x.weight),
                  arrayminus: f.map((x) => x.weight - x.weight_low),
                  color: style().soft,
                  thickness: 1.2,
                  width: 3,
                }
              : undefined,
            hovertemplate: "%{y}<br>W %{x:.4g}<extra></extra>",
          },
        ],
        {
          yaxis: { autorange: "reversed" },
          xaxis: { title: { text: `W, ${D.unit} per unit of activation (pale: sign not stable)` } },
        },
      );
      at.on("plotly_click", (e) => showFeature(f[e.points[0].pointNumber].feature_id));
    },
    90 + 20 * order.length,
  );
  table(
    node,
    "features",
    FEATURES,
    [
      ["feature_id", "feature", String],
      ["label", "label"],
      ["weight", "W", signed],
      ["weight_low", "low", signed],
      ["weight_high", "high", signed],
      ["sign_stability", "sign", percent],
      ["active_share", "active", percent],
      ["share", "of shifts", percent],
      ["through_x", "through X", percent],
      ["cancellation", "cancelled", percent],
      ["dominant_pairs", "dominant in", String],
    ],
    (f) => showFeature(f.feature_id),
  );
}
function categories() {
  if (!GAPS.length) return;
  const node = section(
    "gaps",
    "Gaps",
    "Each category of prompts against the other prompts of its label: below zero, the " +
    "behaviour passes it over. The bar says what the policy knows of the gap, feature by feature.",
  );
  figure(
    node,
    "gaps",
    (at) => {
      const rows = GAPS.filter((g) => known(g.gap)).slice(0, 40),
        names = rows.map((g) => clean(short(g.category, 40)));
      const carried = rows.map((g) =>
        rowsOf(D.gap_features).filter((c) => c.category === g.category),
      );
      const most = [
        ...new Set(
          carried.flatMap((c) =>
            [...c]
              .sort((a, b) => Math.abs(b.carried) - Math.abs(a.carried))
              .slice(0, 2)
              .map((x) => x.feature_id),
          ),
        ),
      ].slice(0, 6);
      const bars = most.map((id, j) => ({
        type: "bar",
        orientation: "h",
        name: clean(short(featureName(id), 30)),
        y: names,
        marker: { color: PALETTE[j], opacity: 0.75 },
        x: carried.map((c) => c.find((x) => x.feature_id === id).carried),
      }));
      bars.push({
        type: "bar",
        orientation: "h",
        name: "other features",
        y: names,
        marker: { color: style().line },
        x: carried.map((c) =>
          c.filter((x) => !most.includes(x.feature_id)).reduce((s, x) => s + x.carried, 0),
        ),
      });
      plot(
        at,
        [
          ...bars,
          {
            type: "scatter",
            mode: "markers",
            name: "observed gap, 95 %",
            y: names,
            x: rows.map((g) => g.gap),
            marker: { color: style().ink, size: 9, symbol: "diamond" },
            error_x: {
              type: "data",
              symmetric: false,
              array: rows.map((g) => g.gap_high - g.gap),
              arrayminus: rows.map((g) => g.gap - g.gap_low),
              color: style().ink,
              width: 4,
            },
          },
        ],
        {
          barmode: "relative",
          yaxis: { autorange: "reversed" },
          xaxis: { title: { text: `mean Y less that of the label's other prompts, ${D.unit}` } },
        },
      );
      at.on("plotly_click", (e) => showCategory(rows[e.points[0].pointNumber]));
    },
    150 + 34 * Math.min(40, GAPS.filter((g) => known(g.gap)).length),
  );
  table(
    node,
    "gaps",
    GAPS,
    [
      ["category", "category"],
      ["label", "label"],
      ["prompts", "prompts", String],
      ["shows", "show it", percent],
      ["y", "mean Y", signed],
      ["prediction", "policy", signed],
      ["residual", "residual", signed],
      ["gap", "gap", signed],
      ["gap_low", "low", signed],
      ["gap_high", "high", signed],
    ],
    showCategory,
  );
}

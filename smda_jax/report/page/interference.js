// Section: interference between features, and where effects fall.
function interference() {
  const rows = rowsOf(D.interference);
  if (!rows.length) return;
  const kinds = [
    ["co_shift", "co-shift: correlation of ΔW over pairs"],
    ["landing", "landing: share of the effect of pairs that have the row's feature"],
    ["encoder_cosine", "cosine of the encoder directions"],
    ["activation_correlation", "correlation of activations"],
  ];
  const geometry = Object.entries(D.summary.geometry ?? {})
    .filter(([, t]) => known(t.spearman))
    .map(
      ([name, t]) =>
        `${name.replaceAll("_", " ")}: ρ ${signed(t.spearman, 2)}, p ${number(t.p, 2)}`,
    )
    .join("; ");
  const node = section(
    "interference",
    "Interference",
    "Which features shift together, beside what the geometry of the encoder and of the " +
    "activations would suggest. " +
      (geometry ? `Does geometry explain the co-shifts (Mantel's test, ranks)? ${geometry}.` : ""),
  );
  let what = "co_shift";
  const ids = [...new Set(rows.map((r) => r.feature_id))],
    n = ids.length,
    order = D.feature_order.map((k) => ids.indexOf(FEATURES[k].feature_id)).filter((k) => k >= 0);
  const tools = el("div", { class: "row" });
  choose(tools, "Matrix", kinds, (v) => {
    what = v;
    again();
  });
  node.append(tools);
  const again = figure(
    node,
    "interference",
    (at) => {
      const z = order.map((a) => order.map((b) => rows[a * n + b][what])),
        names = order.map((k) => clean(short(featureName(ids[k]), 26)));
      const top =
        Math.max(
          ...z.flatMap((r, i) =>
            r.filter((v, j) => known(v) && (i !== j || what === "landing")).map(Math.abs),
          ),
        ) || 1;
      plot(
        at,
        [
          {
            type: "heatmap",
            z,
            x: order.map((_, i) => i),
            y: order.map((_, i) => i),
            colorscale: DIVERGING,
            zmid: 0,
            zmin: -top,
            zmax: top,
            colorbar: { thickness: 12 },
            customdata: order.map((a, i) => order.map((b, j) => `${names[i]}<br>${names[j]}`)),
            hovertemplate: "%{customdata}<br>%{z:.3g}<extra></extra>",
          },
        ],
        {
          xaxis: {
            tickvals: order.map((_, i) => i),
            ticktext: order.map((k) => String(ids[k])),
            tickangle: -60,
            showticklabels: n <= 80,
            showgrid: false,
          },
          yaxis: {
            tickvals: order.map((_, i) => i),
            ticktext: n <= 80 ? names : [],
            autorange: "reversed",
            showgrid: false,
          },
        },
      );
    },
    560,
  );
  const groups = rowsOf(D.landing),
    kindsOf = [...new Set(groups.map((r) => r.kind))];
  if (groups.length) {
    let kind = kindsOf[0];
    const by = el("div", { class: "row" });
    node.append(
      el("h3", {}, "Where the effect of pairs falls"),
      el(
        "p",
        { class: "note" },
        "Mean share of a pair's effect, Σ|W·ΔW|, that falls on each feature. Click a column " +
        "for its feature.",
      ),
      by,
    );
    choose(
      by,
      "Pairs by",
      kindsOf.map((k) => [k, k]),
      (v) => {
        kind = v;
        redraw();
      },
    );
    const redraw = figure(
      node,
      "landing",
      (at) => {
        const own = groups.filter((r) => r.kind === kind),
          names = [...new Set(own.map((r) => r.group))];
        const columns = D.feature_order
          .map((k) => FEATURES[k].feature_id)
          .filter((id) => own.some((r) => r.feature_id === id));
        const share = new Map(own.map((r) => [`${r.group}\n${r.feature_id}`, r.share]));
        plot(
          at,
          [
            {
              type: "heatmap",
              z: names.map((g) => columns.map((id) => share.get(`${g}\n${id}`))),
              x: columns.map((_, i) => i),
              y: names.map((_, i) => i),
              colorscale: [
                [0, "#f7f7f7"],
                [1, "#3a4f9a"],
              ],
              zmin: 0,
              colorbar: { thickness: 12, tickformat: ".0%", title: { text: "share" } },
              customdata: names.map((g) =>
                columns.map(
                  (id) => `${clean(short(g, 40))}<br>${clean(short(featureName(id), 50))}`,
                ),
              ),
              hovertemplate: "%{customdata}<br>%{z:.1%} of the effect<extra></extra>",
            },
          ],
          {
            xaxis: {
              title: { text: "feature" },
              tickvals: columns.map((_, i) => i),
              ticktext: columns.map(String),
              tickangle: -60,
              showticklabels: columns.length <= 80,
              showgrid: false,
            },
            yaxis: {
              tickvals: names.map((_, i) => i),
              ticktext: names.map((g) => clean(short(g, 26))),
              autorange: "reversed",
              showgrid: false,
            },
          },
        );
        at.on("plotly_click", (e) => showFeature(columns[Math.round(e.points[0].x)]));
      },
      140 +
        22 *
          Math.min(
            30,
            Math.max(
              ...kindsOf.map(
                (k) => new Set(groups.filter((r) => r.kind === k).map((r) => r.group)).size,
              ),
            ),
          ),
    );
    const detail = el("details", {}, el("summary", {}, "The figures behind it"));
    table(
      detail,
      "landing",
      groups,
      [
        ["kind", "by"],
        ["group", "group"],
        ["pairs", "pairs", String],
        ["feature_id", "feature", String],
        ["share", "share", percent],
        ["mean_contribution", "mean W·ΔW", signed],
      ],
      (r) => showFeature(r.feature_id),
      20,
    );
    node.append(detail);
  }
  table(
    node,
    "interference",
    rows.filter((r) => r.feature_id !== r.other_id),
    [
      ["feature_id", "feature", String],
      ["other_id", "other", String],
      ["co_shift", "co-shift", signed],
      ["landing", "landing", percent],
      ["encoder_cosine", "encoder cosine", signed],
      ["activation_correlation", "activations", signed],
    ],
    (r) => showFeature(r.feature_id),
    15,
  );
}

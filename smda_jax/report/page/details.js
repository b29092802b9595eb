// What a pair, a feature and a category show when they are opened.
// Which tokens of a pair a figure comes from: orange raises it, purple lowers it.
function tokenMap(p) {
  const own = D.tokens?.pairs[p.pair_id];
  if (!own) return [];
  const names = D.tokens.columns,
    node = el("p", { class: "tokens", id: "tokens" }),
    box = el("div", {});
  const fill = (name) => {
    const k = names.indexOf(name) + 1,
      most = Math.max(...own.map((t) => Math.abs(t[k] ?? 0))) || 1;
    node.replaceChildren(
      ...own.map((t) =>
        el(
          "span",
          {
            title: `${signed(t[k])}`,
            style: `background:rgba(${t[k] > 0 ? "213,94,0" : "117,112,179"},${(
              (0.75 * Math.abs(t[k] ?? 0)) /
              most
            ).toFixed(3)})`,
          },
          t[0],
        ),
      ),
    );
  };
  choose(
    box,
    "Tokens by",
    names.map((name) => [name, words(name)]),
    fill,
  );
  fill(names[0]);
  return [el("h3", {}, "Which tokens"), box, node];
}
function showPair(p) {
  const i = PAIRS.indexOf(p);
  show(
    () => showPair(p),
    `#pair=${p.pair_id.slice(0, 16)}`,
    `Pair ${pairName(p)}: ${classOf(p)}`,
    facts([
      `score ` +
      `${signed(p.score)}${between(p.score_low, p.score_high)}`,
      known(p.mean_delta_y) && `mean ΔY ${signed(p.mean_delta_y)} ${D.unit}`,
      `loss ${number(p.loss)}`,
      known(p.off_target_share) &&
        `off target ` +
        percent(p.off_target_share) +
          (known(p.off_target_category)
            ? ` (by its category ${percent(p.off_target_category)})`
            : ""),
      known(p.through_x) && `through X ${percent(p.through_x)}`,
      p.flagged &&
        `flagged by ` +
        `score${stable(p.flag_stability)}`,
      p.flagged_delta_y &&
        `flagged by mean ` +
        `ΔY${stable(p.flag_delta_y_stability)}`,
      p.category && `category ${p.category}`,
      p.planted && "planted",
    ]),
    el("h3", {}, "Prompt"),
    quote(p.prompt),
    el("h3", {}, "Response"),
    quote(p.response),
    ...tokenMap(p),
    el("h3", {}, "Features active on its own prompt"),
    el(
      "p",
      {},
      ...(p.own_features.length
        ? p.own_features.map((id) =>
            el("button", { onclick: () => showFeature(id) }, featureName(id)),
          )
        : ["none of those chosen"]),
    ),
    total &&
      ((node) => {
        node.append(el("h3", {}, "Where its effect falls"));
        const order = FEATURES.map((_, k) => k)
          .sort((a, b) => Math.abs(total[i][b]) - Math.abs(total[i][a]))
          .slice(0, 25);
        figure(
          node,
          "pair",
          (at) => {
            const names = order.map(
              (k) =>
                clean(short(featureName(FEATURES[k].feature_id), 40)) +
                (p.own_features.includes(FEATURES[k].feature_id) ? " •" : ""),
            );
            plot(
              at,
              [
                ["x", "through activations (ΔX)", PALETTE[0]],
                ["y", "through probabilities (ΔY)", PALETTE[1]],
              ].map(([way, name, c]) => ({
                type: "bar",
                orientation: "h",
                name,
                y: names,
                x: order.map((k) => D.contribution[way][i][k]),
                marker: { color: c },
              })),
              {
                barmode: "relative",
                yaxis: { autorange: "reversed" },
                xaxis: { title: { text: "W·ΔW" } },
              },
            );
            at.on("plotly_click", (e) =>
              showFeature(FEATURES[order[e.points[0].pointNumber]].feature_id),
            );
          },
          80 + 22 * order.length,
        );
        node.append(
          el("p", { class: "note" }, "• active on the pair's own prompt. The rest is off target."),
        );
        table(
          node,
          "influence",
          order.map((k) => ({
            feature_id: FEATURES[k].feature_id,
            label: FEATURES[k].label,
            contribution: total[i][k],
            delta_w: D.delta_w.value[i][k],
            delta_w_low: D.delta_w.low?.[i][k],
            delta_w_high: D.delta_w.high?.[i][k],
          })),
          [
            ["feature_id", "feature", String],
            ["label", "label"],
            ["contribution", "W·ΔW", signed],
            ["delta_w", "ΔW", signed],
            ["delta_w_low", "low", signed],
            ["delta_w_high", "high", signed],
          ],
          (r) => showFeature(r.feature_id),
        );
      }),
  );
}
function showFeature(id) {
  const k = featureAt.get(id),
    f = FEATURES[k];
  if (!f) return;
  const candidates = rowsOf(D.candidates).filter((c) => c.feature_id === id);
  const movers = !total
    ? []
    : PAIRS.map((p, i) => ({
        ...p,
        row: p,
        moved: total[i][k],
        delta_w: D.delta_w.value[i][k],
      })).sort((a, b) => Math.abs(b.moved) - Math.abs(a.moved));
  show(
    () => showFeature(id),
    `#feature=${id}`,
    `Feature ${id}${f.label ? `: ${f.label}` : ""}`,
    facts([
      `W ` +
      `${signed(f.weight)}${between(f.weight_low, f.weight_high)}` +
        (known(f.sign_stability) ? `, sign stable in ${percent(f.sign_stability)}` : ""),
      `active on ${percent(f.active_share)} of the prompts`,
      total && `${percent(f.share)} of all shifts`,
      total && `through X ${percent(f.through_x)}`,
      total && `dominant in ${f.dominant_pairs} pairs`,
    ]),
    f.link
      ? el(
          "p",
          {},
          el(
            "a",
            { href: f.link, rel: "noopener noreferrer", target: "_blank" },
            "Its page on Neuronpedia",
          ),
        )
      : "",
    candidates.length
      ? el(
          "p",
          { class: "note" },
          "Before each prompt its pre-activation z; where z is not above the gate, the feature " +
          "is off.",
        )
      : "",
    ...["top", "contrastive", "bottom"].flatMap((kind) => {
      const some = candidates.filter((c) => c.kind === kind).slice(0, 5);
      return some.length
        ? [
            el("h3", {}, `${kind[0].toUpperCase()}${kind.slice(1)} prompts`),
            ...some.map((c) => quote(`${number(c.activation)}  ${c.prompt ?? c.prompt_id}`)),
          ]
        : [];
    }),
    total &&
      ((node) => {
        node.append(el("h3", {}, "Pairs that move it most"));
        table(
          node,
          "movers",
          movers,
          [
            PAIR_ID,
            ["label", "class"],
            ["moved", "W·ΔW", signed],
            ["delta_w", "ΔW", signed],
            ["prompt", "prompt", null, true],
          ],
          (r) => showPair(r.row),
          15,
        );
      }),
  );
}

function showCategory(g) {
  const prompts = rowsOf(D.category_prompts)
    .filter((p) => p.category === g.category)
    .map((p) => ({ ...p, shows: p.shows ? "yes" : "no", prompt: p.prompt ?? p.prompt_id }));
  const carried = rowsOf(D.gap_features)
    .filter((c) => c.category === g.category && known(c.carried))
    .sort((a, b) => Math.abs(b.carried) - Math.abs(a.carried))
    .map((c) => ({ ...c, label: FEATURES[featureAt.get(c.feature_id)]?.label ?? null }));
  const pairs = PAIRS.filter((p) => p.category === g.category);
  show(
    () => showCategory(g),
    `#category=${encodeURIComponent(g.category)}`,
    `Category ${g.category}`,
    facts([
      g.label,
      several(g.prompts, "prompt"),
      `${percent(g.shows)} show the behaviour`,
      `mean Y ${signed(g.y)} ${D.unit}`,
      `policy ${signed(g.prediction)}`,
      `residual ${signed(g.residual)}`,
      known(g.gap) &&
        `gap ` +
        `${signed(g.gap)}${between(g.gap_low, g.gap_high)}`,
    ]),
    (node) => {
      if (carried.length) {
        node.append(el("h3", {}, "Features that carry the policy's part of the gap"));
        table(
          node,
          "gap_features",
          carried,
          [
            ["feature_id", "feature", String],
            ["label", "label"],
            ["carried", `carried, ${D.unit}`, signed],
          ],
          (c) => showFeature(c.feature_id),
          10,
        );
      }
      node.append(
        el("h3", {}, "Prompts"),
        el(
          "p",
          { class: "note" },
          prompts.length < g.prompts
            ? `Of ${g.prompts}, those that the policy knows least of.`
            : "",
        ),
      );
      table(
        node,
        "prompts",
        prompts,
        [
          ["prompt", "prompt", null, true],
          ["shows", "shows it"],
          ["y", "Y", signed],
          ["prediction", "policy", signed],
          ["residual", "residual", signed],
        ],
        null,
        20,
      );
      if (pairs.length) {
        node.append(el("h3", {}, "Pairs of the category"));
        table(
          node,
          "pairs",
          pairs,
          [
            PAIR_ID,
            ["label", "class"],
            ["score", "score", signed],
            ["mean_delta_y", "mean ΔY", signed],
            ["prompt", "prompt", null, true],
          ],
          showPair,
          10,
        );
      }
    },
  );
}

// The first screen.
function overview() {
  const s = D.summary,
    fit = s.fits.all,
    test = fit.test ?? fit.train;
  const node = el("section", { id: "finding" });
  const gap = D.strongest_gap,
    t = D.totals,
    held = Boolean(fit.test);
  const boxes = [
    [number(test.r2, 2), held ? "R², held out" : "R², where it was fitted"],
    [
      gap ? number(gap.gap) : "–",
      gap ? `${D.unit}: gap of ${gap.category}` : "no gap with enough prompts",
    ],
    [total ? `${t.unintended} / ${D.pairs_in_run}` : "–", "pairs act off target"],
    [
      t.delta_y ? String(t.flagged_delta_y) : "–",
      t.delta_y
        ? "pairs flagged by mean ΔY"
        : !D.moves
          ? "Y is given: no step moves it"
          : t.mean_delta_y
            ? "nothing is expected of the pairs"
            : "mean ΔY was not kept",
    ],
    [`${D.pairs_in_run} × ${D.prompts_in_run}`, "pairs × prompts"],
  ];
  node.append(
    el(
      "div",
      { class: "figures" },
      ...boxes.map(([value, text]) => el("div", {}, el("b", {}, value), el("span", {}, text))),
    ),
    el("ul", { class: "lead" }, ...D.findings.map((text) => el("li", {}, text))),
  );
  if (PAIRS.length < D.pairs_in_run)
    node.append(
      el(
        "p",
        { class: "note" },
        `Pair by pair, this page shows the ${PAIRS.length} with the largest |score| of ` +
        `${D.pairs_in_run}; the tables of the run folder hold all.`,
      ),
    );
  if (D.redacted)
    node.append(
      el("p", { class: "note" }, "Texts of prompts and responses were left out of this page."),
    );
  const settings = el("details", {}, el("summary", {}, "Settings of the run"));
  table(
    settings,
    "settings",
    Object.entries({
      engine_used: D.engine,
      higher_y: D.raised,
      raises: D.expected.raises?.length
        ? `${D.expected.raises.join(", ")} (${D.expected.source})`
        : "not said",
      ...D.settings,
      ...D.versions,
      device: `${D.device.count} × ${D.device.kind}`,
    }).map(([key, value]) => ({
      key,
      value: Array.isArray(value) ? value.join(" ") : String(value),
    })),
    [
      ["key", "setting"],
      ["value", "value", null, true],
    ],
  );
  node.append(settings);
  main.append(node);
}

// Drill-down: what is open stands in the address, so that it can be linked to.
// What is open stands in the address, so that it can be linked to: #pair=…, #feature=…,
// #category=….
let shownIn = [],
  visited = [];
const named = (hash) => /^#(pair|feature|category)=/.exec(hash);
const address = (hash) => {
  try {
    history.replaceState(null, "", location.pathname + location.search + hash);
  } catch {
    /* some places have none */
  }
};
dialog.addEventListener("close", () => {
  visited = [];
  if (named(location.hash)) address("");
});
function follow(hash) {
  const kind = named(hash)?.[1];
  if (!kind) {
    if (dialog.open) dialog.close();
    return;
  }
  let id = hash.slice(kind.length + 2);
  try {
    id = decodeURIComponent(id);
  } catch {
    /* then as it stands */
  }
  const found =
    kind === "pair"
      ? PAIRS.filter((p) => id && p.pair_id.startsWith(id.toLowerCase()))
      : kind === "feature"
        ? FEATURES.filter((f) => String(f.feature_id) === id)
        : GAPS.filter((g) => g.category === id);
  if (found.length === 1) {
    if (kind === "pair") showPair(found[0]);
    else if (kind === "feature") showFeature(found[0].feature_id);
    else showCategory(found[0]);
    return;
  }
  show(
    () => follow(hash),
    hash,
    found.length ? "Not one pair" : "Not on this page",
    el(
      "p",
      {},
      found.length
        ? `${found.length} pairs begin so: give more of the id.`
        : `This page shows no ${kind} ${short(id)}. ` +
            (kind === "pair" && PAIRS.length < D.pairs_in_run
              ? `It shows ${PAIRS.length} of the run's ${D.pairs_in_run} pairs.`
              : ""),
    ),
  );
}
addEventListener("hashchange", () => follow(location.hash));
function show(again, hash, title, ...parts) {
  visited.push(again);
  address(hash);
  for (const node of shownIn) {
    figures.delete(node);
    Plotly.purge(node);
  }
  const inside = el("div");
  dialog.replaceChildren(
    el(
      "div",
      { class: "row" },
      el("h3", { id: "dialog-title", tabindex: "-1", style: "flex:1;outline:none" }, title),
      visited.length > 1
        ? el(
            "button",
            {
              onclick: () => {
                visited.pop();
                visited.pop()();
              },
            },
            "Back",
          )
        : null,
      el("button", { onclick: () => dialog.close() }, "Close"),
    ),
    inside,
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  const before = new Set(figures.keys());
  for (const part of parts)
    if (part) typeof part === "function" ? part(inside) : inside.append(part);
  shownIn = [...figures.keys()].filter((n) => !before.has(n));
  for (const node of shownIn) {
    const f = figures.get(node);
    f.drawn = true;
    f.draw();
  }
  dialog.querySelector("h3").focus(); // so that keys move what is open, not the page behind it
}
const facts = (list) => el("p", {}, list.filter(Boolean).join(" · "));
const quote = (text) => el("blockquote", {}, text ?? "(the text was left out)");

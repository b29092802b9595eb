// The end of the page, its theme, and the order of its sections.
function rest() {
  const node = section(
    "tables",
    "Tables",
    "The tables of the run folder, their columns, units and signs. " + D.conventions,
  );
  const sweeps = Object.entries(D.sweep_columns).map(([name, columns]) => [
    `of a sweep: ${name}`,
    columns,
  ]);
  for (const [name, columns] of [...Object.entries(D.columns), ...sweeps]) {
    const part = el("details", {}, el("summary", {}, name));
    part.append(
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          ...Object.entries(columns).map(([key, text]) =>
            el("tr", {}, el("th", { scope: "row" }, key), el("td", { class: "wide" }, text)),
          ),
        ),
      ),
    );
    node.append(part);
  }
  const stages = Object.entries(D.timings);
  if (!stages.length) return;
  const time = section(
    "timings",
    "Timings",
    "Wall-clock seconds of the stages of the run, compilation included.",
  );
  figure(
    time,
    "timings",
    (at) =>
      plot(
        at,
        [
          {
            type: "bar",
            orientation: "h",
            y: stages.map(([name]) => name),
            x: stages.map(([, s]) => s),
            marker: { color: PALETTE[0] },
          },
        ],
        { yaxis: { autorange: "reversed" }, xaxis: { title: { text: "seconds" } } },
      ),
    90 + 30 * stages.length,
  );
}

const button = document.getElementById("theme");
function theme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("smda-theme", name);
  } catch {
    /* a file may have no storage */
  }
  button.textContent = name === "dark" ? "Light" : "Dark";
  for (const f of figures.values()) if (f.drawn) f.draw();
}
button.addEventListener("click", () =>
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
);
let chosenTheme = null;
try {
  chosenTheme = localStorage.getItem("smda-theme");
} catch {
  /* a file may have no storage */
}
theme(chosenTheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
dialog.addEventListener("click", (e) => {
  if (e.target === dialog) dialog.close();
});
requestAnimationFrame(() =>
  setTimeout(() => {
    // the first screen stands before any figure
    start();
    follow(location.hash);
  }),
);
for (const part of [
  overview,
  decision,
  card,
  coefficients,
  categories,
  heatmaps,
  interference,
  pairs,
  agreement,
  trueSteps,
  rest,
])
  part();

// Figures: drawn when they come into view, and again when the theme changes.
const figures = new Map();
function style() {
  const css = getComputedStyle(document.documentElement),
    ink = css.getPropertyValue("--ink"),
    line = css.getPropertyValue("--line");
  return {
    ink,
    line,
    ground: css.getPropertyValue("--sheet"),
    soft: css.getPropertyValue("--soft"),
  };
}
// The figures' library is large, and reading it holds up everything else: not before the first
// figure is to be seen.
function library() {
  if (!window.Plotly)
    document.head.append(
      Object.assign(document.createElement("script"), {
        textContent: document.getElementById("plotly").textContent,
      }),
    );
}
function plot(node, traces, layout) {
  library();
  const s = style(),
    axis = {
      gridcolor: s.line,
      zerolinecolor: s.soft,
      linecolor: s.line,
      automargin: true,
      exponentformat: "power",
    };
  const merged = {
    paper_bgcolor: s.ground,
    plot_bgcolor: s.ground,
    font: { color: s.ink, family: "system-ui, sans-serif", size: 12 },
    margin: { l: 60, r: 20, t: 20, b: 50 },
    hoverlabel: { align: "left" },
    legend: { orientation: "h", y: -0.18 },
    ...layout,
  };
  for (const key of ["xaxis", "yaxis", "xaxis2", "yaxis2"])
    if (merged[key] || key.length === 5) merged[key] = { ...axis, ...merged[key] };
  node.removeAllListeners?.("plotly_click"); // a figure that is drawn again listens again
  return Plotly.react(node, traces, merged, {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
}
function figure(parent, name, draw, height = 380) {
  const node = el("div", {
    class: "plot",
    id: `plot-${name}`,
    role: "img",
    "aria-label": name,
    style: `height:${height}px`,
  });
  parent.append(node);
  figures.set(node, { draw: () => draw(node), drawn: false });
  return () => {
    const f = figures.get(node);
    if (f.drawn) f.draw();
  };
}
function start() {
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const f = figures.get(target);
        if (isIntersecting && !f.drawn) {
          f.drawn = true;
          f.draw();
        }
      }
    },
    { rootMargin: "0px" },
  );
  for (const node of figures.keys()) seen.observe(node);
  addEventListener("beforeprint", () => {
    for (const f of figures.values()) {
      f.drawn = true;
      f.draw();
    }
  });
}

// Parts of the page: sections, choices, tables with search and CSV.
function section(id, title, note) {
  const node = el(
    "section",
    { id },
    el("h2", {}, title),
    note ? el("p", { class: "note" }, note) : null,
  );
  main.append(node);
  nav.append(el("a", { href: `#${id}` }, title));
  return node;
}
function choose(parent, label, options, change) {
  const select = el("select", { "aria-label": label, onchange: (e) => change(e.target.value) });
  for (const [value, text] of options) select.append(el("option", { value }, text));
  parent.append(el("label", { class: "row" }, `${label} `, select));
}
function download(name, rows) {
  const keys = rows.length
    ? Object.keys(rows[0]).filter((k) =>
        rows.every((r) => r[k] === null || typeof r[k] !== "object" || Array.isArray(r[k])),
      )
    : [];
  // A spreadsheet would run a text that begins like a formula.
  const cell = (v) => {
    const t =
      typeof v === "string" && /^[=+\-@\t\r]/.test(v)
        ? `'${v}`
        : Array.isArray(v)
          ? v.join(" ")
          : (v ?? "");
    return `"${String(t).replaceAll('"', '""')}"`;
  };
  const text = [keys, ...rows.map((r) => keys.map((k) => r[k]))]
    .map((r) => r.map(cell).join(","))
    .join("\r\n");
  const link = el("a", {
    href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })),
    download: `${name}.csv`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
// columns: [key, title, how to show it (number unless text), whether it may wrap]
function table(parent, name, rows, columns, open, step = 40) {
  let order = null,
    up = false,
    asked = "",
    limit = step;
  const body = el("tbody"),
    count = el("span", { class: "note" }),
    head = el("tr");
  const more = el(
    "button",
    {
      onclick: () => {
        limit += 5 * step;
        fill();
      },
    },
    "More",
  );
  const search = el("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": `Search ${name}`,
    oninput: (e) => {
      asked = e.target.value.toLowerCase();
      limit = step;
      fill();
    },
  });
  for (const [key, title, show] of columns) {
    const th = el("th", { scope: "col", class: show ? "n" : null });
    th.append(
      el(
        "button",
        {
          title: (D.columns[`${name}.parquet`] ?? {})[key],
          onclick: () => {
            up = order === key ? !up : false;
            order = key;
            for (const other of head.children) other.removeAttribute("aria-sort");
            th.setAttribute("aria-sort", up ? "ascending" : "descending");
            fill();
          },
        },
        title,
      ),
    );
    head.append(th);
  }
  function chosen() {
    let some = rows.filter(
      (r) =>
        !asked ||
        Object.values(r).some(
          (v) =>
            (typeof v === "string" || typeof v === "number" || Array.isArray(v)) &&
            String(v).toLowerCase().includes(asked),
        ),
    );
    if (order) {
      const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
      some = [...some].sort((a, b) =>
        !known(a[order]) ? 1 : !known(b[order]) ? -1 : (up ? 1 : -1) * compare(a[order], b[order]),
      );
    }
    return some;
  }
  function fill() {
    const some = chosen();
    body.replaceChildren(
      ...some.slice(0, limit).map((r) => {
        const tr = el(
          "tr",
          open
            ? {
                class: "open",
                tabindex: "0",
                onclick: () => open(r),
                onkeydown: (e) => {
                  if (e.key === "Enter" || e.key === " ") {
                    e.preventDefault();
                    open(r);
                  }
                },
              }
            : {},
        );
        for (const [key, , show, wide] of columns) {
          tr.append(
            el(
              "td",
              { class: show ? "n" : wide ? "wide" : null },
              show ? show(r[key]) : String(r[key] ?? "–"),
            ),
          );
        }
        return tr;
      }),
    );
    if (!some.length)
      body.append(el("tr", {}, el("td", { colspan: columns.length }, "Nothing matches.")));
    count.textContent = some.length > limit ? `${limit} of ${some.length}` : `${some.length}`;
    more.hidden = some.length <= limit;
  }
  fill();
  parent.append(
    el(
      "div",
      { class: "row" },
      search,
      count,
      more,
      el("button", { onclick: () => download(name, chosen()) }, "CSV"),
    ),
    el("div", { class: "scroll", tabindex: "0" }, el("table", {}, el("thead", {}, head), body)),
  );
}

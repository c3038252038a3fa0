"use strict";
{
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const printed = matchMedia("print");
  const PAPER = 640; // CSS pixels that fit between the margins of a printed page
  const NARROW = 460; // below, the numbers of a wide map would not fit into its cells

  // Replaces every colour role by the colour that the style sheet gives it now.
  const coloured = (value, style) => {
    if (typeof value === "string") {
      const role = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return role ? style.getPropertyValue(role[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
    return value;
  };

  const fitted = (trace, width) =>
    trace.type === "heatmap" && width < NARROW && trace.z[0]?.length > 6
      ? { ...trace, texttemplate: "", colorbar: { ...trace.colorbar, orientation: "h", thickness: 8, y: 1, yanchor: "bottom" } }
      : trace;

  const draw = (plot) => {
    const views = figures[plot.id];
    const choice = plot.closest("section").querySelector("select");
    const view = views[Math.min(choice ? choice.selectedIndex : 0, views.length - 1)];
    const style = getComputedStyle(document.documentElement);
    const width = printed.matches ? PAPER : undefined;
    plot.dataset.height ??= plot.style.height;
    const upright = plot.clientWidth < NARROW && view.data[0].type === "heatmap"; // names of the columns then stand
    plot.style.height = upright ? `calc(${plot.dataset.height} + 100px)` : plot.dataset.height;
    const data = coloured(view.data, style).map((trace) => fitted(trace, width ?? plot.clientWidth));
    const layout = { ...coloured(view.layout, style), ...(width ? { width, autosize: false } : {}) };
    Plotly.react(plot, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  // The points of a plot that say something when they are pointed at, one after another.
  const points = (plot) =>
    plot.data.flatMap((trace, curveNumber) => {
      if (trace.hoverinfo === "skip") return [];
      if (trace.type === "heatmap")
        return trace.z.flatMap((row, i) =>
          row.flatMap((value, j) => (value === null ? [] : [{ curveNumber, xval: j, yval: i }])));
      return trace.x.flatMap((x, i) =>
        x === null || trace.y[i] === null ? [] : [{ curveNumber, pointNumber: i }]);
    });

  const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const walk = (plot, event) => {
    if (event.key === "Escape") return plot.data && Plotly.Fx.unhover(plot);
    if (!(event.key in keys) || !plot.data) return;
    event.preventDefault();
    const all = points(plot);
    if (!all.length) return;
    const next = "at" in plot.dataset ? Number(plot.dataset.at) + keys[event.key] : 0;
    plot.dataset.at = (next + all.length) % all.length;
    Plotly.Fx.hover(plot, [all[plot.dataset.at]]);
  };

  const plots = [...document.querySelectorAll(".plot")];
  // One after another, so that the page can be read and scrolled meanwhile.
  const drawFrom = (position) => {
    if (position === plots.length) return;
    draw(plots[position]);
    setTimeout(drawFrom, 0, position + 1);
  };
  drawFrom(0);
  for (const query of [dark, printed]) query.addEventListener("change", () => plots.forEach(draw));
  for (const plot of plots) {
    plot.addEventListener("keydown", (event) => walk(plot, event));
    plot.addEventListener("blur", () => plot.data && Plotly.Fx.unhover(plot));
  }
  document.querySelectorAll("select").forEach((choice) =>
    choice.addEventListener("change", () => choice.closest("section").querySelectorAll(".plot").forEach(draw)));

  const numbers = (cell) => (cell.dataset.values ? cell.dataset.values.split(" ").map(Number) : []);

  // Numbers before texts, and cells that hold nothing last, whichever way.
  const compare = (first, second, turn) => {
    const [one, other] = [first, second].map((cell) => numbers(cell)[0]);
    if (one !== undefined && other !== undefined) return turn * (one - other);
    if (one !== undefined || other !== undefined) return one !== undefined ? -1 : 1;
    const [left, right] = [first.textContent, second.textContent];
    if (!left || !right) return (left ? 0 : 1) - (right ? 0 : 1);
    return turn * left.localeCompare(right, undefined, { numeric: true });
  };

  const sort = (head) => {
    const [table, column] = [head.closest("table"), head.cellIndex];
    const falling = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], falling ? -1 : 1));
    body.append(...rows);
  };

  // A text that a spreadsheet would take for a formula is given a quote before it.
  const quoted = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

  const csv = (table) => {
    const rows = [...table.tBodies[0].rows];
    const columns = [...table.tHead.rows[0].cells].map((head, column) => {
      const cells = rows.map((row) => row.cells[column]);
      const several = cells.some((cell) => numbers(cell).length > 1);
      const name = head.textContent;
      return { names: several ? [name, `${name}, lowest`, `${name}, highest`] : [name], cells };
    });
    const lines = rows.map((_, row) =>
      columns.flatMap(({ names, cells }) => {
        const known = numbers(cells[row]);
        return names.map((_, i) => known[i] ?? (i || known.length ? "" : quoted(cells[row].textContent)));
      }));
    return [columns.flatMap(({ names }) => names.map(quoted)), ...lines].map((line) => `${line.join(",")}\r\n`).join("");
  };

  const save = (button) => {
    const table = button.closest("details").querySelector("table");
    const blob = new Blob([csv(table)], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    const near = [...button.closest("section").querySelectorAll("table")];
    link.download = `rlforget-${button.closest("section").id}${near.length > 1 ? `-${near.indexOf(table) + 1}` : ""}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  };

  document.querySelectorAll("thead th").forEach((head) =>
    head.querySelector("button").addEventListener("click", () => sort(head)));
  document.querySelectorAll(".csv").forEach((button) => button.addEventListener("click", () => save(button)));
}

"use strict";
{
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Replaces every colour role by the colour that the style sheet gives it now.
  const coloured = (value) => {
    if (typeof value === "string") {
      const role = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return role ? getComputedStyle(document.documentElement).getPropertyValue(role[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
    return value;
  };

  const draw = (plot) => {
    const views = figures[plot.id];
    const choice = plot.closest("section").querySelector("select");
    const view = coloured(views[Math.min(choice ? choice.selectedIndex : 0, views.length - 1)]);
    Plotly.react(plot, view.data, view.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
  };

  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(draw);
  dark.addEventListener("change", () => plots.forEach(draw));
  document.querySelectorAll("select").forEach((choice) =>
    choice.addEventListener("change", () => choice.closest("section").querySelectorAll(".plot").forEach(draw)));
}

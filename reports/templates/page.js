(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const config = {
    displaylogo: false,
    responsive: true,
    // Named one by one: what plotly.js offers by itself may be an upload of the data, and changes.
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["resetScale2d"]],
    plotlyServerURL: "",
    toImageButtonOptions: { format: "svg", scale: 1 },
  };

  // Figures name the page's colours; their values depend on the theme.
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    }
    return value;
  };

  const draw = (plot) => {
    const spec = specs[plot.dataset.figure];
    const { data, layout } = resolve(spec, getComputedStyle(document.documentElement));
    const named = { ...config, toImageButtonOptions: { ...config.toImageButtonOptions, filename: plot.dataset.figure } };
    return Plotly.react(plot, data, layout, named);
  };
  const drawAll = () => Promise.all(plots.map(draw));

  for (const button of document.querySelectorAll("button[data-figure]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.getAttribute("aria-controls"));
      plot.dataset.figure = button.dataset.figure;
      for (const other of button.parentElement.children) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      draw(plot);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; drawAll(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; drawAll(); });
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();

(() => {
  "use strict";
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const filters = [...document.querySelectorAll(".filters button[data-key]")];
  const drawn = new Map(); // the width that each plot was drawn at
  const SHEET = 640; // px, fits on A4 and letter
  // What plotly.js offers by itself may be an upload of the data; the page has buttons of its own.
  const config = { displayModeBar: false, plotlyServerURL: "" };
  const { off, linear, zoomed, isEmpty, logAxis } = picture;
  const specOf = (plot) => specs[plot.dataset.figure];
  const part = (plot, selector) => plot.closest("figure").querySelector(selector);

  const draw = (plot) => {
    const views = [...document.querySelectorAll(`button[aria-controls="${plot.id}"]`)];
    for (const view of views) view.hidden = isEmpty(specs[view.dataset.figure]);
    const left = views.find((view) => !view.hidden);
    if (left && isEmpty(specOf(plot))) return left.click();
    const [spec, isPrinted] = [specOf(plot), Boolean(root.dataset.printing)];
    plot.closest("figure").hidden = isEmpty(spec);
    plot.setAttribute("aria-label", spec.summary);
    const stride = picture.strideOf(spec);
    part(plot, ".thinned").textContent = stride > 1 ? ` One point in ${stride} is drawn; table and CSV have all.` : "";
    part(plot, "[data-do=scale]").hidden = !logAxis(spec);
    part(plot, "[data-do=scale]").setAttribute("aria-pressed", String(linear.has(spec)));
    part(plot, "[data-do=zoom]").setAttribute("aria-pressed", String(zoomed.has(spec)));
    part(plot, ".numbers").dispatchEvent(new Event("toggle"));
    const width = isPrinted ? SHEET : plot.closest("details:not([open])") ? 0 : plot.clientWidth;
    if (!width || !window.Plotly) return null;
    const [isNew, { data, layout }] = [!drawn.has(plot), picture.of(spec, width)];
    drawn.set(plot, width);
    plot.style.minHeight = `${layout.height}px`;
    return Plotly.react(plot, data, layout, config).then(() => {
      if (isNew) plot.on("plotly_click", ({ points }) => choose(specOf(plot), points[0]));
    });
  };
  const drawAll = () => Promise.all(plots.map(draw));
  // One after the other, so that the page stays alive meanwhile.
  const pause = () => new Promise((done) => setTimeout(done));
  const drawInTurn = (some) => some.reduce((before, plot) => before.then(() => draw(plot)).then(pause), pause());

  const filter = () => {
    for (const one of filters) one.setAttribute("aria-pressed", String(!off[one.dataset.key].has(one.dataset.value)));
    document.querySelector("[data-do=all]").hidden = Object.values(off).every((names) => names.size === 0);
    drawAll();
  };
  // A block that was clicked is shown alone; clicked again, all are.
  const choose = ({ data }, { curveNumber, pointNumber }) => {
    const owners = data[curveNumber].meta?.block;
    const block = Array.isArray(owners) ? owners[pointNumber] : owners;
    const all = filters.filter((one) => one.dataset.key === "block").map((one) => one.dataset.value);
    if (!all.includes(block)) return;
    const isAlone = off.block.size === all.length - 1 && !off.block.has(block);
    off.block = new Set(isAlone ? [] : all.filter((one) => one !== block));
    filter();
  };
  for (const one of filters) {
    one.addEventListener("click", () => {
      const names = off[one.dataset.key];
      if (!names.delete(one.dataset.value)) names.add(one.dataset.value);
      filter();
    });
  }
  document.querySelector("[data-do=all]")?.addEventListener("click", () => {
    for (const names of Object.values(off)) names.clear();
    filter();
  });
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

  // Pictures are for paper: light, on white.
  const withTheme = (theme, make) => {
    const before = root.dataset.theme;
    root.dataset.theme = theme;
    const made = make();
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    return made;
  };
  const save = (plot, format) => {
    const { data, layout } = withTheme("light", () => picture.of(specOf(plot), plot.clientWidth));
    for (const [at, trace] of data.entries()) trace.visible = plot.data[at].visible ?? true;
    const { width, height } = layout;
    const options = { format, filename: plot.dataset.figure, width, height, scale: format === "png" ? 2 : 1 };
    return Plotly.downloadImage({ data, layout: { ...layout, paper_bgcolor: "#fff" }, config }, options);
  };
  const toggle = (figures) => (plot) => {
    if (!figures.delete(specOf(plot))) figures.add(specOf(plot));
    draw(plot);
  };
  const tools = {
    csv: (plot) => {
      const href = URL.createObjectURL(new Blob([numbers.csv(specOf(plot))], { type: "text/csv" }));
      Object.assign(document.createElement("a"), { href, download: `${plot.dataset.figure}.csv` }).click();
    },
    svg: (plot) => save(plot, "svg"),
    png: (plot) => save(plot, "png"),
    scale: toggle(linear),
    zoom: toggle(zoomed),
  };
  // The arrows go from point to point, as a pointer would.
  const step = (plot, by) => {
    const points = plot.data.flatMap(({ x, y, z, visible, hoverinfo }, curveNumber) => {
      if (z || (visible ?? true) !== true || hoverinfo === "skip") return [];
      return x.flatMap((_, at) => (x[at] === null || y[at] === null ? [] : [{ curveNumber, pointNumber: at }]));
    });
    plot.dataset.point = (Number(plot.dataset.point ?? (by > 0 ? -1 : 0)) + by + points.length) % points.length;
    if (points.length) Plotly.Fx.hover(plot, [points[plot.dataset.point]]);
  };
  const watch = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) {
      const isDue = root.dataset.drawn || drawn.has(target); // at first they are drawn in turn
      if (isDue && target.clientWidth && target.clientWidth !== drawn.get(target)) draw(target);
    }
  }));
  for (const plot of plots) {
    plot.style.minHeight = `${specOf(plot).layout.height}px`; // nothing moves when it is drawn
    if (!window.Plotly) plot.textContent = "The figure cannot be drawn: plotly.js could not be loaded.";
    for (const button of plot.closest("figure").querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => tools[button.dataset.do](plot));
    }
    plot.addEventListener("keydown", ({ key }) => {
      if (key === "ArrowRight" || key === "ArrowLeft") step(plot, key === "ArrowRight" ? 1 : -1);
    });
    part(plot, ".numbers").addEventListener("toggle", ({ target }) => {
      if (target.open) target.querySelector(".scroll").replaceChildren(numbers.table(specOf(plot)));
    });
    watch.observe(plot);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const print = (isPrinting) => {
    if (isPrinting) Object.assign(root.dataset, { theme: "light", printing: "yes" });
    else for (const key of ["theme", "printing"]) delete root.dataset[key];
    drawAll();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  drawInTurn(plots.filter((plot) => plot.getBoundingClientRect().top < innerHeight)).then(() => {
    root.dataset.drawn = "seen";
    return drawInTurn(plots.filter((plot) => !drawn.has(plot)));
  }).then(() => { root.dataset.drawn = "all"; });
})();

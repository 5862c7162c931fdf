// What is shown of a figure: in the colours of the theme, less what is filtered out, and of long series so many points.
const picture = (() => {
  "use strict";
  const off = { optimizer: new Set(), block: new Set(), checkpoint: new Set() }; // what the filters leave out
  const linear = new Set(); // figures whose logarithmic axis was made linear
  const zoomed = new Set(); // figures in which dragging selects what to zoom to
  // What all figures have in common; theirs goes before it.
  const font = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif" };
  const common = {
    margin: { l: 12, r: 12, t: 12, b: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { ...font, size: 13, color: "var(--text)" },
    hoverlabel: { bgcolor: "var(--surface)", bordercolor: "var(--line)", font: { ...font, color: "var(--text)" } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
    hovermode: "closest",
  };
  const ofAxes = {
    automargin: true,
    gridcolor: "var(--grid)",
    linecolor: "var(--line)",
    showline: true,
    zeroline: false,
    ticks: "outside",
    ticklen: 4,
    tickcolor: "var(--line)",
    tickangle: 0,
    exponentformat: "power",
    tickfont: { size: 12, color: "var(--muted)" },
  };
  const styled = (axis) => ({
    ...ofAxes,
    ...axis,
    title: { font: { size: 12, color: "var(--muted)" }, standoff: 10, ...axis?.title },
  });
  const MOST = 600; // points of a series that are drawn; its table has them all

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

  const isOff = (meta = {}) => Object.keys(meta).some((key) => off[key].has(meta[key]));
  const isEmpty = ({ data }) => {
    const hasPoints = ({ x, z }) => z || x?.some((value) => value !== null);
    const owned = data.filter((trace) => trace.meta && hasPoints(trace));
    return owned.length > 0 && owned.every(({ meta }) => isOff(meta));
  };
  const keep = (value, count, has) => {
    if (Array.isArray(value)) return value.length === count ? value.filter((_, at) => has(at)) : value;
    if (!value || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, keep(item, count, has)]));
  };
  const stride = ({ x, mode, hoverinfo, fill }) => {
    const count = mode && (hoverinfo !== "skip" || fill) ? x.length / (fill === "toself" ? 2 : 1) : 0;
    return Math.max(1, Math.ceil(count / MOST));
  };
  const shown = ({ data }, at) => {
    let trace = data[at];
    const [count, every] = [trace.x?.length, stride(trace)];
    const band = trace.customdata || trace.z ? null : numbers.bandOf(data, at);
    if (band) trace = { ...trace, customdata: band.low.map((low, place) => [low, band.high[place]]) };
    const owners = trace.meta?.optimizer;
    if (Array.isArray(owners)) trace = keep(trace, count, (place) => !off.optimizer.has(owners[place]));
    if (every > 1) {
      const end = trace.fill === "toself" ? count / 2 - 1 : count - 1;
      const along = (place) => (place > end ? count - 1 - place : place);
      trace = keep(trace, count, (place) => along(place) === end || along(place) % every === 0);
    }
    for (const bars of ["error_x", "error_y"]) {
      if (trace[bars]) trace = { ...trace, [bars]: { type: "data", thickness: 1.2, width: 3, ...trace[bars] } };
    }
    const { meta, ...rest } = trace; // plotly.js is kept from names that are not escaped
    return isOff(meta) ? { ...rest, visible: false } : rest;
  };
  // The axis of the values: the horizontal one where the other has a row per name.
  const logAxis = ({ layout }) => {
    const values = numbers.isNamed(layout.yaxis) ? "xaxis" : "yaxis";
    const name = layout[values]?.type === "log" ? values : undefined;
    const [low, high] = layout[name]?.range ?? [0, Infinity];
    return high - low <= 6 ? name : null; // on a linear axis more powers of ten are one point
  };
  // In a narrow figure names of rows are cut, and a title that is wider than its axis is broken between words.
  const cut = (text, most) => {
    const raw = numbers.plain(text);
    const escaped = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
    return raw.length <= most ? text : `${raw.slice(0, most - 1).replace(/[&<>]/g, (one) => escaped[one])}…`;
  };
  const fitted = ({ xaxis, yaxis, height }, width) => {
    const rows = numbers.isNamed(yaxis) ? yaxis.ticktext.map((text) => cut(text, Math.floor(width / 16))) : null;
    const left = 45 + 7 * Math.max(4, ...(rows ?? []).map((text) => text.length));
    const most = Math.max(12, (width - left) / 6.4);
    const lines = [""];
    for (const word of (xaxis?.title?.text ?? "").split(" ")) {
      if (lines.at(-1) && lines.at(-1).length + word.length >= most) lines.push(word);
      else lines.push(`${lines.pop()} ${word}`.trim());
    }
    const title = { ...xaxis?.title, text: lines.join("<br>") };
    const more = 18 * (lines.length - 1) + (width < 480 ? 36 : 0); // px, for a legend of more lines
    const named = rows ? { ...yaxis, ticktext: rows } : yaxis;
    return { xaxis: styled({ ...xaxis, title }), yaxis: styled(named), height: height + more };
  };
  const of = (spec, width) => {
    // plotly.js keeps what was hidden in the legend, or zoomed, for as long as the revision is the same.
    const uirevision = `${spec.summary} ${linear.has(spec)} ${zoomed.has(spec)}`;
    const dragmode = zoomed.has(spec) ? "zoom" : false;
    const layout = { ...common, ...spec.layout, width, uirevision, dragmode, ...fitted(spec.layout, width) };
    const dotted = { color: "var(--muted)", width: 1, dash: "dot" };
    layout.shapes = (layout.shapes ?? []).map((one) => ({ layer: "below", line: dotted, ...one }));
    layout.showlegend ??= spec.data.filter(({ showlegend }) => showlegend !== false).length > 1;
    if (linear.has(spec)) {
      const { tickvals, ticktext, ...axis } = layout[logAxis(spec)];
      layout[logAxis(spec)] = { ...axis, type: "linear", range: [0, 10 ** axis.range[1]] };
    }
    const data = spec.data.map((_, at) => shown(spec, at));
    return resolve({ data, layout }, getComputedStyle(document.documentElement));
  };
  const strideOf = ({ data }) => Math.max(...data.map(stride));
  return { of, off, linear, zoomed, isEmpty, logAxis, strideOf };
})();

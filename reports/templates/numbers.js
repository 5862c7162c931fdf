// The numbers of a figure, for its table and its CSV. They are read off its traces, so that the page has them once.
const numbers = (() => {
  "use strict";
  const plain = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  // The outline before a line is its band: along the upper end, and back along the lower one.
  const bandOf = (data, at) => {
    const [outline, { x }] = [data[at - 1], data[at]];
    if (outline?.fill !== "toself" || outline.hoverinfo !== "skip" || outline.x.length !== 2 * x.length) return null;
    return { high: outline.y.slice(0, x.length), low: outline.y.slice(x.length).reverse() };
  };
  // An axis with a row per name has numbers for places, and series beside one another about them.
  const isNamed = (axis) => axis?.ticktext && axis.type !== "log" && axis.tickvals.every((tick, at) => tick === at);
  const nameOn = (axis, value) => {
    return isNamed(axis) && typeof value === "number" ? axis.ticktext[Math.round(value)] : value;
  };
  // The cells of a heatmap or of contours, one by one.
  const flat = (trace) => {
    if (!trace.z) return trace;
    const cells = trace.z.flatMap((row, i) => row.map((z, j) => [trace.x?.[j] ?? j, trace.y?.[i] ?? i, z]));
    const [x, y, z] = [0, 1, 2].map((at) => cells.map((cell) => cell[at]));
    return { ...trace, x, y, z };
  };
  const rowsOf = ({ data, layout, columns }, at) => {
    if (data[at].hoverinfo === "skip") return [];
    const [trace, band] = [flat(data[at]), data[at].z ? null : bandOf(data, at)];
    const read = (path, i) => {
      const [key, place] = path.split(".");
      if (key === "name") return trace.name;
      if (key === "low" || key === "high") return band?.[key][i];
      if (key === "x" || key === "y") return nameOn(layout[`${key}axis`], trace[key]?.[i]);
      if (key !== "customdata") return (place ? trace[key]?.[place] : trace[key])?.[i];
      const found = trace.customdata?.[i];
      return place === undefined || found === undefined ? found : Array.isArray(found) ? found[place] : null;
    };
    const cell = (value) => (typeof value === "string" ? plain(value) : value ?? null);
    return trace.x.map((_, i) => columns.map(([, path]) => cell(read(path, i))));
  };
  const of = (spec) => {
    const isKnown = (row) => row.slice(2).some((value) => value !== null);
    const rows = spec.data.flatMap((_, at) => rowsOf(spec, at)).filter(isKnown);
    const isUsed = spec.columns.map((_, at) => rows.some((row) => row[at] !== null));
    const trim = (row) => row.filter((_, at) => isUsed[at]);
    return { head: trim(spec.columns.map(([title]) => title)), rows: rows.map(trim) };
  };

  const written = (value) => {
    if (typeof value !== "number") return value ?? "–";
    const isPlain = value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e7);
    const text = isPlain ? value.toLocaleString("en", { maximumSignificantDigits: 6 }) : value.toExponential(5);
    const raised = (digits) => [...digits].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
    const power = (_, sign, digits) => ` × 10${sign === "-" ? "⁻" : ""}${raised(digits)}`;
    return text.replace(/e([+-])(\d+)/, power).replace("-", "−");
  };
  const table = (spec) => {
    const { head, rows } = of(spec);
    const kinds = head.map((_, at) => (rows.some((row) => typeof row[at] === "string") ? "text" : ""));
    const made = document.createElement("table");
    const [above, below] = [made.createTHead(), made.createTBody()];
    for (const [number, row] of [head, ...rows].entries()) {
      const line = (number === 0 ? above : below).insertRow();
      for (const [at, value] of row.entries()) {
        const cell = document.createElement(number === 0 || at === 0 ? "th" : "td");
        if (cell.tagName === "TH") cell.scope = number === 0 ? "col" : "row";
        cell.className = kinds[at];
        cell.textContent = written(value);
        line.append(cell);
      }
    }
    return made;
  };

  // A spreadsheet runs text that begins like a formula, and names come from files.
  const field = (value) => {
    if (typeof value === "number") return String(value);
    const text = value === null ? "" : /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (spec) => {
    const { head, rows } = of(spec);
    return [head, ...rows].map((row) => `${row.map(field).join(",")}\n`).join("");
  };
  return { plain, bandOf, isNamed, table, csv };
})();

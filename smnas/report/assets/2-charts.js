// Axes, marks and line charts. A chart is drawn anew for each width of its place, so that text keeps its size.

const COLOURS = ["blue", "orange", "green", "pink", "amber", "sky"].map((name) => `var(--${name})`);
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "4 4", "1 4"];
const SHAPES = ["circle", "triangle", "square", "diamond", "cross", "hexagon"];

const POLYGONS = { triangle: [3, -90, 1.25], square: [4, 45, 1.2], diamond: [4, 0, 1.3], hexagon: [6, 0, 1.1] };

function mark(shape, x, y, size, attributes) {
  if (shape === "circle") return svg("circle", { cx: x, cy: y, r: size, ...attributes });
  const points = (corners, turn, radius) =>
    Array.from({ length: corners }, (_, k) => {
      const angle = ((turn + (360 * k) / corners) * Math.PI) / 180;
      const reach = Array.isArray(radius) ? radius[k % 2] : radius;
      return `${(x + reach * size * Math.cos(angle)).toFixed(1)},${(y + reach * size * Math.sin(angle)).toFixed(1)}`;
    }).join(" ");
  if (shape === "cross") return svg("polygon", { points: points(8, 0, [1.4, 0.5]), ...attributes });
  if (shape === "star") return svg("polygon", { points: points(10, -90, [1.6, 0.7]), ...attributes });
  return svg("polygon", { points: points(...POLYGONS[shape]), ...attributes });
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.99);
  const first = Math.ceil(low / step - 1e-9);
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, k) => {
    const value = (first + k) * step;
    return [value, value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places })];
  });
}

// Axes for x and y, each {low, high, title}; returns the drawing, its layer for marks, and both scales.
function axes(width, height, x, y) {
  const box = { left: 52, right: width - 14, top: 12, bottom: height - 44 };
  const span = (range) => range.high - range.low || 1;
  const sx = (value) => box.left + ((value - x.low) / span(x)) * (box.right - box.left);
  const sy = (value) => box.bottom - ((value - y.low) / span(y)) * (box.bottom - box.top);
  const layer = svg("g");
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    svg("g", { class: "axis" },
      ticks(x.low, x.high, Math.max(2, width / 90)).map(([value, text]) => [
        svg("line", { x1: sx(value), x2: sx(value), y1: box.top, y2: box.bottom }),
        svg("text", { x: sx(value), y: box.bottom + 17, "text-anchor": "middle" }, text)]),
      ticks(y.low, y.high, Math.max(2, height / 60)).map(([value, text]) => [
        svg("line", { x1: box.left, x2: box.right, y1: sy(value), y2: sy(value) }),
        svg("text", { x: box.left - 7, y: sy(value) + 4, "text-anchor": "end" }, text)]),
      svg("text", { class: "title", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, x.title),
      svg("text", { class: "title", transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.title)),
    layer);
  return { drawing, layer, sx, sy, box };
}

// Calls draw(width) now and whenever the place of a chart gets another width.
function responsive(host, draw) {
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.max(260, Math.round(host.clientWidth));
    if (host.clientWidth && width !== drawn) draw((drawn = width));
  }).observe(host);
  return host;
}

// series: [{name, colour, dash, points: [[x, y]], step}]; y starts at 0
function lineChart(title, xTitle, yTitle, series) {
  const points = series.flatMap((one) => one.points);
  const ends = series.map((one) => `${one.name}: ${number("", one.points.at(-1)?.[1])}`).join("; ");
  const host = html("div", { class: "chart", role: "img", "aria-label": `${title}. Last value of ${ends}.` });
  const draw = (width) => {
    const x = { low: Math.min(...points.map(([a]) => a), Infinity), high: Math.max(...points.map(([a]) => a), -Infinity), title: xTitle };
    const y = { low: 0, high: Math.max(...points.map(([, b]) => b), 0) * 1.05 || 1, title: yTitle };
    if (x.low === x.high) x.low = 0;
    const { drawing, layer, sx, sy } = axes(width, 230, x, y);
    for (const one of series) {
      const path = one.points.map(([a, b], k) => (k === 0 ? `M${sx(a)} ${sy(b)}` : `${one.step ? `H${sx(a)}V${sy(b)}` : `L${sx(a)} ${sy(b)}`}`)).join("");
      layer.append(svg("path", { d: path, fill: "none", stroke: one.colour, "stroke-width": 2, "stroke-dasharray": one.dash }));
      if (one.points.length <= 12 && !one.step) layer.append(...one.points.map(([a, b]) => svg("circle", { cx: sx(a), cy: sy(b), r: 3, fill: one.colour })));
    }
    host.replaceChildren(drawing);
  };
  return html("figure", { style: "margin:0" }, html("figcaption", { class: "small" }, title), points.length ? responsive(host, draw) : html("p", { class: "soft" }, "nothing yet"));
}

// entries: [text, drawing of 24 x 14]
const legend = (entries) =>
  html("ul", { class: "legend" }, entries.map(([text, ...marks]) =>
    html("li", {}, svg("svg", { width: 24, height: 16, viewBox: "0 0 24 16", "aria-hidden": "true" }, ...marks), text)));

// Elements, numbers and words. Text reaches the page as text nodes only, so names in the data can do no harm.

const data = JSON.parse(document.getElementById("data").textContent);

const LABELS = {
  latency_ms: "latency (ms)", latency_iqr_ms: "latency, interquartile range (ms)", latency_count: "latency, timed calls",
  map: "mAP", ap50: "AP50", ap75: "AP75", ap_small: "AP small", ap_medium: "AP medium", ap_large: "AP large",
  params_m: "parameters (M)", macs_g: "GMACs", train_seconds: "training (s)", peak_memory_mb: "peak memory (MB)",
};
const label = (name) => LABELS[name] ?? name;

function build(make, tag, attributes, children) {
  const element = make(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const html = (tag, attributes, ...children) => build((name) => document.createElement(name), tag, attributes, children);
const svg = (tag, attributes, ...children) =>
  build((name) => document.createElementNS("http://www.w3.org/2000/svg", name), tag, attributes, children);

function number(name, value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && !/^(map|ap)/.test(name)) return value.toLocaleString("en");
  if (/^(map|ap)/.test(name) || Math.abs(value) < 1) return value.toFixed(3);
  return value >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 100 ? 1 : 2);
}
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
function hours(value) {
  const minutes = value * 60;
  return minutes < 1.5 ? `${Math.round(value * 3600)} s` : minutes < 90 ? `${Math.round(minutes)} min` : `${value.toFixed(1)} h`;
}

function facts(pairs, kind) {
  return html("dl", { class: `facts ${kind ?? ""}` }, pairs.map(([name, value]) => [html("dt", {}, name), html("dd", {}, String(value))]));
}

// columns: [title, class]; rows: arrays of cells (text or element), the first one a row header
function table(caption, columns, rows, attributes) {
  const cell = (content, index) =>
    html(index ? "td" : "th", { class: columns[index][1], scope: index ? null : "row", "data-label": index ? columns[index][0] : null }, content);
  return html("div", { class: "scroll" },
    html("table", attributes,
      caption && html("caption", {}, caption),
      html("thead", {}, html("tr", {}, columns.map(([title, kind]) => html("th", { class: kind, scope: "col" }, title)))),
      html("tbody", {}, rows.map((row) => html("tr", {}, row.map(cell))))));
}

const section = (title, ...content) => html("section", {}, html("h2", {}, title), ...content);

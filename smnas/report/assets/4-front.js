// The front: every measured detector, hover, keyboard, and the best one under a limit.

const front = { host: null, chosen: null, seen: null, limit: null, pick: null, place: null };

function frontSection() {
  const hint = "Click a detector for its card. By keyboard: ← → along the front, ↑ ↓ through all, Enter opens.";
  front.host = html("div", {
    class: "chart", id: "front", tabindex: 0, role: "group", "aria-roledescription": "chart",
    "aria-label": `${label(Y.name)} against ${label(X.name)}: ${plural(points.length, "detector")}, ${fronts.length} on the front. ${hint}`,
    onkeydown: frontKey, onpointermove: frontHover, onpointerleave: () => look(null), onclick: frontClick,
    onblur: () => look(null), onfocus: () => front.host.matches(":focus-visible") && look(front.chosen ?? front.pick ?? fronts[0] ?? points[0]),
  });
  responsive(front.host, drawFront);
  return section("Front", front.host, frontLegend(), html("p", { class: "small soft noprint" }, hint), picker());
}

const axisTitle = (name) => (name === "id" ? "trial" : /^(map|ap)/.test(name) ? `${label(name)}, search split` : label(name));

function range(values, share) {
  const low = Math.min(...values), high = Math.max(...values);
  const edge = (high - low || Math.abs(high) || 1) * share;
  return { low: low - edge < 0 && low >= 0 ? 0 : low - edge, high: high + edge };
}

function drawFront(width) {
  if (!points.length) return front.host.replaceChildren(html("p", { class: "soft" }, "No detector has been measured yet."));
  const half = (trial) => (trial.spread ?? 0) / 2;
  const x = { ...range(points.flatMap((t) => [t.x - half(t), t.x + half(t)]), 0.04), title: axisTitle(X.name) };
  const y = { ...range(points.map((t) => t.y), 0.06), title: axisTitle(Y.name) };
  const place = axes(width, Math.max(300, Math.min(540, Math.round(width * 0.56))), x, y);
  const { layer, sx, sy, box } = place;
  front.place = place;
  place.limit = svg("g");
  place.focus = svg("g");
  layer.append(place.limit);
  for (const run of data.runs) layer.append(...links(run.front, place), ...dominated(run, place));
  for (const run of data.runs) layer.append(staircase(run, place), ...members(run, place));
  for (const trial of points.filter((t) => t.baseline)) {
    layer.append(svg("rect", { x: sx(trial.x) - 9, y: sy(trial.y) - 9, width: 18, height: 18, fill: "none", stroke: "var(--orange)", "stroke-width": 2, transform: `rotate(45 ${sx(trial.x)} ${sy(trial.y)})` }));
  }
  const baselines = points.filter((t) => t.baseline);
  if (baselines.length <= 8 && width > 480) layer.append(...baselines.map((trial) => baselineName(trial, place)));
  for (const trial of fronts.filter((t) => t.knee)) layer.append(kneeMark(sx(trial.x), sy(trial.y) - 17));
  layer.append(place.focus);
  front.host.replaceChildren(place.drawing);
  place.box = box;
  drawLimit();
  drawFocus();
}

const frontColour = (run) => (severalRuns ? run.colour : "var(--blue)");
const kneeMark = (x, y) => mark("star", x, y, 5, { fill: "var(--amber)", stroke: "var(--ink)", "stroke-width": 0.8 });

function baselineName(trial, { sx, sy, box }) {
  const right = sx(trial.x) > box.right - 130;
  return svg("text", { class: "name", x: sx(trial.x) + (right ? -13 : 13), y: sy(trial.y) + 16, "text-anchor": right ? "end" : "start" }, trial.baseline);
}

const bar = (trial, { sx, sy }) => `M${sx(trial.x - trial.spread / 2)} ${sy(trial.y)}H${sx(trial.x + trial.spread / 2)}`;

function dominated(run, place) {
  const beaten = run.points.filter((trial) => !trial.front);
  const colour = severalRuns ? run.colour : "var(--grey)";
  const size = beaten.length > 400 ? 2.2 : 3.5;
  return [
    svg("path", { class: "bars", stroke: colour, d: beaten.filter((t) => t.spread).map((t) => bar(t, place)).join("") }),
    ...beaten.map((t) => mark(t.shape, place.sx(t.x), place.sy(t.y), size, { fill: "var(--paper)", stroke: colour, opacity: severalRuns ? 0.55 : 0.9, "data-id": t.id })),
  ];
}

function members(run, place) {
  return [
    svg("path", { class: "bars", stroke: frontColour(run), d: run.front.filter((t) => t.spread).map((t) => bar(t, place)).join("") }),
    ...run.front.map((t) => mark(t.shape, place.sx(t.x), place.sy(t.y), 5.5, { fill: frontColour(run), stroke: "var(--paper)", "data-id": t.id, "data-run": run.place })),
  ];
}

function staircase(run, { sx, sy }) {
  const rises = X.direction === "minimize";
  const path = run.front.map((t, k) => (k === 0 ? `M${sx(t.x)} ${sy(t.y)}` : rises ? `H${sx(t.x)}V${sy(t.y)}` : `V${sy(t.y)}H${sx(t.x)}`)).join("");
  return svg("path", { d: path, fill: "none", stroke: frontColour(run), "stroke-dasharray": run.dash, opacity: 0.7 });
}

// lines from detectors of a later stage to the one of the first stage whose inside they are
function links(trials, { sx, sy }) {
  const pairs = trials.map((trial) => [trial, parentOf(trial)]).filter(([, parent]) => parent && parent.x !== undefined);
  const path = pairs.map(([a, b]) => `M${sx(a.x)} ${sy(a.y)}L${sx(b.x)} ${sy(b.y)}`).join("");
  return path ? [svg("path", { class: "links", d: path })] : [];
}

function frontLegend() {
  const run = data.runs[0];
  const shapes = severalRuns
    ? data.runs.map((one) => [`${one.name} (front of ${one.front.length})`, svg("path", { d: "M0 8H24", stroke: one.colour, "stroke-dasharray": one.dash }), mark(one.shape, 12, 8, 5.5, { fill: one.colour })])
    : [[`front (${fronts.length})`, mark("circle", 12, 8, 5.5, { fill: "var(--blue)" })]];
  const stages = !severalRuns && run.stages.length > 1 ? run.stages.map((stage, k) => [stage, mark(SHAPES[k % SHAPES.length], 12, 8, 5, { fill: "none", stroke: "var(--ink)" })]) : [];
  const linked = fronts.some((trial) => parentOf(trial));
  const spread = points.some((trial) => trial.spread);
  return legend([
    ...shapes,
    [`dominated (${points.length - fronts.length})`, mark("circle", 12, 8, 3.5, { fill: "none", stroke: severalRuns ? "var(--ink)" : "var(--grey)" })],
    ...stages,
    points.some((t) => t.baseline) && ["baseline", svg("rect", { x: 6, y: 2, width: 12, height: 12, fill: "none", stroke: "var(--orange)", "stroke-width": 2, transform: "rotate(45 12 8)" })],
    fronts.some((t) => t.knee) && ["knee point", kneeMark(12, 8)],
    spread && ["latency, middle half of the calls", svg("path", { class: "bars", d: "M2 8H22", stroke: "var(--ink)" })],
    linked && ["to its structural parent", svg("path", { class: "links", d: "M0 8H24" })],
  ].filter(Boolean));
}

// -- hover, click, keyboard

function nearest(event, reach) {
  const { drawing, sx, sy } = front.place ?? {};
  if (!drawing) return null;
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
  let best = null, least = reach;
  for (const trial of points) {
    // where points lie on each other the front's is meant
    const distance = Math.hypot(sx(trial.x) - at.x, sy(trial.y) - at.y) - (trial.front ? 3 : 0);
    if (distance < least) [best, least] = [trial, distance];
  }
  return best;
}

const frontHover = (event) => look(nearest(event, 24));
function frontClick(event) {
  const trial = nearest(event, 30);
  if (trial) openCard(trial, front.host);
}

function frontKey(event) {
  const steps = { ArrowRight: [fronts, 1], ArrowLeft: [fronts, -1], ArrowUp: [points, 1], ArrowDown: [points, -1] };
  const now = front.seen ?? front.chosen ?? fronts[0];
  if (!now) return;
  if (event.key in steps) look(step(...steps[event.key], now));
  else if (event.key === "Home") look(fronts[0]);
  else if (event.key === "End") look(fronts.at(-1));
  else if (event.key === "Enter" || event.key === " ") openCard(now, front.host);
  else return;
  event.preventDefault();
}

// the next or previous one of a list that is sorted by x; the nearest where the trial is not in it
function step(list, by, trial) {
  const at = list.indexOf(trial);
  if (at >= 0) return list[Math.max(0, Math.min(list.length - 1, at + by))];
  return (by > 0 ? list.find((t) => t.x >= trial.x) : list.findLast((t) => t.x <= trial.x)) ?? trial;
}

// what the reader looks at: ringed, described beside the point and to screen readers
function look(trial) {
  if (trial === front.seen) return;
  front.seen = trial;
  drawFocus();
  const tip = document.getElementById("tip");
  tip.hidden = !trial;
  if (!trial) return;
  const lines = [valuesOf(trial), ...outline(trial), roles(trial).join(", ")];
  tip.replaceChildren(html("b", {}, nameOf(trial)), ...lines.map((line) => html("div", {}, line)));
  document.getElementById("announcer").textContent = [nameOf(trial), ...lines].join(". ");
  const { drawing, sx, sy } = front.place;
  const at = new DOMPoint(sx(trial.x), sy(trial.y)).matrixTransform(drawing.getScreenCTM());
  const left = at.x + tip.offsetWidth + 24 > document.documentElement.clientWidth ? Math.max(4, at.x - tip.offsetWidth - 14) : at.x + 14;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${Math.max(4, at.y - tip.offsetHeight - 12) + scrollY}px`;
}

function drawFocus() {
  const { focus, sx, sy } = front.place ?? {};
  if (!focus) return;
  focus.replaceChildren();
  if (front.chosen) focus.append(...links([front.chosen, ...childrenOf(front.chosen)], front.place));
  for (const [trial, size] of [[front.chosen, 11], [front.seen, 9]]) {
    if (trial) focus.append(svg("circle", { class: "ring", cx: sx(trial.x), cy: sy(trial.y), r: size }));
  }
}

// -- the best one under a limit

function picker() {
  if (X.name === "id" || X.direction !== "minimize" || !points.length) return null;
  const low = fronts[0].x, high = points.at(-1).x;
  const unit = 10 ** Math.floor(Math.log10((high - low || high || 1) / 200));
  const up = (value) => Number((Math.ceil(value / unit - 1e-9) * unit).toPrecision(8));
  front.limit = up((fronts.find((t) => t.knee) ?? fronts.at(-1)).x);
  const shown = { min: up(low), max: up(high), step: unit, value: front.limit };
  const slide = html("input", { type: "range", id: "limit", ...shown, oninput: () => setLimit(slide.valueAsNumber) });
  const exact = html("input", { type: "number", id: "limit-exact", ...shown, "aria-label": `Limit of ${label(X.name)}`, oninput: () => Number.isFinite(exact.valueAsNumber) && setLimit(exact.valueAsNumber) });
  const answer = html("p", { id: "pick", "aria-live": "polite" });
  const setLimit = (value) => {
    front.limit = value;
    for (const input of [slide, exact]) if (input.valueAsNumber !== value && input !== document.activeElement) input.value = value;
    front.pick = fronts.filter((t) => t.x <= value).reduce((a, b) => (a && !better(Y, b.y, a.y) ? a : b), null);
    const open = front.pick && html("button", { type: "button", class: "noprint", onclick: (event) => openCard(front.pick, event.currentTarget) }, "Open card");
    answer.replaceChildren(...(front.pick ? [html("b", {}, nameOf(front.pick)), ` ${valuesOf(front.pick)} `, open] : ["No detector is that fast."]));
    drawLimit();
  };
  setLimit(front.limit);
  const title = X.name === "latency_ms" ? "Best under (ms)" : `Best under: ${label(X.name)}`;
  return html("div", { class: "picker" }, html("div", { class: "row" }, html("label", { for: "limit" }, html("b", {}, title)), slide, exact), answer);
}

function drawLimit() {
  const { limit, sx, sy, box } = front.place ?? {};
  if (!limit || front.limit === null) return;
  const at = Math.max(box.left, Math.min(box.right, sx(front.limit)));
  limit.replaceChildren(
    svg("rect", { class: "beyond", x: at, y: box.top, width: box.right - at, height: box.bottom - box.top }),
    svg("line", { class: "limit", x1: at, x2: at, y1: box.top, y2: box.bottom }));
  if (front.pick) limit.append(svg("circle", { cx: sx(front.pick.x), cy: sy(front.pick.y), r: 13, fill: "var(--amber)", opacity: 0.35 }));
}

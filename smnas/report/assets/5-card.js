// A detector's card: structure, numbers, training, what it finds in pictures, where it comes from.

let opener = null;

function openCard(trial, from) {
  const card = document.getElementById("card");
  opener = from ?? opener;
  front.chosen = trial;
  look(null);
  const heading = html("h2", { tabindex: -1 }, nameOf(trial));
  card.replaceChildren(heading, cardBar(trial), ...cardParts(trial));
  card.hidden = false;
  card.scrollTop = 0;
  document.getElementById("layout").classList.add("with-card");
  for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
  document.querySelector(`[data-row="${trial.run.place}-${trial.id}"]`)?.closest("tr").classList.add("chosen");
  drawFocus();
  heading.focus({ preventScroll: matchMedia("(min-width: 1001px)").matches });
}

function closeCard() {
  document.getElementById("card").hidden = true;
  document.getElementById("layout").classList.remove("with-card");
  front.chosen = null;
  drawFocus();
  opener?.isConnected ? opener.focus({ preventScroll: true }) : front.host.focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.getElementById("card").hidden) closeCard();
});

function cardBar(trial) {
  const go = (text, by, title) => {
    const other = step(fronts, by, trial);
    const walk = () => {
      openCard(other);
      document.querySelector(`#card [data-step="${by}"]:enabled`)?.focus();
    };
    return html("button", { type: "button", title, disabled: other === trial, "data-step": by, onclick: walk }, text);
  };
  return html("div", { class: "bar" }, go("← front", -1, "previous detector of the front"), go("front →", 1, "next detector of the front"),
    html("button", { type: "button", class: "close", onclick: closeCard }, "Close"));
}

function cardParts(trial) {
  const part = (title, content) => (content ? [html("h3", {}, title), content].flat() : []);
  return [
    html("div", { class: "badges" }, roles(trial).map((role) => html("span", { class: "badge" }, role))),
    html("p", {}, html("b", {}, valuesOf(trial))),
    ...part("Structure", structure(trial)),
    ...part("Metrics", facts(Object.entries(trial.metrics).map(([name, value]) => [label(name), number(name, value)]), "numbers")),
    ...part("Latency", latencyCard(trial)),
    ...part("Training", training(trial)),
    ...part("Found on the search split", examples(trial)),
    ...part("Origin", origin(trial)),
    ...part("Sample", facts(Object.entries(trial.sample))),
  ];
}

function structure(trial) {
  return html("ul", { class: "blocks" }, trial.blocks.map((block) =>
    html("li", {}, html("span", { class: "soft small" }, `${block.part} `), html("b", {}, block.text),
      block.string && html("div", { class: "small" }, html("code", {}, block.string)),
      block.stages && html("div", { class: "stages" }, block.stages.map(([blocks, channels, stride]) =>
        html("div", { class: "stage", role: "img", "aria-label": `stride ${stride}: ${plural(blocks.length, "block")}, ${channels} channels` },
          html("span", { class: "soft" }, `1/${stride} · ${channels} channels`),
          html("span", { class: "cells" }, [...blocks].map((kind) => html("i", { class: kind === "2" ? "doubles" : "" })))))),
      block.stages && html("div", { class: "small soft" }, "a block each; wide ones double the width"))));
}

function latencyCard(trial) {
  const m = trial.metrics;
  if (m.latency_ms === undefined) return null;
  const conditions = trial.card === undefined ? [] : Object.entries(trial.run.cards[trial.card]);
  const text = (value) => (Array.isArray(value) ? value.join(" × ") : typeof value === "boolean" ? (value ? "yes" : "no") : value);
  return facts([
    ["median", `${number("latency_ms", m.latency_ms)} ms`],
    m.latency_iqr_ms !== undefined && ["interquartile range", `${number("latency_iqr_ms", m.latency_iqr_ms)} ms`],
    m.latency_count !== undefined && ["timed calls", m.latency_count],
    trial.gpu !== undefined && ["GPU", trial.gpu],
    ...conditions.filter(([, value]) => value !== null && typeof value !== "object" || Array.isArray(value)).map(([name, value]) => [name.replaceAll("_", " "), text(value)]),
  ].filter(Boolean));
}

function training(trial) {
  const { epoch, ...columns } = trial.curve ?? {};
  if (!epoch) return html("p", { class: "soft" }, "The journal has no training curve.");
  const chart = (name, colour) => columns[name] && lineChart(`${label(name)} after each epoch`, "epoch", label(name), [{ name: label(name), colour, points: epoch.map((e, k) => [e, columns[name][k]]).filter(([, value]) => value !== null) }]);
  return [...["map", "loss"].map((name, k) => chart(name, COLOURS[k])), trial.recipe !== undefined && html("p", { class: "small soft" }, trial.run.recipes[trial.recipe])].filter(Boolean);
}

function examples(trial) {
  if (!trial.examples) return html("p", { class: "soft" }, "This trial left no example detections.");
  const list = html("div");
  const least = html("input", { type: "range", min: 5, max: 95, step: 5, value: 30, oninput: () => draw() });
  const text = html("span");
  const draw = () => {
    text.textContent = (least.valueAsNumber / 100).toFixed(2);
    list.replaceChildren(...trial.examples.map(({ picture, boxes }) => {
      const shown = data.pictures[picture];
      const found = boxes.filter((box) => box[5] >= least.valueAsNumber);
      return html("div", { class: "examples" }, boxed(shown, shown.truth, `truth: ${shown.truth.length}`), boxed(shown, found, `found: ${found.length}`));
    }), ...(trial.examples.some(({ picture }) => !data.pictures[picture].source) ? [html("p", { class: "small soft" }, "Pictures that are no longer where they were are drawn as empty frames.")] : []));
  };
  draw();
  const classes = data.pictures[trial.examples[0]?.picture]?.categories ?? [];
  const key = legend(classes.map((name, k) => [name, svg("rect", { x: 3, y: 2, width: 18, height: 12, fill: "none", "stroke-width": 2, ...boxStyle(k + 1) })]));
  return [html("label", { class: "small noprint" }, "score at least ", text, " ", least), key, list];
}

const boxStyle = (kind) => ({ stroke: `var(--${["orange", "sky", "green", "amber", "pink", "blue"][(kind - 1) % 6]})`, "stroke-dasharray": DASHES[Math.floor((kind - 1) / 6) % DASHES.length] });

function boxed(picture, boxes, caption) {
  const titled = boxes.length <= 8;
  const name = (box) => picture.categories[box[4] - 1] + (box.length > 5 ? ` ${(box[5] / 100).toFixed(2)}` : "");
  return html("figure", {}, html("figcaption", {}, caption),
    svg("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`, role: "img", "aria-label": `${caption}: ${boxes.map(name).join(", ")}` },
      picture.source && svg("image", { href: picture.source, width: picture.width, height: picture.height }),
      boxes.map((box) => svg("rect", { x: box[0], y: box[1], width: Math.max(1, box[2] - box[0]), height: Math.max(1, box[3] - box[1]), ...boxStyle(box[4]) }, svg("title", {}, name(box)))),
      titled && boxes.map((box) => svg("text", { x: box[0] + 2, y: Math.max(12, box[1] - 3) }, name(box)))));
}

function origin(trial) {
  const jump = (other) => html("button", { type: "button", onclick: () => openCard(other) }, `#${other.id}`);
  const many = (list) => [list.slice(0, 24).map((other) => [jump(other), " "]), list.length > 24 && `and ${list.length - 24} more`].flat(2).filter(Boolean);
  const parents = (trial.parents ?? []).map((id) => trial.run.byId.get(id)).filter(Boolean);
  const parent = parentOf(trial), children = childrenOf(trial);
  return [
    html("p", {}, `${trial.origin}, generation ${trial.generation}`),
    parent && html("p", {}, "inside of ", jump(parent)),
    parents.length > 0 && html("p", {}, "made from ", ...many(parents)),
    children.length > 0 && html("p", {}, "children: ", ...many(children)),
  ].filter(Boolean);
}

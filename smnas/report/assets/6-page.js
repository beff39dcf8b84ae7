// The page from top to bottom.

function heading() {
  const single = !severalRuns && data.runs[0];
  const title = single ? single.name : data.runs.map((run) => run.name).join(" · ");
  const total = (pick) => data.runs.reduce((sum, run) => sum + run.budget.reduce((part, stage) => part + pick(stage), 0), 0);
  const knee = single && single.front.find((trial) => trial.knee);
  const tiles = [
    [total((s) => s.measured).toLocaleString("en"), `of ${plural(total((s) => s.asked), "trial")} measured`],
    [fronts.length, severalRuns ? "on the runs' fronts" : "on the front"],
    single && [number("", single.growth.hypervolume.at(-1) ?? 0), "hypervolume"],
    knee && [`#${knee.id}`, "knee point"],
    [hours(total((s) => s.training_hours)), "of training"],
    single && [hours(single.growth.hours.at(-1) ?? 0), "from first to last"],
  ].filter(Boolean);
  return html("header", {},
    html("h1", {}, title),
    html("p", { class: "soft" }, `Detectors searched for ${objectives.map((one) => label(one.name)).join(" and ")}${data.device ? ` on ${data.device}` : ""}.`),
    ...data.notes.map((note) => html("p", { class: "small soft" }, note)),
    html("div", { class: "tiles" }, tiles.map(([value, text]) => html("div", { class: "tile" }, html("b", {}, String(value)), html("span", { class: "small soft" }, text)))));
}

function frontTable() {
  const extra = ["params_m", "macs_g"].filter((name) => !objectives.some((one) => one.name === name) && points.some((t) => t.metrics[name] !== undefined));
  const columns = [["detector", "wide"], severalRuns && ["run", ""], ...objectives.map((one) => [label(one.name), "number"]), ...extra.map((name) => [label(name), "number"]), ["structure", "wide"]].filter(Boolean);
  const row = (trial) => [
    html("span", { "data-row": `${trial.run.place}-${trial.id}` },
      html("button", { type: "button", onclick: (event) => openCard(trial, event.currentTarget), "aria-label": `Card of ${nameOf(trial)}` }, `#${trial.id}`),
      trial.knee && " ★ knee", trial.baseline && ` ◇ ${trial.baseline}`, parentOf(trial) && ` from #${trial.group}`),
    severalRuns && trial.run.name,
    ...[...objectives.map((one) => one.name), ...extra].map((name) => number(name, trial.metrics[name])),
    trial.blocks.map((block) => block.string ?? block.text).join(" · "),
  ].filter((cell) => cell !== false);
  const place = html("div");
  const draw = (all) => place.replaceChildren(table(null, columns, (all ? points : fronts).map(row), { class: "rows", id: "rows" }));
  draw(false);
  const every = html("label", { class: "small noprint" }, html("input", { type: "checkbox", onchange: (event) => draw(event.target.checked) }), " also the dominated ones");
  return html("section", { class: "long" }, html("h2", {}, "The front as a table"), every, place);
}

function comparison() {
  if (!severalRuns) return null;
  const c = data.comparison;
  const where = Object.entries(c.reference).map(([name, value]) => valueOf(name, value)).join(", ");
  const sum = (run, pick) => run.budget.reduce((total, stage) => total + pick(stage), 0);
  const rows = data.runs.map((run, k) => [
    run.name, sum(run, (s) => s.asked).toLocaleString("en"), sum(run, (s) => s.measured).toLocaleString("en"), String(run.front.length),
    number("", c.hypervolume[k]), String(c.joint[k]), hours(run.growth.hours.at(-1) ?? 0), hours(sum(run, (s) => s.training_hours))]);
  const percent = (value) => `${Math.round(100 * value)} %`;
  return section("Runs side by side",
    table(`Hypervolume against the common reference point (${where}).`,
      [["run", ""], ["trials", "number"], ["measured", "number"], ["front", "number"], ["hypervolume", "number"], ["on the joint front", "number"], ["first to last", "number"], ["training", "number"]], rows, { class: "rows", id: "comparison" }),
    html("br"),
    table("Coverage: the share of a column's front that some detector of a row's front is at least as good as.",
      [["", ""], ...data.runs.map((run) => [run.name, "number"])], data.runs.map((run, a) => [run.name, ...c.coverage[a].map((value, b) => (a === b ? "–" : percent(value)))]), { class: "rows", id: "coverage" }));
}

function growthSection() {
  const series = (over) => data.runs.map((run) => ({ name: run.name, colour: frontColour(run), dash: run.dash, step: true, points: [[0, 0], ...run.growth.hypervolume.map((value, k) => [over(run, k), value])] }));
  return section("Hypervolume",
    html("div", { class: "pair" },
      lineChart("over trials", "finished trials", "hypervolume", series((run, k) => k + 1)),
      lineChart("over hours (pauses count)", "hours", "hypervolume", series((run, k) => run.growth.hours[k]))),
    severalRuns && legend(data.runs.map((run) => [run.name, svg("path", { d: "M0 8H24", stroke: run.colour, "stroke-width": 2, "stroke-dasharray": run.dash })])));
}

function budgetSection() {
  const rows = data.runs.flatMap((run) => run.budget.map((s) => [...(severalRuns ? [run.name] : []), s.stage, ...[s.asked, s.measured, s.failed, s.stopped, s.asked - s.measured - s.failed - s.stopped].map(String), hours(s.hours), hours(s.training_hours)]));
  const columns = [severalRuns && ["run", ""], ["stage", ""], ["trials", "number"], ["measured", "number"], ["failed", "number"], ["stopped", "number"], ["running", "number"], ["first to last", "number"], ["training", "number"]].filter(Boolean);
  return section("Budget spent", table(null, columns, rows, { class: "rows", id: "budget" }));
}

function knowledgeSection() {
  const names = data.objectives.map((objective) => objective.name);
  const rows = data.runs.flatMap((run) => run.knowledge.map((r) => [...(severalRuns ? [run.name] : []), r.group === null ? r.stage : `${r.stage} of #${r.group}`, `#${r.ids[0]} – #${r.ids[r.ids.length - 1]}`, String(r.by_models), String(r.ids.length - r.by_models), ...names.map((name) => (name in r.tau ? r.tau[name].toFixed(2) : "–"))]));
  if (!rows.length) return null;
  const columns = [severalRuns && ["run", ""], ["stage", ""], ["candidates", ""], ["by models", "number"], ["mated", "number"], ...names.map((name) => [`τ ${name}`, "number"])].filter(Boolean);
  return section("What the models knew", html("p", { class: "small soft" }, "Kendall’s rank correlation of the surrogate’s models with what they had not seen (4-fold cross-validation), from one choice of models to the next."), table(null, columns, rows, { class: "rows", id: "knowledge" }));
}

function failureSection() {
  const rows = data.runs.flatMap((run) => run.failures.map((f) => [...(severalRuns ? [run.name] : []), f.reason, String(f.ids.length), f.meaning, `${f.ids.slice(0, 12).map((id) => `#${id}`).join(" ")}${f.ids.length > 12 ? " …" : ""}`, f.detail]));
  const columns = [severalRuns && ["run", ""], ["reason", ""], ["trials", "number"], ["meaning", "wide"], ["which", ""], ["for instance", "wide"]].filter(Boolean);
  return section("Failed and stopped trials", rows.length ? table(null, columns, rows, { class: "rows", id: "failures" }) : html("p", {}, "No trial failed or was stopped."));
}

function makingSection() {
  return section("How it was made", ...data.runs.map((run) =>
    html("details", { open: !severalRuns }, html("summary", {}, run.name), facts(run.facts), html("h3", {}, "Choices"), facts(run.space))));
}

document.getElementById("page").append(...[
  heading(), frontSection(), comparison(), frontTable(), growthSection(), budgetSection(), knowledgeSection(), failureSection(), makingSection(),
  html("footer", { class: "small soft" }, `Made by smnas ${data.version}.`),
].filter(Boolean));

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));

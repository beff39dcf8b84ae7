// The runs as the page uses them: what Python packed into rows gets names again.

const objectives = data.objectives;
const [X, Y] = objectives.length > 1 ? objectives : [{ name: "id", direction: "minimize" }, objectives[0]];
const better = (objective, a, b) => (objective.direction === "minimize" ? a < b : a > b);
const severalRuns = data.runs.length > 1;

data.runs.forEach((run, place) => {
  run.place = place;
  run.colour = COLOURS[place % COLOURS.length];
  run.dash = DASHES[place % DASHES.length];
  run.shape = SHAPES[place % SHAPES.length];
  run.byId = new Map(run.trials.map((trial) => [trial.id, trial]));
  run.stages = [...new Set(run.trials.map((trial) => trial.stage))];
  for (const trial of run.trials) {
    const named = (names, values) => Object.fromEntries(names.map((name, k) => [name, values[k]]).filter(([, value]) => value !== null));
    trial.run = run;
    trial.metrics = named(run.metrics, trial.metrics);
    trial.sample = named(run.choices, trial.sample);
    trial.x = X.name === "id" ? trial.id : trial.metrics[X.name];
    trial.y = trial.metrics[Y.name];
    trial.spread = X.name === "latency_ms" ? trial.metrics.latency_iqr_ms : undefined;
    trial.shape = severalRuns ? run.shape : SHAPES[run.stages.indexOf(trial.stage) % SHAPES.length];
  }
  run.points = run.trials.filter((trial) => trial.x !== undefined && trial.y !== undefined);
  run.front = run.points.filter((trial) => trial.front).sort((a, b) => a.x - b.x);
});

const points = data.runs.flatMap((run) => run.points).sort((a, b) => a.x - b.x);
const fronts = points.filter((trial) => trial.front);

const nameOf = (trial) => `#${trial.id}${trial.baseline ? ` ${trial.baseline}` : ""}${severalRuns ? ` of ${trial.run.name}` : ""}`;
const valueOf = (name, value) => (name === "latency_ms" ? `${number(name, value)} ms` : `${label(name)} ${number(name, value)}`);
const valuesOf = (trial) => objectives.map((one) => valueOf(one.name, trial.metrics[one.name])).join(", ");
const outline = (trial) => trial.blocks.map((block) => `${block.part}: ${block.string ?? block.text}`);
const parentOf = (trial) => (trial.group === undefined ? undefined : trial.run.byId.get(trial.group));
const childrenOf = (trial) =>
  trial.run.trials.filter((other) => other !== trial && (other.group === trial.id || (other.parents ?? []).includes(trial.id)));
function roles(trial) {
  return [trial.front ? "on the front" : "dominated", trial.knee && "knee point", trial.baseline && "baseline", trial.stage].filter(Boolean);
}

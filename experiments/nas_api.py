"""A structural search from NNI's NAS API: python experiments/nas_api.py

Needs the demo data (`smnas data digits data/digits`); some minutes on a CPU. The same space and
settings as experiments/structural.yml, which `smnas search` runs without a server.
"""

from __future__ import annotations

from pathlib import Path

from nni.nas.experiment import NasExperiment
from nni.nas.experiment.config import NasExperimentConfig

from smnas.experiment import load_experiment
from smnas.nas import DetectorEvaluator, ParetoStrategy
from smnas.spaces import open_space

HERE = Path(__file__).resolve().parent


def main(port: int = 8080, trials: int = 6, data: Path = HERE.parent / "data" / "digits") -> None:
    settings = load_experiment(HERE / "structural.yml").search
    space = open_space(str(HERE / "structural.yml"))
    evaluator = DetectorEvaluator(
        {
            "space": str(HERE / "structural.yml"),
            "data": str(data),
            "recipe": dict(settings.recipe),
        }
    )
    strategy = ParetoStrategy(
        settings.objective_vector(), population=settings.population, baselines=settings.baselines
    )
    config = NasExperimentConfig("ts", "simplified", "local")
    config.experiment_name = "structural-nas-api"
    config.trial_concurrency = 2
    config.max_trial_number = trials

    experiment = NasExperiment(space, evaluator, strategy, config)
    try:
        experiment.run(port)
        for trial in strategy.front():
            print(trial.candidate.id, dict(trial.outcome.metrics), dict(trial.candidate.sample))
    finally:
        experiment.stop()


if __name__ == "__main__":
    main()

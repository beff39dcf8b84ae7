"""Surrogate-assisted proposals: models of the objectives stand in for most of the trainings.

The optimiser asks here first and mates as NSGA-II where the models know nothing. All that is drawn
follows from the seed and what has been told, in its order, and never from earlier proposals: a
resumed search needs to compute none of them again. Imports no torch and no pymoo algorithm but
through `algorithms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from smnas import pareto
from smnas.algorithms import Engine
from smnas.encoding import Encoding
from smnas.errors import ConfigError, check_names
from smnas.objectives.vector import Objectives
from smnas.records import Failed, Outcome, expected
from smnas.regression import MODELS, Choice, Features, Model, choose

GROWTH = 1.2
"""Models are chosen anew whenever so many times the results are there."""

FEWEST = 10
"""Values of an objective without which it is not modelled."""

MOST = 500
"""Results that a model is fitted to; of more the best half and the newest half."""

MOST_FOR_CHOICE = 120
"""Results that models are chosen by, drawn at random."""

DRAWS = 32
"""Random samples of which the first sample takes the farthest, and draws of the models' error."""

INNER_POPULATION, INNER_GENERATIONS = 40, 12


@dataclass(frozen=True)
class Round:
    """What the models knew from a number of results on.

    Args:
        results: told by then, failed ones included.
        models: `{objective: name of its model}`; an objective without one could not be modelled.
        tau: `{objective: Kendall's rank correlation in cross-validation}`, -1 to 1.
        is_informed: every objective has a model that is better than chance.
    """

    results: int
    models: Mapping[str, str]
    tau: Mapping[str, float]
    is_informed: bool


class Surrogate:
    """Proposes what is expected to add most hypervolume, by models of the objectives.

    After the first population, every objective has a model, chosen again as results grow. An inner
    NSGA-II on the models searches the space; of all that it visits and nobody has asked, the
    expected gain of hypervolume decides, times the probability not to fail. Running candidates
    count as what the models say of them, so that workers spread. The gain is averaged over draws of
    the models' error and over directions (hypervolume as expected Chebyshev value: Zhang &
    Golovin 2020), which works for any number of objectives.

    Args:
        encoding: of the search space.
        objectives: what the outcomes must hold; an objective is also learned from failures that
            have it, such as latency.
        population: results before models are asked.
        seed: at least 0.
        models: names of `regression.MODELS` to choose from.

    Attributes:
        rounds: what the models knew, one entry for each choice that was made.

    Raises:
        ConfigError: an unknown model, or none.
    """

    def __init__(
        self,
        encoding: Encoding,
        objectives: Objectives,
        *,
        population: int,
        seed: int,
        models: Sequence[str] = tuple(MODELS),
    ) -> None:
        if isinstance(models, str) or not models:
            raise ConfigError(f"models: wanted a list of at least one, got {models!r}")
        check_names(models, MODELS, "models")
        self.rounds: list[Round] = []
        self._encoding, self._objectives = encoding, objectives
        self._features, self._names = Features(encoding), list(models)
        self._population, self._seed = population, seed
        self._indices: list[np.ndarray] = []
        self._outcomes: list[Outcome] = []
        self._choices: dict[str, Choice] = {}
        self._fitted_to = 0

    def tell(self, index: np.ndarray, outcome: Outcome) -> None:
        """Gives a candidate's index vector (`d`) and outcome."""
        self._indices.append(index)
        self._outcomes.append(outcome)

    def first(self, draw: Callable[[], np.ndarray], asked: Sequence[np.ndarray]) -> np.ndarray:
        """An index vector far from what has been asked: the farthest of several draws."""
        drawn = np.array([draw() for _ in range(DRAWS if asked else 1)])
        if not asked:
            return drawn[0]
        away = self._features(drawn)[:, None] - self._features(np.array(asked))[None]
        return drawn[np.argmax((away**2).sum(axis=2).min(axis=1))]

    def propose(
        self, running: Sequence[np.ndarray], seen: set[str], number: int
    ) -> np.ndarray | None:
        """The index vector with the largest expected gain; None where the models know nothing.

        Args:
            running: index vectors that were asked and not yet told.
            seen: identities that were asked.
            number: of candidates asked so far; the draws of each are its own.
        """
        size = self._round_size()
        if size and (not self.rounds or self.rounds[-1].results != size):
            self._choose(size)
        if not size or not self.rounds[-1].is_informed:
            return None
        self._fit()
        pool = self._visited(seen, number)
        gains = self._gains(pool, running, number) if len(pool) else np.zeros(1)
        return pool[np.argmax(gains)] if gains.max() > 0 else None

    @property
    def knowledge(self) -> dict[str, float]:
        """`{objective: Kendall's tau of its model}` at the last proposal; empty before any."""
        return dict(self.rounds[-1].tau) if self.rounds else {}

    # -- models ---------------------------------------------------------------------------------

    def _round_size(self) -> int:
        """Results that the present models were chosen by; 0 before there are any."""
        size, following = 0, max(self._population, FEWEST)
        while following <= len(self._outcomes):
            size, following = following, max(following + 1, math.floor(GROWTH * following))
        return size

    def _choose(self, size: int) -> None:
        drawn = np.random.default_rng([self._seed, size]).permutation(size)[:MOST_FOR_CHOICE]
        self._choices, self._fitted_to = {}, 0
        for name in self._objectives.names:
            x, y = self._known(name, np.sort(drawn))
            if len(y) >= FEWEST and np.ptp(y) > 0:
                self._choices[name] = choose(x, y, self._names, self._seed)
        informed = [name for name, choice in self._choices.items() if choice.is_informed]
        self.rounds.append(
            Round(
                size,
                {name: choice.name for name, choice in self._choices.items()},
                {name: choice.tau for name, choice in self._choices.items()},
                len(informed) == len(self._objectives.names),
            )
        )

    def _fit(self) -> None:
        """Fits the chosen models to what is known now."""
        if self._fitted_to == len(self._outcomes):
            return
        numbers = self._training()
        self._models = [
            Model(self._choices[name], *self._known(name, numbers))
            for name in self._objectives.names
        ]
        failed = self._failed[numbers]
        self._failure: ExtraTreesClassifier | None = None
        if failed.any() and not failed.all():
            trees = ExtraTreesClassifier(50, max_features=None, random_state=self._seed)
            self._failure = trees.fit(self._traits(self._stacked(numbers)), failed)
        self._fitted_to = len(self._outcomes)

    def _training(self) -> np.ndarray:
        """Numbers of the results that models are fitted to."""
        numbers = np.arange(len(self._outcomes))
        if len(numbers) <= MOST:
            return numbers
        older, newer = np.split(numbers, [len(numbers) - MOST // 2])
        good = older[~self._failed[older]]
        ranked = good[pareto.ranked(self._rows(good))]
        return np.sort(np.concatenate([ranked[: MOST // 2], newer]))

    def _known(self, objective: str, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Features (`n x f`) and minimised values (`n`) of the results that have an objective."""
        known = {i: self._objectives.known(expected(self._outcomes[i])) for i in numbers}
        values = {i: row[objective] for i, row in known.items() if objective in row}
        return self._features(self._stacked(values)), np.array(list(values.values()))

    def _stacked(self, numbers: Iterable[int]) -> np.ndarray:
        rows = [self._indices[i] for i in numbers]
        return np.array(rows).reshape(len(rows), len(self._encoding.choices))

    @property
    def _failed(self) -> np.ndarray:
        return np.array(
            [
                isinstance(o, Failed) or bool(self._objectives.missing(expected(o)))
                for o in self._outcomes
            ]
        )

    def _rows(self, numbers: Iterable[int]) -> np.ndarray:
        rows = [self._objectives.minimised(expected(self._outcomes[i])) for i in numbers]
        return np.array(rows).reshape(len(rows), len(self._objectives.names))

    # -- proposals ------------------------------------------------------------------------------

    def _visited(self, seen: set[str], number: int) -> np.ndarray:
        """What an inner NSGA-II on the models visits, `n x d`: legal, none of it asked before."""
        engine = Engine(
            "nsga2",
            {},
            self._encoding,
            len(self._objectives.names),
            population=INNER_POPULATION,
            n_offspring=INNER_POPULATION,
            seed=int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]),
            seen=seen,
        )
        good = np.flatnonzero(~self._failed)
        indices = self._stacked(good[pareto.ranked(self._rows(good))][:INNER_POPULATION])
        visited: dict[bytes, np.ndarray] = {}
        for _ in range(INNER_GENERATIONS):
            mean, _ = self._predict(indices)
            ids = range(len(visited), len(visited) + len(indices))
            engine.tell(ids, indices, mean, np.zeros(len(indices), dtype=bool))
            children = [index for index, _ in engine.mate()]
            if not children:
                break
            indices = np.array(children)
            visited.update({child.tobytes(): child for child in children})
        return np.array(list(visited.values()))

    def _gains(self, pool: np.ndarray, running: Sequence[np.ndarray], number: int) -> np.ndarray:
        """Expected gains of hypervolume of index vectors (`n x d`), `n` values."""
        rows = self._rows(np.flatnonzero(~self._failed))
        if running:
            expected, _ = self._predict(np.array(running))
            rows = np.vstack([rows, self._natural(expected)])
        mean, deviation = self._predict(pool)
        rng = np.random.default_rng([self._seed, number])
        errors = rng.standard_normal((DRAWS, 1, mean.shape[1]))
        draws = self._natural(mean + errors * deviation)
        gains = pareto.expected_gains(draws, rows, self._objectives.reference_point)
        if self._failure is not None:
            gains = gains * self._failure.predict_proba(self._traits(pool))[:, 0]
        return gains

    def _traits(self, indices: np.ndarray) -> np.ndarray:
        """What tells failures: the choices, and what the models say; a bound on latency, say."""
        return np.hstack([self._features(indices), self._predict(indices)[0]])

    def _predict(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations, `n x m` each, on the models' own scales."""
        x = self._features(indices)
        both = [model.predict(x) for model in self._models]
        return np.stack([m for m, _ in both], axis=1), np.stack([d for _, d in both], axis=1)

    def _natural(self, values: np.ndarray) -> np.ndarray:
        """`... x m` on the models' own scales -> minimised objectives."""
        columns = [model.natural(values[..., k]) for k, model in enumerate(self._models)]
        return np.stack(columns, axis=-1)

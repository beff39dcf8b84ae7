"""Regression models of an objective over index vectors, chosen by how well they rank.

`surrogate.py` asks which model knows an objective best and fits it. scikit-learn's models; imports
no pymoo and no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from smnas.encoding import Encoding

FOLDS = 4

LONG = 20
"""Ordinal choices with more options are a range of numbers, not steps."""

SIGNIFICANCE = 1.645
"""Standard deviations of Kendall's tau between unrelated rankings that a model has to be above."""


def _gaussian_process(seed: int) -> BaseEstimator:
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(1.0, (0.05, 50.0), nu=2.5)
    kernel += WhiteKernel(1e-2, (1e-5, 1.0))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)


def _ridge(seed: int) -> BaseEstimator:
    # the dual form: its cost follows the results (n), not the pairs of features (f * f / 2)
    kernel = ConstantKernel(0.1, (1e-4, 1e3)) * DotProduct(1.0, (1e-2, 1e2)) ** 2
    kernel += WhiteKernel(1e-2, (1e-5, 1.0))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)


MODELS: dict[str, Callable[[int], BaseEstimator]] = {
    "gp": _gaussian_process,
    "ridge": _ridge,
    "trees": lambda seed: ExtraTreesRegressor(40, random_state=seed),
    "boosting": lambda seed: GradientBoostingRegressor(
        n_estimators=40, learning_rate=0.2, random_state=seed
    ),
    "neighbours": lambda seed: KNeighborsRegressor(5, weights="distance"),
}
"""Gaussian process with a Matérn kernel; Bayesian ridge regression on features and their pairwise
products, as a Gaussian process with a quadratic kernel; extremely randomised trees, gradient
boosting, nearest neighbours.
"""


class Features:
    """Index vectors as numbers for models: nominal choices one-hot, ordinal ones as steps.

    A step (0 below an option, else 1) keeps the order and leaves open how much each one brings;
    more than `LONG` options are a number from 0 to 1.

    Args:
        encoding: of the search space.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._n_options, self._ordinal = encoding.n_options, encoding.ordinal

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """`n x d` index vectors -> `n x f` numbers."""
        columns = []
        for values, n, ordinal in zip(indices.T, self._n_options, self._ordinal, strict=True):
            # the ends of an ordinal choice are then as far apart as two nominal options
            if ordinal and n > LONG:
                columns.append(values[:, None] / (n - 1))
            elif ordinal:
                columns.append((values[:, None] >= np.arange(1, n)) / np.sqrt(max(1, n - 1)))
            else:
                columns.append((values[:, None] == np.arange(n)) / np.sqrt(2))
        return np.hstack(columns)


@dataclass(frozen=True)
class Choice:
    """A kind of model and what cross-validation says of it.

    Args:
        name: of `MODELS`.
        tau: Kendall's rank correlation of predictions for what was left out, -1 to 1.
        error: root mean square of their error, in standard deviations of the objective.
        n: values that were known.
        estimator: not fitted; a Gaussian process has its kernel already.
    """

    name: str
    tau: float
    error: float
    n: int
    estimator: BaseEstimator

    @property
    def is_informed(self) -> bool:
        """Whether the model ranks better than chance does in 19 of 20 cases."""
        return self.tau > SIGNIFICANCE * np.sqrt(2 * (2 * self.n + 5) / (9 * self.n * (self.n - 1)))


def choose(x: np.ndarray, y: np.ndarray, names: Sequence[str], seed: int) -> Choice:
    """The model that ranks best in 4-fold cross-validation.

    Args:
        x: features, `n x f`, at least 4.
        y: `n` values.
        names: of `MODELS`, at least one.
        seed: of folds and models.
    """
    values = Scale(y).standard(y)
    return max((_judge(name, x, values, seed) for name in names), key=lambda choice: choice.tau)


def _judge(name: str, x: np.ndarray, values: np.ndarray, seed: int) -> Choice:
    estimator = MODELS[name](seed)
    with _quietly():
        if isinstance(estimator, GaussianProcessRegressor):
            # its kernel's few numbers are learned once, not once a fold and at every result
            kernel = estimator.fit(x, values).kernel_
            estimator.set_params(kernel=kernel, optimizer=None)
        folds = KFold(FOLDS, shuffle=True, random_state=seed)
        predicted = cross_val_predict(estimator, x, values, cv=folds)
    tau = float(kendalltau(values, predicted).statistic)
    error = float(np.sqrt(np.mean((values - predicted) ** 2)))
    return Choice(name, tau if np.isfinite(tau) else 0.0, error, len(values), estimator)


class Scale:
    """A monotone scale on which values are nearly normal (Yeo-Johnson), and back.

    mAP and latency have a long tail; a model that is fitted to it says little of the rest.

    Args:
        y: `n` values that it is made for.
    """

    def __init__(self, y: np.ndarray) -> None:
        self._low, self._high = float(y.min()), float(y.max())
        self._transform = make_pipeline(StandardScaler(), PowerTransformer())
        with _quietly():
            self._transform.fit(y[:, None])

    def standard(self, y: np.ndarray) -> np.ndarray:
        return self._transform.transform(y.reshape(-1, 1)).reshape(y.shape)

    def natural(self, z: np.ndarray) -> np.ndarray:
        """Values of any shape; the scale may end not far behind its values: what is beyond its
        ends is the lowest or highest of these.
        """
        with _quietly():
            y = self._transform.inverse_transform(z.reshape(-1, 1)).reshape(z.shape)
        return np.where(np.isfinite(y), y, np.where(z > 0, self._high, self._low))


class Model:
    """A fitted model of one objective.

    Args:
        choice: what to fit.
        x: features, `n x f`.
        y: `n` values.
    """

    def __init__(self, choice: Choice, x: np.ndarray, y: np.ndarray) -> None:
        self._choice, self._scale = choice, Scale(y)
        with _quietly():
            self._estimator = clone(choice.estimator).fit(x, self._scale.standard(y))

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation for `n x f` features, on the standard scale."""
        if self._choice.name in ("gp", "ridge"):
            mean, deviation = self._estimator.predict(x, return_std=True)
            return mean, deviation
        mean = self._estimator.predict(x)
        return mean, np.full(len(x), self._choice.error)

    def natural(self, z: np.ndarray) -> np.ndarray:
        """Values on the standard scale -> values of the objective."""
        return self._scale.natural(z)


_quietly = partial(warnings.catch_warnings, action="ignore", category=UserWarning)
"""ConvergenceWarning of a kernel at its bounds, and of a scale that ends; both are dealt with."""

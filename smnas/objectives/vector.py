"""Named objectives with directions, and the only place where a direction is flipped.

Everything behind this module (Pareto ranks, hypervolume, the algorithms) minimises. Imports no
torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from smnas.errors import ConfigError

DIRECTIONS = {"minimize": 1.0, "maximize": -1.0}

DEFAULT_DIRECTIONS = {
    "latency_ms": "minimize",
    "map": "maximize",
    "ap50": "maximize",
    "params_m": "minimize",
    "macs_g": "minimize",
}


@dataclass(frozen=True)
class Objectives:
    """What is optimised, in order.

    Args:
        directions: `{metric name: "minimize" | "maximize"}`, at least one.
        reference: `{metric name: value}`, the corner from which hypervolume is measured, in the
            metric's own unit and direction; fixed for a study and stored with it. Points beyond it
            count nothing.

    Raises:
        ConfigError: no objective, an unknown direction, or a reference that is missing or not
            finite.
    """

    directions: Mapping[str, str]
    reference: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.directions:
            raise ConfigError("objectives: wanted at least one, got none")
        for name, direction in self.directions.items():
            if direction not in DIRECTIONS:
                wanted = " or ".join(DIRECTIONS)
                raise ConfigError(f"objectives: {name}: wanted {wanted}, got {direction!r}")
        if set(self.reference) != set(self.directions):
            raise ConfigError(
                f"reference_point: wanted a value for each of {sorted(self.directions)}, "
                f"got {sorted(self.reference)}"
            )
        for name, value in self.reference.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"reference_point: {name}: wanted a finite number, got {value!r}")
        object.__setattr__(self, "directions", MappingProxyType(dict(self.directions)))
        object.__setattr__(self, "reference", MappingProxyType(dict(self.reference)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.directions)

    def missing(self, metrics: Mapping[str, float]) -> list[str]:
        """Objectives that a set of metrics lacks."""
        return [name for name in self.names if name not in metrics]

    def known(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """`{name: value to be minimised}` of the objectives that a set of metrics has."""
        return {
            name: float(metrics[name]) * DIRECTIONS[direction]
            for name, direction in self.directions.items()
            if name in metrics
        }

    def minimised(self, metrics: Mapping[str, float]) -> np.ndarray:
        """`m` values to be minimised, in the order of `names`.

        Raises:
            KeyError: an objective is missing; ask `missing` first.
        """
        return np.array([metrics[name] for name in self.names], dtype=float) * self._signs

    def named(self, row: np.ndarray) -> dict[str, float]:
        """The inverse of `minimised`."""
        return dict(zip(self.names, (row * self._signs).tolist(), strict=True))

    @property
    def reference_point(self) -> np.ndarray:
        """`m` values, minimised."""
        return self.minimised(self.reference)

    @property
    def _signs(self) -> np.ndarray:
        return np.array([DIRECTIONS[d] for d in self.directions.values()])

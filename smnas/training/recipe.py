"""How a detector is trained from scratch: the numbers, their checks and the learning-rate schedule.

The loop obeys a `Recipe`; the experiment file sets it. Imports no torch, and nothing of smnas but
the errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smnas.errors import ConfigError, check_names

WARMUP_SHARE = 0.25
"""At most this part of all steps is warm-up. A search trains for some hundred steps, most of which
a warm-up of fixed length would eat; a quarter leaves three to learn in.
"""


@dataclass(frozen=True)
class Recipe:
    """A short training from scratch: SGD, linear warm-up, cosine to zero, clipped gradients.

    The defaults suit GroupNorm with weight-standardised convolutions, without pre-training, on a
    few hundred pictures (`lr`: benchmarks/recipe_ablation.py).

    Args:
        epochs: passes over the training pictures, at least 1.
        batch: pictures a step, at least 1.
        lr: peak learning rate for a batch of `base_batch` pictures, above 0.
        base_batch: the batch that `lr` is meant for; other batches scale it in proportion.
        momentum: of SGD, in [0, 1).
        weight_decay: at least 0; norms and biases have none.
        warmup_iterations: steps of linear warm-up, at least 0; cut to a quarter of all steps.
        warmup_factor: the warm-up starts at this part of the peak, in (0, 1].
        clip_norm: gradients are scaled down to this Euclidean norm over all parameters, above 0.
        flip: probability of a horizontal flip, in [0, 1]; 0 where left and right differ in meaning.
        scale_jitter: (smallest, largest) zoom of a picture, above 0; `None` or (1, 1) is none. The
            size stays: what is larger is cropped at random, what is smaller is padded with black.

    Raises:
        ConfigError: a value is out of its range.
    """

    epochs: int = 6
    batch: int = 4
    lr: float = 0.04
    base_batch: int = 4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_iterations: int = 100
    warmup_factor: float = 0.1
    clip_norm: float = 10.0
    flip: float = 0.5
    scale_jitter: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale_jitter, list):  # experiment files have no tuples
            object.__setattr__(self, "scale_jitter", tuple(self.scale_jitter))
        if self.scale_jitter == (1, 1):  # options of the command line have no None
            object.__setattr__(self, "scale_jitter", None)
        for name in ("epochs", "batch", "base_batch"):
            self._check(name, lambda v: _whole(v) and v >= 1, "a whole number of at least 1")
        for name in ("lr", "clip_norm"):
            self._check(name, lambda v: _number(v) and v > 0, "a number above 0")
        whole = "a whole number of at least 0"
        self._check("warmup_iterations", lambda v: _whole(v) and v >= 0, whole)
        self._check("warmup_factor", lambda v: _number(v) and 0 < v <= 1, "a number in (0, 1]")
        self._check("momentum", lambda v: _number(v) and 0 <= v < 1, "a number in [0, 1)")
        self._check("weight_decay", lambda v: _number(v) and v >= 0, "a number of at least 0")
        self._check("flip", lambda v: _number(v) and 0 <= v <= 1, "a number in [0, 1]")
        pair = "None or two numbers, 0 < smallest <= largest"
        self._check("scale_jitter", lambda v: v is None or _is_range(v), pair)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Recipe:
        """The recipe of an experiment file; what it leaves out keeps its default.

        Args:
            values: `{argument: value}`.
            where: the place that holds it, for messages.

        Raises:
            ConfigError: a name is unknown or a value is out of its range; with the place.
        """
        check_names(values, [field.name for field in dataclasses.fields(cls)], f"{where}: recipe")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def _check(self, field: str, accepts: Any, wanted: str) -> None:
        value = getattr(self, field)
        if not accepts(value):
            raise ConfigError(f"recipe.{field}: wanted {wanted}, got {value!r}")

    @property
    def peak_lr(self) -> float:
        """Highest learning rate: in proportion to the batch (Goyal et al. 2017, section 2.1)."""
        return self.lr * self.batch / self.base_batch

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate of one step.

        Args:
            step: number of steps taken before it, 0 to `total`.
            total: steps of the whole training.
        """
        warmup = min(self.warmup_iterations, int(total * WARMUP_SHARE))
        if step < warmup:
            return self.peak_lr * (self.warmup_factor + (1 - self.warmup_factor) * step / warmup)
        return self.peak_lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    def describe(self) -> str:
        """The recipe in one line, for logs and reports."""
        jitter = "none" if self.scale_jitter is None else "{:g} to {:g}".format(*self.scale_jitter)
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"{epochs}, batch {self.batch}, SGD lr {self.peak_lr:g} momentum"
            f" {self.momentum:g} weight decay {self.weight_decay:g}, warm-up "
            f"{self.warmup_iterations} steps (at most {WARMUP_SHARE:.0%}) from "
            f"{self.warmup_factor:g}x, cosine to 0, gradients clipped at {self.clip_norm:g}, "
            f"flip {self.flip:g}, scale jitter {jitter}"
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_number, value)):
        return False
    return 0 < value[0] <= value[1]

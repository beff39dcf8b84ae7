"""The training loop: obeys a `Recipe`, steps inside the quiet window, fails with a reason.

The trial calls `train` with any detector and any batches; knows nothing of search, spaces or COCO.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smnas.errors import TrialFailure
from smnas.quiet import QuietDevice
from smnas.training.augment import Batch, Targets, augment
from smnas.training.precision import autocast, half_type
from smnas.training.recipe import Recipe

T = TypeVar("T")


class Batches(Protocol):
    """The batches of one epoch: a `DataLoader`, a list, or alike.

    Each is (images, targets): a list of float `3 x H x W` in 0 to 1, and for each image a dict with
    `boxes` (float `n x 4`, x0 y0 x1 y1, pixels) and `labels` (int64 `n`, from 1).
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class EpochStats:
    """What one epoch did.

    Args:
        steps: optimiser steps in it.
        loss: mean over its steps of the sum of all loss terms.
        losses: mean over its steps of every loss term.
        gradient_norm: mean over its steps of the norm before clipping; infinite when loss scaling
            (float16) has skipped a step.
        learning_rate: of its last step.
        seconds: wall time of its steps, waiting for the quiet window included.
    """

    steps: int
    loss: float
    losses: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainStats:
    """What a training did.

    Args:
        epochs: in order.
        parts: into how many parts a batch had to be cut to fit into memory: 1 or 2.
    """

    epochs: tuple[EpochStats, ...]
    parts: int

    @property
    def seconds(self) -> float:
        """Wall time of all steps, without what `on_epoch` took."""
        return sum(epoch.seconds for epoch in self.epochs)


def train(
    model: nn.Module,
    batches: Callable[[int], Batches],
    recipe: Recipe,
    *,
    device: torch.device,
    generator: torch.Generator,
    quiet: QuietDevice,
    on_epoch: Callable[[int, EpochStats], bool | None],
    amp: bool = False,
    channels_last: bool = False,
    on_start: Callable[[Trainer], int] = lambda trainer: 0,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
) -> TrainStats:
    """Train a detector; it stays on the device and in the memory format asked for.

    The same weights, batches, generator and global seed (the detectors of torchvision sample their
    proposals with it) give the same weights, bit by bit on a CPU.

    Args:
        model: in training mode, `model(images, targets)` gives its loss terms as scalars by name,
            each a mean over the pictures.
        batches: gives the batches of an epoch by its number; as many in every epoch. They are
            fetched inside the quiet window, so what the fetching computes in this process is quiet,
            too.
        device: where to train.
        generator: of the CPU; drives the augmentation.
        on_epoch: called after each epoch with its number and numbers, outside the quiet window;
            True ends the training.
        amp: mixed precision, on CUDA only.
        channels_last: keep convolutions in the memory format that tensor cores prefer.
        on_start: called once before the first step; may restore the model and the trainer, and
            returns the number of the epoch to begin with.
        on_step: called after each step with its number, counted over all epochs, and its loss terms
            with their sum as `total`, `gradient_norm` and `learning_rate`; inside the quiet window.

    Returns:
        Of the epochs that this call has trained.

    Raises:
        TrialFailure: `nan_loss` when a loss or a gradient is not finite; `out_of_memory` when half
            a batch does not fit either.
    """
    trainer = Trainer(model, recipe, device, amp, channels_last)
    epochs: list[EpochStats] = []
    for epoch in range(on_start(trainer), recipe.epochs):
        model.train()
        loader = batches(epoch)
        stream, steps = iter(loader), len(loader)
        started, history = time.perf_counter(), []
        for step in range(epoch * steps, (epoch + 1) * steps):
            with quiet.working():
                images, targets = augment(_moved(next(stream), device), recipe, generator)
                rate = recipe.learning_rate(step, recipe.epochs * steps)
                history.append(trainer.step(images, targets, rate, step))
                on_step(step, {**history[-1], "learning_rate": rate})
        epochs.append(_stats(history, rate, time.perf_counter() - started))
        if on_epoch(epoch, epochs[-1]):
            break
    return TrainStats(tuple(epochs), trainer.parts)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for a torch optimiser: decaying, and norms and biases.

    Norms and biases are the vectors (one dimension or none); convolutions and linear layers have
    more.
    """
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def epoch_order(length: int, generator: torch.Generator) -> Tensor:
    """Every index below `length` once, in random order (int64)."""
    return torch.randperm(length, generator=generator)


def epoch_batches(length: int, batch: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch for a `DataLoader`'s `batch_sampler`: every index once, the last may be small."""
    return [part.tolist() for part in epoch_order(length, generator).split(batch)]


def with_half_batch_on_oom(compute: Callable[[int], T], parts: int) -> tuple[T, int]:
    """Compute on a batch cut into parts; if the device runs out of memory, once more in two parts.

    Args:
        compute: takes the number of parts; must be repeatable.
        parts: 1, or 2 when an earlier batch had to be cut.

    Returns:
        The result, and the number of parts that it took, for the next batch.

    Raises:
        TrialFailure: `out_of_memory`, when two parts do not fit.
    """
    try:
        return compute(parts), parts
    except torch.OutOfMemoryError as error:
        if parts > 1:
            raise _out_of_memory(error) from error
    # Outside the except clause, where the error no longer holds the tensors of the failed attempt.
    torch.cuda.empty_cache()
    try:
        return compute(2), 2
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(error) from error


class Trainer:
    """The model with its optimiser: one `step` a batch.

    Args:
        model: moved to the device; torch's `DistributedDataParallel` of one, too.
        recipe: of the training.
        device: where to train.
        amp: mixed precision, on CUDA only.
        channels_last: of the convolutions' weights.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        amp: bool,
        channels_last: bool,
    ) -> None:
        self.model = model.to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.clip_norm = recipe.clip_norm
        self.context = autocast(device, amp)
        groups = parameter_groups(model, recipe.weight_decay)
        # One pass over the weights instead of three: half the time of an update on a CPU. On a GPU
        # torch chooses well by itself.
        self.optimizer = torch.optim.SGD(
            groups,
            lr=recipe.peak_lr,
            momentum=recipe.momentum,
            fused=True if device.type == "cpu" else None,
        )
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=amp and half_type() == torch.float16
        )
        self.parts = 1

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on besides the model's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another trainer of the same model stood."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.parts = state["parts"]

    def step(
        self, images: list[Tensor], targets: Targets, rate: float, number: int
    ) -> dict[str, float]:
        """Take one step; when it returns, the device is idle.

        Returns:
            Every loss term, their sum as `total`, and `gradient_norm`.
        """
        if isinstance(self.model, DistributedDataParallel):
            # a second part on one device would leave the others waiting for its gradients
            losses = self._gradients(images, targets, 1)
        else:
            losses, self.parts = with_half_batch_on_oom(
                lambda parts: self._gradients(images, targets, parts), self.parts
            )
        losses["gradient_norm"] = self._update(rate)
        # Reading the values waits for all that was sent to the device, as the quiet window
        # requires.
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        self._check(values, number)
        return values

    def _gradients(self, images: list[Tensor], targets: Targets, parts: int) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        size = math.ceil(len(images) / parts)
        sums: dict[str, Tensor] = {}
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            with self.context:
                losses = self.model(images[part], targets[part])
            # Losses are means over pictures: the mean of a whole batch weighs parts by their
            # length.
            share = len(images[part]) / len(images)
            losses = {name: loss.float() * share for name, loss in losses.items()}
            losses["total"] = torch.stack(list(losses.values())).sum()
            self.scaler.scale(losses["total"]).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach()
        return sums

    def _update(self, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _check(self, values: Mapping[str, float], number: int) -> None:
        # With loss scaling an infinite gradient is an everyday event: the scaler leaves that step
        # out.
        judged = {k: v for k, v in values.items() if k == "total" or not self.scaler.is_enabled()}
        if not all(map(math.isfinite, judged.values())):
            terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise TrialFailure("nan_loss", f"step {number}: {terms}")


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scales all gradients down to the norm `most`; returns their norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # torch multiplies by 1 where nothing is to be clipped: twice the time on a CPU. A GPU would
    # have to be waited for to find out.
    if norm.is_cuda or not most / (norm + 1e-6) >= 1:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def _out_of_memory(error: torch.OutOfMemoryError) -> TrialFailure:
    return TrialFailure("out_of_memory", f"also with half the batch at a time: {error}")


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, targets = batch
    return (
        [image.to(device) for image in images],
        [{name: value.to(device) for name, value in target.items()} for target in targets],
    )


def _stats(history: list[dict[str, float]], rate: float, seconds: float) -> EpochStats:
    means = {name: fmean(values[name] for values in history) for name in history[0]}
    loss, norm = means.pop("total"), means.pop("gradient_norm")
    return EpochStats(len(history), loss, means, norm, rate, seconds)

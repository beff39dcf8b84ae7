"""Latency that can be defended: the whole detector, in a quiet window, median and spread.

The trial measures it before training. Knows nothing of training but its numeric types.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import quantiles
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smnas import machine
from smnas.errors import ConfigError
from smnas.gpu import GpuState, read_gpu, worst
from smnas.quiet import QuietDevice
from smnas.training.precision import autocast

PRECISIONS = ("fp32", "amp", "fp16")

INCLUDES = "forward pass and post-processing"

FEWEST = 5
"""However slow a detector is, so many calls are timed: quartiles need them."""

ENOUGH = 10
"""After so many timed calls a measurement may end before its `max_seconds`."""


@dataclass(frozen=True)
class Latency:
    """How long a batch takes, from the image tensors on the device to the final detections: the
    latency card, with all that the number depends on.

    Args:
        median_ms: of `count` timed calls, each of one batch.
        iqr_ms: distance of their quartiles.
        count: timed calls.
        warmup: calls before them that were not timed.
        device: name of the processor or GPU.
        threads: CPU threads of one operator.
        precision: one of `PRECISIONS`.
        channels_last: whether convolutions were in that memory format.
        input_size: (width, height) of each picture.
        batch: pictures in a call; 1 in trials.
        compiled: whether `torch.compile` had compiled the detector.
        includes: what a call does.
        gpu: the worst of its states just before and just after the timed calls; None for a CPU.
        times_ms: the timed calls in order; not kept in the journal.
    """

    median_ms: float
    iqr_ms: float
    count: int
    warmup: int
    device: str
    threads: int
    precision: str
    channels_last: bool
    input_size: tuple[int, int]
    batch: int = 1
    compiled: bool = False
    includes: str = INCLUDES
    gpu: GpuState | None = None
    times_ms: tuple[float, ...] = field(default=(), repr=False)

    def to_metrics(self) -> dict[str, float]:
        """The numbers that a trial reports."""
        return {
            "latency_ms": self.median_ms,
            "latency_iqr_ms": self.iqr_ms,
            "latency_count": self.count,
        }

    def to_json(self) -> dict[str, Any]:
        """All but the single times, for the journal."""
        return {name: value for name, value in asdict(self).items() if name != "times_ms"}


class Clock(Protocol):
    """Times single calls on one device, and says how that is doing."""

    def wait(self) -> None:
        """Return when the device has nothing to do."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Time one call, from an idle device until its results are there."""
        ...

    def state(self) -> GpuState | None:
        """Clocks and throttling now; None for a device that is no GPU."""


class CpuClock:
    """Wall time of a call that is done when it returns."""

    def wait(self) -> None:
        """Nothing runs on after a call."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Time one call."""
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def state(self) -> GpuState | None:
        """Nothing to say."""
        return None


class CudaClock:
    """CUDA events around a call: the GPU's own clock, with the time the CPU needs to feed it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wait(self) -> None:
        """Wait for everything that this process has sent to the GPU."""
        torch.cuda.synchronize(self._device)

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Time one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self._device):
            self.wait()
            start.record()
            call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end)

    def state(self) -> GpuState | None:
        """The GPU's, from NVML."""
        return read_gpu(f"GPU-{torch.cuda.get_device_properties(self._device).uuid}")


def measure_latency(
    model: nn.Module,
    input_size: tuple[int, int],
    *,
    device: torch.device,
    quiet: QuietDevice,
    precision: str = "fp32",
    channels_last: bool = False,
    threads: int | None = None,
    batch: int = 1,
    compiled: bool = False,
    warmup: int = 10,
    iterations: int = 100,
    min_seconds: float = 1.0,
    max_seconds: float = 5.0,
    seed: int = 0,
    clock: Clock | None = None,
) -> Latency:
    """Time a detector on fixed random pictures, forward pass and post-processing.

    While it lasts, no other trial works on the device, so it is short: it ends after `iterations`
    calls, or when 10 calls have taken `min_seconds`, or when 5 have taken `max_seconds`. The
    warm-up ends early by the same rule, after 2 calls. Compiling is done before.

    Args:
        model: in evaluation mode, `model([image, …])` gives detections. It is moved to the device,
            and with `channels_last` to that memory format; its mode is restored.
        input_size: (width, height) of the pictures, in pixels.
        device: a CPU or a CUDA device.
        precision: `fp32`; on CUDA also `amp` for mixed precision, or `fp16` for weights and
            pictures in float16 throughout.
        threads: CPU threads of one operator, for the measurement only; None leaves them as they
            are.
        batch: pictures in a call, at least 1.
        compiled: time what `torch.compile` makes of the detector.
        warmup: calls that are not timed, at most; at least 1.
        iterations: timed calls, at most; at least 5.
        min_seconds: how long to time when calls are fast.
        max_seconds: when to stop timing calls that are slow.
        seed: of the pictures.
        clock: None for the one of the device.

    Raises:
        ConfigError: a device that cannot be timed, a number or precision out of range, or a
            detector that cannot be compiled or run under these conditions.
    """
    _check(device, precision, warmup, iterations, batch)
    clock = clock or (CudaClock(device) if device.type == "cuda" else CpuClock())
    # Around all calls: what it casts it keeps until it ends, as a deployed detector is cast once.
    context = autocast(device, precision == "amp")
    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    subject = copy.deepcopy(model).half() if precision == "fp16" else model
    pictures = _pictures(batch, input_size, seed, device, precision)

    warming = _Budget(min(2, warmup), 2, warmup, min_seconds * 1e3, max_seconds * 1e3)
    timing = _Budget(FEWEST, ENOUGH, iterations, min_seconds * 1e3, max_seconds * 1e3)
    with evaluating(subject), _threads(threads) as used_threads, torch.inference_mode(), context:
        detect = _compiled(subject) if compiled else subject
        if compiled or batch > 1 or precision == "fp16":
            with quiet.working():
                _try(lambda: detect(pictures), f"batch {batch}, {precision}", compiled)
        with quiet.measuring():
            clock.wait()
            warm = _timed(lambda: detect(pictures), clock, warming)
            before = clock.state()
            times = _timed(lambda: detect(pictures), clock, timing)
            state = worst([before, clock.state()])
    median, iqr = _median_and_iqr(times)
    return Latency(
        median_ms=median,
        iqr_ms=iqr,
        count=len(times),
        warmup=len(warm),
        device=device_name(device),
        threads=used_threads,
        precision=precision,
        channels_last=channels_last,
        input_size=input_size,
        batch=batch,
        compiled=compiled,
        gpu=state,
        times_ms=tuple(times),
    )


def _pictures(
    batch: int, size: tuple[int, int], seed: int, device: torch.device, precision: str
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(batch, 3, size[1], size[0], generator=generator).to(device)
    return list(pictures.half() if precision == "fp16" else pictures)


def _compiled(model: nn.Module) -> Callable[[list[Tensor]], object]:
    # Detectors share their code, and torch stops compiling code that it has compiled eight times:
    # the ninth detector would run uncompiled without a word.
    torch.compiler.reset()
    return torch.compile(model)


def _try(call: Callable[[], object], conditions: str, compiled: bool) -> None:
    """Calls once; what a detector cannot do under unusual conditions is no fault of ours."""
    words = f"latency: this detector cannot {'be compiled' if compiled else 'run'} ({conditions})"
    try:
        call()
    except Exception as error:  # whatever torch, its compiler or the system's compiler raises
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ConfigError(f"{words}: {type(error).__name__}: {reason}") from error


def pooled(turns: Sequence[Latency]) -> Latency:
    """One latency from several turns of one detector under the same conditions, at least one.

    Median and quartiles are those of all timed calls together, so drift of the device between turns
    shows in the spread; the GPU's state is the worst of all.
    """
    times = [time for turn in turns for time in turn.times_ms]
    median, iqr = _median_and_iqr(times)
    return replace(
        turns[0],
        median_ms=median,
        iqr_ms=iqr,
        count=len(times),
        warmup=sum(turn.warmup for turn in turns),
        gpu=worst(turn.gpu for turn in turns),
        times_ms=tuple(times),
    )


def _median_and_iqr(times: Sequence[float]) -> tuple[float, float]:
    lower, median, upper = quantiles(times, n=4, method="inclusive")
    return median, upper - lower


def device_name(device: torch.device) -> str:
    """What a person calls the device: the model of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return machine.cpu_name()


@dataclass(frozen=True)
class _Budget:
    """When to stop: at `most` calls, at `enough` after `min_ms`, or at `fewest` after `max_ms`."""

    fewest: int
    enough: int
    most: int
    min_ms: float
    max_ms: float

    def spent(self, times: list[float]) -> bool:
        count, total = len(times), sum(times)
        return (
            count >= self.most
            or (count >= self.enough and total >= self.min_ms)
            or (count >= self.fewest and total >= self.max_ms)
        )


def _timed(call: Callable[[], object], clock: Clock, budget: _Budget) -> list[float]:
    times: list[float] = []
    while not budget.spent(times):
        times.append(clock.milliseconds(call))
    return times


def _check(device: torch.device, precision: str, warmup: int, iterations: int, batch: int) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"latency: wanted a device cpu or cuda, got {device}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"latency: wanted a CUDA device, got {device}, which torch cannot find")
    if precision not in PRECISIONS:
        raise ConfigError(f"latency: wanted a precision of {PRECISIONS}, got {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"latency: fp16: wanted a CUDA device, got {device}")
    least_of = (("warmup", warmup, 1), ("iterations", iterations, FEWEST), ("batch", batch, 1))
    for name, value, least in least_of:
        if value < least:
            raise ConfigError(f"latency: {name}: wanted at least {least}, got {value}")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the block lasts."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)

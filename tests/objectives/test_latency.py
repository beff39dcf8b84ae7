"""Latency with a clock that tells what it is told to: exact medians, counts and surroundings."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from smnas.errors import ConfigError
from smnas.gpu import GpuState
from smnas.objectives.latency import (
    CpuClock,
    CudaClock,
    Latency,
    device_name,
    measure_latency,
    pooled,
)
from smnas.quiet import QuietDevice

CPU = torch.device("cpu")


class Log(list):
    """What happened, in order; stands for a `QuietDevice`, too."""

    @contextlib.contextmanager
    def measuring(self):
        self.append("quiet")
        yield
        self.append("over")

    @contextlib.contextmanager
    def working(self):
        self.append("work")
        yield
        self.append("done")


class Script:
    """A clock that runs each call and says it took the next of `times`; the last one for ever."""

    def __init__(self, log: Log, times: list[float], states=()) -> None:
        self.log, self.times, self.index = log, times, 0
        self.states = iter(states)

    def state(self):
        return next(self.states, None)

    def wait(self) -> None:
        self.log.append("wait")

    def milliseconds(self, call) -> float:
        call()
        self.index += 1
        return self.times[min(self.index, len(self.times)) - 1]


class Detector(nn.Module):
    """Notes how it is called."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log, self.pictures = log, []
        self.convolution = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        assert not self.training and torch.is_inference_mode_enabled()
        self.log.append("call")
        self.pictures += images
        return [{}]


def measure(times, log=None, model=None, size=(6, 4), **options) -> Latency:
    log = Log() if log is None else log
    model = model or Detector(log)
    return measure_latency(model, size, device=CPU, quiet=log, clock=Script(log, times), **options)


def test_median_and_quartile_distance():
    # Two calls of warm-up, a slow one among them, then 1 ... 9: quartiles 3, 5, 7.
    times = [900.0, 40.0, 9.0, 1.0, 5.0, 4.0, 6.0, 2.0, 8.0, 3.0, 7.0]
    latency = measure(times, warmup=2, iterations=9)
    assert (latency.median_ms, latency.iqr_ms, latency.count, latency.warmup) == (5.0, 4.0, 9, 2)
    expected = {"latency_ms": 5.0, "latency_iqr_ms": 4.0, "latency_count": 9}
    assert latency.to_metrics() == expected


def test_an_even_count_interpolates():
    # 1 ... 6: quartiles 2.25, 3.5, 4.75.
    latency = measure([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], warmup=1, iterations=6)
    assert (latency.median_ms, latency.iqr_ms) == (3.5, 2.5)


@pytest.mark.parametrize(
    ("milliseconds", "count", "warmup"),
    [
        (1.0, 100, 10),  # fast: all of them, long before the shortest time is over
        (9.9, 100, 10),  # 99 calls in 0.98 s, one more
        (20.0, 50, 10),  # a second full of them
        (100.0, 10, 10),  # ten last a second
        (400.0, 10, 3),  # ten last four; warm-up ends with the third, after a second
        (800.0, 7, 2),  # ten would last eight, so it ends with the seventh, after five
        (1000.0, 5, 2),  # five last five
        (30000.0, 5, 2),  # never fewer
    ],
)
def test_the_number_of_calls_adapts(milliseconds, count, warmup):
    latency = measure([milliseconds])
    assert (latency.count, latency.warmup) == (count, warmup)
    assert latency.median_ms == milliseconds and latency.iqr_ms == 0.0


def test_it_happens_inside_the_quiet_window_on_an_idle_device():
    log = Log()
    measure([1.0], log, warmup=2, iterations=5)
    assert log == ["quiet", "wait"] + ["call"] * 7 + ["over"]


@pytest.mark.parametrize("options", [{"batch": 3}, {"compiled": True}])
def test_unusual_conditions_are_tried_before_the_quiet_window(options, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    log = Log()
    measure([1.0], log, warmup=2, iterations=5, **options)
    assert log == ["work", "call", "done", "quiet", "wait"] + ["call"] * 7 + ["over"]


def test_a_batch_is_timed_as_one_call():
    model = Detector(Log())
    latency = measure([8.0], model=model, batch=4, iterations=5, warmup=1)
    assert (latency.batch, latency.median_ms, latency.count) == (4, 8.0, 5)
    assert len(model.pictures) == 4 * (1 + 1 + 5)
    assert all(map(torch.equal, model.pictures[:4], model.pictures[-4:]))
    assert not torch.equal(model.pictures[0], model.pictures[1])


def test_what_is_compiled_is_timed_and_the_detector_stays_as_it_was(monkeypatch):
    seen = []

    def compiler(model):
        seen.append(model.training)
        return lambda pictures: seen.append(len(pictures))

    monkeypatch.setattr(torch, "compile", compiler)
    model = Detector(Log())
    latency = measure([1.0], model=model, compiled=True, iterations=5, warmup=1)
    assert latency.compiled and seen == [False] + [1] * 7
    assert model.training and not model.log


@pytest.mark.slow
def test_a_real_compiler_compiles(tmp_path):
    class Plain(nn.Module):
        def forward(self, pictures):
            return [picture.mul(2).add(1).sum() for picture in pictures]

    latency = measure_latency(
        Plain(), (16, 12), device=CPU, quiet=QuietDevice("cpu", tmp_path), compiled=True
    )
    assert latency.compiled and latency.median_ms > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"compiled": True},
            r"cannot be compiled \(batch 1, fp32\): RuntimeError: no such operator",
        ),
        ({"batch": 2}, r"cannot run \(batch 2, fp32\): RuntimeError: no such operator"),
    ],
)
def test_what_a_detector_cannot_do_is_one_line(options, message, monkeypatch):
    class Broken(Detector):
        def forward(self, images):
            raise RuntimeError("no such operator\nand a long explanation")

    monkeypatch.setattr(torch, "compile", lambda model: model)
    log = Log()
    with pytest.raises(ConfigError, match=f"latency: this detector {message}$"):
        measure([1.0], log, Broken(log), **options)
    assert "quiet" not in log


def state(clock: int, *reasons: str) -> GpuState:
    return GpuState("580.1", clock, 1980, 2619, 50, reasons)


def test_the_card_has_the_worst_state_of_the_gpu_around_the_timed_calls():
    states = [state(1980), state(1500, "software power cap")]
    clock = Script(Log(), [1.0], states)
    latency = measure_latency(Detector(Log()), (6, 4), device=CPU, quiet=Log(), clock=clock)
    assert latency.gpu == state(1500, "software power cap")
    assert latency.to_json()["gpu"]["throttling"] == ("software power cap",)
    other = replace(latency, gpu=state(1200, "hardware slowdown"))
    expected = state(1200, "software power cap", "hardware slowdown")
    assert pooled([latency, other]).gpu == expected
    assert pooled([replace(latency, gpu=None)]).gpu is None


def test_the_picture_is_fixed_and_of_the_input_size():
    model = Detector(Log())
    before = torch.get_rng_state()
    measure([1.0], model=model, size=(60, 40), iterations=5, warmup=1)
    measure([1.0], model=model, size=(60, 40), iterations=5, warmup=1)
    assert {picture.shape for picture in model.pictures} == {(3, 40, 60)}
    assert all(torch.equal(picture, model.pictures[0]) for picture in model.pictures)
    assert 0 <= model.pictures[0].min() < model.pictures[0].max() < 1
    assert torch.equal(torch.get_rng_state(), before)
    measure([1.0], model=model, size=(60, 40), iterations=5, seed=1)
    assert not torch.equal(model.pictures[0], model.pictures[-1])


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_threads_come_back(training):
    model = Detector(Log()).train(training)
    before = torch.get_num_threads()
    latency = measure([1.0], model=model, threads=before + 1)
    assert latency.threads == before + 1
    assert torch.get_num_threads() == before and model.training is training
    assert measure([1.0], model=model).threads == before


def test_they_come_back_after_an_error_too():
    class Broken(Detector):
        def forward(self, images):
            raise RuntimeError("a bug")

    model = Broken(Log())
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="a bug"):
        measure([1.0], model=model, threads=before + 1)
    assert torch.get_num_threads() == before and model.training


def test_what_was_measured_is_written_down():
    latency = measure([2.0], channels_last=True, iterations=5)
    assert latency.to_json() == {
        "median_ms": 2.0,
        "iqr_ms": 0.0,
        "count": 5,
        "warmup": 10,
        "device": device_name(CPU),
        "threads": 1,
        "precision": "fp32",
        "channels_last": True,
        "input_size": (6, 4),
        "batch": 1,
        "compiled": False,
        "includes": "forward pass and post-processing",
        "gpu": None,
    }
    assert latency.device


def test_channels_last_converts_the_model():
    model = Detector(Log())
    measure([1.0], model=model, channels_last=True)
    weight = model.convolution.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": torch.device("mps")}, "wanted a device cpu or cuda, got mps"),
        ({"device": torch.device("meta")}, "wanted a device cpu or cuda, got meta"),
        ({"precision": "int8"}, r"wanted a precision of \('fp32', 'amp', 'fp16'\), got 'int8'"),
        ({"precision": "fp16"}, "fp16: wanted a CUDA device, got cpu"),
        ({"precision": "amp"}, "mixed precision: wanted a CUDA device, got cpu"),
        ({"iterations": 4}, "iterations: wanted at least 5, got 4"),
        ({"warmup": 0}, "warmup: wanted at least 1, got 0"),
        ({"batch": 0}, "batch: wanted at least 1, got 0"),
    ],
)
def test_wrong_requests_are_the_users_errors(options, message):
    arguments = {"device": CPU, "quiet": Log(), **options}
    with pytest.raises(ConfigError, match=message):
        measure_latency(Detector(Log()), (6, 4), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_the_users_error():
    with pytest.raises(ConfigError, match="wanted a CUDA device, got cuda:0"):
        measure_latency(Detector(Log()), (6, 4), device=torch.device("cuda:0"), quiet=Log())


def test_the_cpu_clock_times_the_call_and_nothing_else(monkeypatch):
    now = iter([10.0, 10.25])
    monkeypatch.setattr("smnas.objectives.latency.time.perf_counter", lambda: next(now))
    called = []
    assert CpuClock().milliseconds(lambda: called.append(1)) == 250.0
    assert called == [1]


def test_a_real_measurement_with_a_real_lock(tmp_path):
    class Squares(Detector):
        def forward(self, images):
            return self.convolution(torch.stack(images))

    latency = measure_latency(
        Squares(Log()),
        (32, 24),
        device=CPU,
        quiet=QuietDevice("cpu", tmp_path),
        iterations=20,
    )
    assert latency.median_ms > 0 and latency.count == 20 and latency.input_size == (32, 24)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@CUDA
@pytest.mark.gpu
def test_cuda_events_time_the_work_and_not_its_launch():
    clock = CudaClock(torch.device("cuda"))
    matrix = torch.rand(8192, 8192, device="cuda")
    clock.milliseconds(lambda: matrix @ matrix)
    one = min(clock.milliseconds(lambda: matrix @ matrix) for _ in range(5))
    five = min(clock.milliseconds(lambda: [matrix @ matrix for _ in range(5)]) for _ in range(5))
    # 1.1 TFLOP a product: the queue takes microseconds, the work milliseconds.
    assert 4 < five / one < 6


@CUDA
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "amp", "fp16"])
def test_latency_on_the_gpu(tmp_path, precision):
    class Plain(nn.Sequential):
        def forward(self, images):
            return super().forward(torch.stack(images))

    model = Plain(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    latency = measure_latency(
        model,
        (320, 256),
        device=torch.device("cuda"),
        quiet=QuietDevice("cuda", tmp_path),
        precision=precision,
        channels_last=True,
    )
    assert latency.median_ms > 0 and latency.count == 100 and latency.precision == precision
    assert latency.gpu is not None and latency.gpu.driver and latency.gpu.sm_clock_mhz > 0
    assert model[0].weight.dtype == torch.float32
    assert latency.device == torch.cuda.get_device_name()

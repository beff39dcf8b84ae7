"""What NVML says, with a module in its place that says what it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from smnas.gpu import GpuState, read_gpu, worst

UUID = "GPU-1234"


class FakeError(Exception):
    """Stands for `NVMLError`."""


class FakeNvml(SimpleNamespace):
    """Answers as `pynvml` does, with its numbers for sensors, clocks and reasons.

    Args:
        bits: of the reasons for lower clocks.
        broken: names of functions that raise.
    """

    NVMLError = FakeError

    def __init__(self, bits: int = 0, broken: tuple[str, ...] = ()) -> None:
        super().__init__(open=0, opened=0, broken=broken)
        self.answers = {
            "nvmlInit": lambda: self.count(1),
            "nvmlShutdown": lambda: self.count(-1),
            "nvmlDeviceGetHandleByUUID": lambda uuid: self.handle(uuid),
            "nvmlSystemGetDriverVersion": lambda: "580.65",
            "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1410, 2: 2619}[kind],
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetTemperature": lambda handle, sensor: {0: 61}[sensor],
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: bits,
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlClocksEvent") or name.startswith("NVML_"):
            return getattr(pynvml, name)
        if name in self.broken:
            return self.fail
        return self.answers[name]

    def fail(self, *arguments: Any) -> None:
        raise FakeError("not supported")

    def count(self, by: int) -> None:
        self.open += by
        self.opened += by > 0

    def handle(self, uuid: str) -> str:
        if uuid != UUID:
            self.fail()
        return "handle"


def test_the_state_is_what_nvml_says() -> None:
    nvml = FakeNvml()
    assert read_gpu(UUID, nvml) == GpuState("580.65", 1410, 1980, 2619, 61, ())
    assert (nvml.opened, nvml.open) == (1, 0)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x1, ()),  # idle: between two calls it is
        (0x4, ("software power cap",)),
        (0x2 | 0x20, ("clocks set by the user", "software thermal slowdown")),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x80 | 0x100, ("hardware power brake", "display clocks")),
    ],
)
def test_reasons_in_words(bits: int, expected: tuple[str, ...]) -> None:
    found = read_gpu(UUID, FakeNvml(bits))
    assert found is not None and found.throttling == expected


def test_without_a_driver_or_its_gpu_there_is_nothing_to_say() -> None:
    assert read_gpu(UUID, FakeNvml(broken=("nvmlInit",))) is None
    nvml = FakeNvml()
    assert read_gpu("GPU-another", nvml) is None
    assert (nvml.opened, nvml.open) == (1, 0)


def test_what_the_gpu_does_not_say_is_none() -> None:
    silent = ("nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons")
    found = read_gpu(UUID, FakeNvml(broken=silent))
    assert found == GpuState("580.65", None, 1980, None, 61, None)


def test_the_worst_of_several() -> None:
    cool = GpuState("580.65", 1980, 1980, None, 40, ())
    hot = GpuState("580.65", 1200, 1980, 2619, 88, ("hardware thermal slowdown",))
    capped = GpuState("580.65", None, 1980, 1300, 70, ("software power cap",))
    reasons = ("software power cap", "hardware thermal slowdown")
    assert worst([cool, None, hot, capped]) == GpuState("580.65", 1200, 1980, 1300, 88, reasons)
    assert worst([cool]) == cool
    assert worst([]) is worst([None]) is None
    unsaid = GpuState(None, None, None, None, None, None)
    assert worst([unsaid, unsaid]) == unsaid

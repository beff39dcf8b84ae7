"""What a GPU did while it was timed: driver, clocks, reasons for lower clocks, from NVML.

Latencies of a throttled GPU do not compare with others; without this nobody would see it. Where
there is no NVIDIA driver there is nothing to say. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pynvml

LOCKED = "clocks set by the user"
"""Listed among the reasons, but no throttling: locked clocks make latencies repeat."""

_REASONS = {
    "nvmlClocksEventReasonApplicationsClocksSetting": LOCKED,
    "nvmlClocksEventReasonSwPowerCap": "software power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSyncBoost": "sync boost",
    "nvmlClocksEventReasonSwThermalSlowdown": "software thermal slowdown",
    "nvmlClocksEventReasonHwThermalSlowdown": "hardware thermal slowdown",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "hardware power brake",
    "nvmlClocksEventReasonDisplayClockSetting": "display clocks",
}
"""NVML's bits in words. An idle GPU is not among them: it is read between two calls."""


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment, or the worst of several; None where it does not say.

    Args:
        driver: version.
        sm_clock_mhz: of the multiprocessors.
        max_sm_clock_mhz: the highest that the GPU has.
        memory_clock_mhz: of the memory.
        temperature_c: of the chip.
        throttling: reasons for which the clocks were held down, in NVML's order; empty for none.
    """

    driver: str | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    throttling: tuple[str, ...] | None


def read_gpu(uuid: str, nvml: Any = pynvml) -> GpuState | None:
    """The state of a GPU now; None without NVIDIA's driver, or where it does not know the GPU.

    Args:
        uuid: the GPU's own name, `GPU-…`, which is the same for every process.
        nvml: the module `pynvml`, or what stands for it.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return _read(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def worst(states: Iterable[GpuState | None]) -> GpuState | None:
    """Lowest clocks, highest temperature and all reasons of several states of one GPU."""
    known = [state for state in states if state is not None]
    if not known:
        return None
    reasons = {reason for state in known for reason in state.throttling or ()}
    said = any(state.throttling is not None for state in known)
    return GpuState(
        driver=known[0].driver,
        sm_clock_mhz=_extreme(min, (state.sm_clock_mhz for state in known)),
        max_sm_clock_mhz=known[0].max_sm_clock_mhz,
        memory_clock_mhz=_extreme(min, (state.memory_clock_mhz for state in known)),
        temperature_c=_extreme(max, (state.temperature_c for state in known)),
        throttling=tuple(r for r in _REASONS.values() if r in reasons) if said else None,
    )


def _read(nvml: Any, handle: Any) -> GpuState:
    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except nvml.NVMLError:
            # each GPU answers some of the questions: a laptop's has no memory clock to tell
            return None

    bits = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    return GpuState(
        driver=ask(nvml.nvmlSystemGetDriverVersion),
        sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        max_sm_clock_mhz=ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        throttling=(
            None
            if bits is None
            else tuple(words for name, words in _REASONS.items() if bits & getattr(nvml, name))
        ),
    )


def _extreme(choose: Callable[..., int], values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None

"""The quiet window: while one trial measures latency, no other trial of ours works on that device.

Every trial takes it around each training or evaluation step (`working`, shared) and around a
latency measurement (`measuring`, exclusive). Light: imports no torch, so that the lock can be
tested alone.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from fasteners import InterProcessReaderWriterLock

from smnas.errors import RunError

POLL_SECONDS = 0.001
"""First pause between two tries at a lock that is taken; grows to `MAX_POLL_SECONDS`."""

MAX_POLL_SECONDS = 0.01


class QuietDevice:
    """An inter-process reader-writer lock that belongs to one device of this machine.

    There are two lock files. The room is held shared by those who work and exclusively by the one
    who measures. The gate stands before it: everybody takes it before trying the room, workers let
    go of it as soon as they are in, the measuring process keeps it to the end. So a waiting
    measurement lets nobody new in and starts when the steps under way have ended; without the gate,
    workers that take the room again at once would keep it occupied for ever.

    The operating system frees the locks of a process that dies, however it dies. They belong to a
    process: use one `QuietDevice` a device and process, from one thread.

    Args:
        device: torch's name of the device, as `cpu`, `cuda` or `cuda:1`. CUDA numbers are
            translated through `CUDA_VISIBLE_DEVICES`, so that processes which see the same GPU
            under different numbers share its lock.
        directory: where the lock files are; the system's temporary directory by default.

    Raises:
        RunError: the lock files cannot be written there.
    """

    def __init__(self, device: str, directory: Path | None = None) -> None:
        self.directory = Path(tempfile.gettempdir()) if directory is None else directory
        name = re.sub(r"[^\w-]", "-", physical_device(device, os.environ))
        self._gate = self._lock(f"smnas-{os.getuid()}-{name}.gate")
        self._room = self._lock(f"smnas-{os.getuid()}-{name}.room")
        self._inside = False

    def _lock(self, filename: str) -> InterProcessReaderWriterLock:
        path = self.directory / filename
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise RunError(
                f"quiet window: wanted to write the lock file {path}, got {error.strerror}"
            ) from error
        return InterProcessReaderWriterLock(path)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the device shared: others may work on it meanwhile, nobody measures.

        Everything that was sent to the device must have finished when the block ends.
        """
        with self._entered(), ExitStack() as stay:
            with _held(self._gate, exclusive=False):
                stay.enter_context(_held(self._room, exclusive=False))
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the device alone, as soon as the steps that others have under way are over."""
        with (
            self._entered(),
            _held(self._gate, exclusive=True),
            _held(self._room, exclusive=True),
        ):
            yield

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if self._inside:
            # The system's locks belong to the process: an inner block would free the outer one's.
            raise RuntimeError("a quiet window was opened inside another one of the same process")
        self._inside = True
        try:
            yield
        finally:
            self._inside = False


def physical_device(device: str, environment: Mapping[str, str]) -> str:
    """The same name for the same device, whichever of its names a process uses.

    Args:
        device: as `cpu`, `cuda` or `cuda:1`.
        environment: where `CUDA_VISIBLE_DEVICES` may be set, to numbers or to the identifiers of
            GPUs.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return device
    index = int(number or 0)
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return f"cuda:{visible[index] if index < len(visible) and visible[index] else index}"


def _held(lock: InterProcessReaderWriterLock, *, exclusive: bool) -> AbstractContextManager[None]:
    take = lock.write_lock if exclusive else lock.read_lock
    return take(delay=POLL_SECONDS, max_delay=MAX_POLL_SECONDS)

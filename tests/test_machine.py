from __future__ import annotations

from pathlib import Path

import pytest

from smnas.machine import cpu_name

EPYC = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {}\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (EPYC.format(17), "AMD EPYC (family 25 model 17 stepping 1)"),
        (EPYC.format(1) + "\n" + EPYC.format(17), "AMD EPYC (family 25 model 1 stepping 1)"),
    ],
)
def test_processors_with_one_name_are_told_apart(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_processors_without_a_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(ARM.format("0xd0c"))
    assert cpu_name(tmp_path / "cpuinfo").endswith("(implementer 0x41 part 0xd0c)")


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "nowhere")

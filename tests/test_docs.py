"""What the documentation shows has to run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import typer

from smnas import cli
from smnas.encoding import Encoding
from smnas.spaces import open_space

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_example_space_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("docs/search-spaces.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
    (tmp_path / "my_space.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    space = open_space("my_space:MySpace", num_classes=3)
    encoding = Encoding.of(space)
    assert encoding.size == 16 and len(encoding.legal()) == 12
    sample = {"backbone": "resnet34", "width": 128, "head": "cascade2", "input_size": "160x160"}
    encoding.check(sample)
    detector = space.freeze(sample).eval()
    with torch.inference_mode():
        (found,) = detector([torch.zeros(3, 160, 160)])
    assert set(found) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def commands() -> list[list[str]]:
    """Every `smnas …` line of the pages, without comments."""
    found = set()
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if match := re.match(r"(?:\S+/)?smnas (.*?)\s*(?:#.*)?$", line.split("; ")[0]):
                    found.add(match[1])
    return [command.split() for command in sorted(found)]


def test_the_commands_shown_exist() -> None:
    """Their words and options are ones that the command line knows."""
    assert len(commands()) > 5
    for words in commands():
        names = words[:2] if words[0] == "data" else words[:1]
        command = typer.main.get_command(cli.app)
        for name in names:
            command = command.commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words

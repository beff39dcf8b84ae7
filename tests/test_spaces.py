"""What a reference on the command line opens: a space and a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smnas.detectors import components
from smnas.errors import ConfigError, MissingLibraryError
from smnas.experiment import SearchSettings
from smnas.spaces import make_importable, open_recipe, recorded_space, with_library
from smnas.training.recipe import Recipe

YAML = """
tuner:
  classArgs:
    space: search_spaces.structural:StructuralSpace
    reference_point: {latency_ms: 100}
    recipe: {epochs: 3, lr: 0.04, scale_jitter: [0.8, 1.25]}
"""


def test_the_recipe_of_an_experiment_and_what_goes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text(YAML)
    assert open_recipe(str(path), {}) == Recipe(epochs=3, lr=0.04, scale_jitter=(0.8, 1.25))
    changed = open_recipe(str(path), {"epochs": 12, "scale_jitter": (1.0, 1.0)})
    assert changed == Recipe(epochs=12, lr=0.04)
    with pytest.raises(ConfigError, match="recipe.flip: wanted a number in .*, got 2"):
        open_recipe(str(path), {"flip": 2})


def test_a_space_without_an_experiment_has_the_default_recipe() -> None:
    assert open_recipe("package.module:Class", {}) == Recipe()
    assert open_recipe("package.module:Class", {"batch": 2}) == Recipe(batch=2)


def test_a_wrong_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text(YAML.replace("epochs", "epochen"))
    with pytest.raises(ConfigError, match=r"x\.yml: .*recipe: .*; did you mean 'epochs'?"):
        open_recipe(str(path), {})


DETECTORS = SearchSettings(space="search_spaces.structural:StructuralSpace")


@pytest.mark.parametrize(("installed", "name"), [(True, "detectron2"), (False, "torchvision")])
def test_auto_is_resolved_once_and_named(
    monkeypatch: pytest.MonkeyPatch, installed: bool, name: str
) -> None:
    monkeypatch.setattr(components, "_has_detectron2", lambda: installed)
    for settings in (DETECTORS, replace(DETECTORS, library="auto")):
        assert with_library(settings, "here").library == name
        assert with_library(settings, "here").space_arguments == {"library": name}
        assert with_library(settings, "here", "torchvision").library == "torchvision"
    own = replace(DETECTORS, space_args={"library": "torchvision", "head_width": 64})
    named = with_library(own, "here")
    assert named.library == "torchvision" and named.space_args == {"head_width": 64}


def test_spaces_that_know_no_library_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "no_library_space.py").write_text(
        "from smnas.detectors.space import DetectorSpace\n"
        "class Mine(DetectorSpace):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
    )
    make_importable(tmp_path)
    settings = SearchSettings(space="no_library_space:Mine")
    assert with_library(settings, "here") is settings
    with pytest.raises(ConfigError, match="here: library: wanted none, for no_library_space:Mine"):
        with_library(settings, "here", "torchvision")


def test_a_run_s_space_is_built_with_the_run_s_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs from before there was a choice are torchvision's."""
    monkeypatch.setattr(components, "_has_detectron2", lambda: False)
    experiment = {"space": DETECTORS.space, "space_args": {"input_sizes": ["96x96"]}}
    with torch.device("meta"):
        space = recorded_space(experiment, num_classes=3)
        assert type(space.detector).__module__ == "smnas.detectors.torchvision"
        with pytest.raises(MissingLibraryError, match="wanted detectron2, which is not installed"):
            recorded_space({**experiment, "library": "detectron2"})

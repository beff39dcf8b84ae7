"""What a reference on the command line opens: a space and a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from smnas.errors import ConfigError
from smnas.spaces import open_recipe
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

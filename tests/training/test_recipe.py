"""The recipe: the corners of its schedule, its checks, what an experiment sets."""

import dataclasses
import math
import re

import pytest

from smnas.errors import ConfigError
from smnas.training.recipe import Recipe

RECIPE = Recipe(lr=0.02, batch=4, base_batch=4, warmup_iterations=100, warmup_factor=0.1)


@pytest.mark.parametrize(
    ("step", "total", "expected"),
    [
        (0, 1100, 0.002),  # a tenth of the peak
        (50, 1100, 0.011),  # half-way up: (0.002 + 0.02) / 2
        (100, 1100, 0.02),  # the peak, where the cosine starts
        (600, 1100, 0.01),  # half-way down
        (850, 1100, 0.02 * (1 + math.cos(0.75 * math.pi)) / 2),
        (1100, 1100, 0.0),  # after the last step
        (10, 40, 0.02),  # short: 10 steps of warm-up, a quarter of 40
        (5, 40, 0.011),
        (25, 40, 0.01),
        (0, 3, 0.02),  # too short for any warm-up
        (0, 1, 0.02),
    ],
)
def test_learning_rate_at_the_corners(step, total, expected):
    assert RECIPE.learning_rate(step, total) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_rises_then_falls_and_never_jumps():
    rates = [RECIPE.learning_rate(step, 400) for step in range(401)]
    peak = rates.index(max(rates))
    assert peak == 100 and rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(abs(b - a) for a, b in zip(rates, rates[1:])) < 0.02 / 50


def test_without_warm_up_the_first_step_has_the_peak():
    recipe = Recipe(warmup_iterations=0)
    assert recipe.learning_rate(0, 100) == recipe.lr


@pytest.mark.parametrize(("batch", "peak"), [(1, 0.005), (4, 0.02), (16, 0.08)])
def test_the_rate_grows_with_the_batch(batch, peak):
    assert Recipe(lr=0.02, batch=batch, base_batch=4).peak_lr == pytest.approx(peak)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("epochs", 0, "whole number of at least 1"),
        ("epochs", 2.5, "whole number of at least 1"),
        ("batch", -1, "whole number of at least 1"),
        ("batch", True, "whole number of at least 1"),
        ("lr", 0.0, "number above 0"),
        ("lr", "2e-2", "number above 0"),  # YAML reads 2e-2 as a string
        ("lr", math.nan, "number above 0"),
        ("clip_norm", math.inf, "number above 0"),
        ("momentum", 1.0, r"number in \[0, 1\)"),
        ("weight_decay", -1e-4, "number of at least 0"),
        ("warmup_iterations", -1, "whole number of at least 0"),
        ("warmup_factor", 0.0, r"number in \(0, 1\]"),
        ("flip", 1.1, r"number in \[0, 1\]"),
        ("scale_jitter", (1.2, 0.8), "0 < smallest <= largest"),
        ("scale_jitter", (0.0, 1.0), "0 < smallest <= largest"),
        ("scale_jitter", (0.8, 1.0, 1.2), "two numbers, 0 < smallest <= largest"),
        ("scale_jitter", 1.2, "two numbers, 0 < smallest <= largest"),
    ],
)
def test_a_wrong_value_is_named(field, value, wanted):
    with pytest.raises(ConfigError, match=rf"recipe\.{field}: wanted .*{wanted}, got"):
        dataclasses.replace(RECIPE, **{field: value})


def test_the_edges_of_the_ranges_are_allowed():
    Recipe(epochs=1, batch=1, momentum=0, weight_decay=0, flip=1, warmup_factor=1)
    Recipe(scale_jitter=(1.0, 1.0), flip=0, warmup_iterations=0)
    assert Recipe(scale_jitter=[0.5, 2]).scale_jitter == (0.5, 2)  # a list, as YAML has it
    assert Recipe(scale_jitter=[1, 1]) == Recipe()


def test_an_experiment_sets_what_it_names():
    values = {"epochs": 2, "weight_decay": 0.001, "scale_jitter": [0.8, 1.25]}
    recipe = Recipe.from_mapping(values, "x.yml")
    assert recipe == Recipe(epochs=2, weight_decay=0.001, scale_jitter=(0.8, 1.25))
    assert Recipe.from_mapping({}, "x.yml") == Recipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 2}, "x.yml: recipe: no setting named 'epoch'; did you mean 'epochs'?"),
        ({"lr": 0}, "x.yml: recipe.lr: wanted a number above 0, got 0"),
        ({"momentum": "1e-1"}, "x.yml: recipe.momentum: wanted a number in [0, 1), got '1e-1'"),
    ],
)
def test_what_is_wrong_in_an_experiment_is_named_with_its_place(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.from_mapping(values, "x.yml")


def test_describe_says_every_number_that_matters():
    text = Recipe(epochs=3, batch=8, scale_jitter=(0.8, 1.25)).describe()
    for part in ("3 epochs", "batch 8", "lr 0.08", "0.0001", "100 steps", "0.8 to 1.25", "at 10"):
        assert part in text
    assert "scale jitter none" in Recipe().describe()

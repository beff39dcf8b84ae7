from __future__ import annotations

import pytest

from smnas.errors import ConfigError, check_names, nearest


def test_nearest_names_what_was_probably_meant() -> None:
    assert nearest("populaton", ["population", "seed"]) == "; did you mean 'population'?"


def test_nearest_lists_what_is_known_when_nothing_is_close() -> None:
    assert nearest("xyz", ["seed", "population"]) == "; known: population, seed"


def test_check_names_says_where() -> None:
    check_names(["seed"], ["seed", "population"], "classArgs")
    with pytest.raises(
        ConfigError, match="^classArgs: no setting named 'sed'; did you mean 'seed'"
    ):
        check_names({"seed": 1, "sed": 2}, ["seed", "population"], "classArgs")

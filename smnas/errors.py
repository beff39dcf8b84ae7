"""What can go wrong, by name. Every leaf says when it is raised; the command line turns a
`UserError` into one line on stderr and exit status 2, and never shows its traceback. Imports
nothing of smnas.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SmnasError(Exception):
    """Base of every error that smnas raises on purpose."""


class UserError(SmnasError):
    """Something the user gave is wrong. The message says what was wanted, what was got and
    where.
    """


class ConfigError(UserError):
    """An experiment file, a `classArgs` entry or a command-line value is unknown, misspelt or out
    of range.
    """


class SpaceError(UserError):
    """A search space cannot be found or built, or a sample does not belong to it."""


class DataError(UserError):
    """A data set is missing, unreadable, or not what its format says."""


class JournalError(UserError):
    """A journal line is corrupt, or the journal belongs to another experiment."""


class RunError(UserError):
    """A run folder cannot be written, does not exist, or is in use by another search."""


class MixedDevicesError(UserError):
    """A report would compare latencies that were measured on different devices."""


class MissingLibraryError(UserError):
    """An optional library is needed and not installed; the message names the extra that brings
    it.
    """


class DeployError(UserError):
    """A found detector cannot be trained, evaluated or exported as wanted."""


class SpaceExhausted(SmnasError):
    """Every legal sample of the search space has been proposed; a search ends well with it."""


class TrialFailure(SmnasError):
    """A trial ended without its objectives; carries the `Failed` reason and detail that the journal
    keeps.

    Args:
        reason: one of `records.FAILURE_REASONS`.
        detail: one sentence on what happened.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word nearest to a misspelt one, else the known
    words.
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses names that are not known.

    Raises:
        ConfigError: names the place, the unknown name and the nearest known one.
    """
    for name in given:
        if name not in known:
            raise ConfigError(f"{where}: no setting named {name!r}{nearest(str(name), known)}")

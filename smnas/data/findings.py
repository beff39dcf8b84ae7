"""What a check or an import has to say about data: kinds of trouble, counted, with examples.

Light: must not import torch, NNI or pymoo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

SHOWN = 5
"""Examples of a finding that the text shows; JSON holds all."""

Note = Callable[[str, str], None]
"""Takes the kind of a case and where it is."""


class Kind(NamedTuple):
    """What is done about one kind of finding.

    Args:
        treatment: `repaired` (nothing lost), `dropped` (named and left out), `fatal` (only the user
            can put it right) or `harmless`.
        meaning: what it does to a training, or what the treatment is.
        blocking: whether smnas fails on the data, or reads them wrongly, until it is treated.
    """

    treatment: str
    meaning: str
    blocking: bool = False


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one part.

    Args:
        part: `train`, `val`, or the importer's word for a part.
        kind: what it is, in words.
        treatment: `repaired`, `dropped`, `fatal` or `harmless`.
        meaning: one clause on what that comes to.
        examples: every case, by file or id.
        blocking: see `Kind`.
    """

    part: str
    kind: str
    treatment: str
    meaning: str
    examples: tuple[str, ...]
    blocking: bool = False

    @property
    def count(self) -> int:
        """How many cases there are."""
        return len(self.examples)

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "kind": self.kind,
            "count": self.count,
            "treatment": self.treatment,
            "meaning": self.meaning,
            "examples": list(self.examples),
        }

    def __str__(self) -> str:
        shown = ", ".join(self.examples[:SHOWN])
        more = f" and {self.count - SHOWN} more" if self.count > SHOWN else ""
        line = f"{self.part:<6}{self.kind:<31}{self.count:>7}  {self.treatment:<9} {self.meaning}"
        return f"{line}\n{'':6}{shown}{more}"


class Tally:
    """Collects cases into findings, in the order in which kinds first appear."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._cases: dict[tuple[str, str], list[str]] = {}

    def add(self, part: str, kind: str, example: str) -> None:
        """Note one case.

        Raises:
            KeyError: the kind is not one of this tally's.
        """
        self._kinds[kind]
        self._cases.setdefault((part, kind), []).append(example)

    def noting(self, part: str) -> Note:
        """`add` for one part."""
        return lambda kind, example: self.add(part, kind, example)

    def findings(self) -> tuple[Finding, ...]:
        """What has been noted, one finding for each part and kind."""
        return tuple(self._finding(*key, tuple(cases)) for key, cases in self._cases.items())

    def _finding(self, part: str, kind: str, examples: tuple[str, ...]) -> Finding:
        treatment, meaning, blocking = self._kinds[kind]
        return Finding(part, kind, treatment, meaning, examples, blocking)

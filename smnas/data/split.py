"""Cuts the search split out of the training pictures, so that a search never sees `val`.

A picture's side depends on its own id alone. Light: must not import torch, NNI or pymoo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from smnas.errors import ConfigError

Key = TypeVar("Key", int, str)


def position(key: int | str) -> float:
    """Where a key falls in [0, 1): uniform over keys, and the same on every machine."""
    digest = hashlib.sha256(str(key).encode()).digest()
    # 53 bits, so that the quotient is exact and can never round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_ids(image_ids: Iterable[Key], fraction: float = 0.25) -> tuple[list[Key], list[Key]]:
    """Cut ids into those to train on and those to search on.

    An id falls on the search side when its hash does, so adding or removing pictures moves no
    other picture. The one exception: with at least two ids neither side is left empty; the id
    nearest to the border changes sides.

    Args:
        image_ids: ids in any order; duplicates count once.
        fraction: expected share of the search side, in (0, 1).

    Returns:
        `(train_ids, search_ids)`, each sorted; disjoint, together all ids.

    Raises:
        ConfigError: `fraction` is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ConfigError(
            f"search split: wanted a fraction between 0 and 1, both excluded, got {fraction}"
        )
    ids = sorted(set(image_ids), key=position)
    border = sum(position(key) < fraction for key in ids)
    if len(ids) >= 2:
        border = min(max(border, 1), len(ids) - 1)
    return sorted(ids[border:]), sorted(ids[:border])

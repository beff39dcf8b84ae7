"""Example detections that trials left, and the pictures that they are of, small enough to embed.

Reads `examples.json` in the folders of trials, and the pictures if they are still where they were.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from smnas.data.files import PICTURE_ERRORS
from smnas.errors import RunError
from smnas.journal import Trial
from smnas.nni_runs import trial_file
from smnas.runner import EXAMPLES_FILE

_SIDE = 320
_QUALITY = 70


def read_examples(run: Path, trial: Trial) -> dict[str, Any] | None:
    """What a trial found in a few pictures, see `smnas.training.examples`, and where the `data`
    were; None if it left nothing.

    Args:
        run: its folder; a later stage's trials are in a folder of that stage, NNI's beside it.
        trial: of the run.

    Raises:
        RunError: the record is corrupt.
    """
    path = trial_file(run, trial, EXAMPLES_FILE)
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"{path}: wanted example detections: {error}") from error


class Album:
    """The pictures of a page, each once, whichever detectors and runs show it.

    Attributes:
        pictures: `source` (a data URI, None if the file is gone), `width`, `height`, `truth` and
            `categories`; boxes are whole pixels of a picture whose longer side is 320.
    """

    def __init__(self) -> None:
        self.pictures: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def add(self, examples: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Takes the pictures in; returns what was found: `picture`, its number in the album, and
        `boxes`: `[x0, y0, x1, y1, label, score in percent]`.
        """
        found = []
        for picture in examples["pictures"]:
            scale = _SIDE / max(picture["width"], picture["height"])
            number = self._number(picture, examples["categories"], scale)
            boxes = [[*_scaled([box], scale)[0], round(100 * box[5])] for box in picture["found"]]
            found.append({"picture": number, "boxes": boxes})
        return found

    def _number(self, picture: Mapping[str, Any], categories: list[str], scale: float) -> int:
        key = picture["file"]
        if key not in self._numbers:
            self._numbers[key] = len(self.pictures)
            self.pictures.append(
                {
                    "source": _thumbnail(Path(key)),
                    "width": round(picture["width"] * scale),
                    "height": round(picture["height"] * scale),
                    "truth": _scaled(picture["truth"], scale),
                    "categories": categories,
                }
            )
        return self._numbers[key]


def _scaled(boxes: Iterable[list[float]], scale: float) -> list[list[int]]:
    return [[*(round(side * scale) for side in box[:4]), int(box[4])] for box in boxes]


def _thumbnail(file: Path) -> str | None:
    """The picture as a small JPEG in a data URI; None where it is gone or no picture any more."""
    try:
        with Image.open(file) as picture:
            picture.draft("RGB", (_SIDE, _SIDE))
            small = picture.convert("RGB")
    except PICTURE_ERRORS:
        return None  # the page says so, and draws the boxes on an empty frame
    small.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()

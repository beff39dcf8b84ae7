"""Where the files of a COCO-format data set lie, and how they are read and written whole.

Every annotation file is read by `load_annotations` and written by `write_annotations`. Light: must
not import torch, NNI or pymoo, so that data are found and checked without waiting for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from smnas.errors import DataError

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on a file that is no picture or is cut short."""

_SKELETON: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Args:
        annotations: a COCO `instances_*.json`.
        images: the folder that its `file_name`s are relative to.
    """

    annotations: Path
    images: Path


@dataclass(frozen=True)
class DataFolder:
    """The parts of a data set. Give them explicitly, or let `open` find them.

    Args:
        train: what is trained on, and what the search split is cut from.
        val: what final numbers are reported on; None when the data set has none.
    """

    train: Part
    val: Part | None = None

    @classmethod
    def open(cls, path: Path | str) -> DataFolder:
        """Find `annotations/instances_NAME.json` with its pictures in `NAME/`.

        `NAME` begins with `train` or `val`, so `instances_train.json` with `train/` and COCO's own
        `instances_train2017.json` with `train2017/` are both found. Both annotation files are read
        once, so that a broken one is known before anything long begins.

        Raises:
            DataError: the folder, the train annotations or a picture folder is missing, several
                files match, or an annotation file is not COCO.
        """
        root = Path(path)
        if not root.is_dir():
            state = "a file" if root.exists() else "nothing"
            raise DataError(f"data: wanted a folder in COCO format, got {state} at {root}")
        train, val = _find_part(root, "train"), _find_part(root, "val")
        if train is None:
            raise DataError(f"data: wanted annotations/instances_train*.json in {root}, got none")
        for part in filter(None, (train, val)):
            load_annotations(part.annotations)
        return cls(train, val)


def _find_part(root: Path, name: str) -> Part | None:
    found = sorted((root / "annotations").glob(f"instances_{name}*.json"))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"data: wanted one file instances_{name}*.json, got {names} in {root / 'annotations'}"
        )
    images = root / found[0].stem.removeprefix("instances_")
    if not images.is_dir():
        raise DataError(f"data: wanted the pictures of {found[0]} in the folder {images}, got none")
    return Part(found[0], images)


def load_annotations(path: Path | str) -> dict[str, Any]:
    """Read a COCO annotation file and check its skeleton: sections, keys and their types.

    Values are not judged (that is `smnas.data.check`): ids may repeat, boxes may lie anywhere.

    Returns:
        The JSON object; `images`, `annotations` and `categories` are lists of objects that have the
        keys named in the COCO format. `width`, `height`, `area`, `iscrowd` may be absent.

    Raises:
        DataError: unreadable, not JSON, or not COCO; names the key that is missing.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"annotations: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"annotations: wanted JSON, got something else in {path}: {error}"
        ) from error
    if not isinstance(data, dict):
        raise DataError(f"annotations: wanted a JSON object, got a {type(data).__name__} in {path}")
    for section, fields in _SKELETON.items():
        _check_section(data, section, fields, path)
    return data


def _check_section(
    data: dict[str, Any], section: str, fields: dict[str, type], path: Path | str
) -> None:
    if not isinstance(data.get(section), list):
        raise DataError(f"annotations: wanted COCO with a list {section!r}, got none in {path}")
    for index, entry in enumerate(data[section]):
        where = f"{section}[{index}] of {path}"
        if not isinstance(entry, dict):
            raise DataError(f"annotations: wanted an object, got {entry!r} in {where}")
        for key, kind in fields.items():
            if key not in entry:
                raise DataError(
                    f"annotations: wanted COCO with the key {key!r}, got none in {where}"
                )
            if not isinstance(entry[key], kind):
                raise DataError(
                    f"annotations: wanted {key!r} as {kind.__name__}, got {entry[key]!r} in {where}"
                )
        if "bbox" in fields and not _four_numbers(entry["bbox"]):
            raise DataError(
                f"annotations: wanted 'bbox' as four numbers, got {entry['bbox']!r} in {where}"
            )


def _four_numbers(bbox: list[Any]) -> bool:
    return len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)


def write_annotations(path: Path, data: dict[str, Any]) -> None:
    """Write an annotation file whole or not at all; equal data give equal bytes."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(data, separators=(",", ":")))
    os.replace(scratch, path)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and vanishes when it does not.

    Args:
        out: must not exist, or be an empty folder.

    Raises:
        DataError: the folder cannot be written, or a file read in the block cannot.
    """
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            build = Path(scratch) / out.name
            build.mkdir()
            yield build
            os.replace(build, out)
    except OSError as error:
        raise DataError(f"data: cannot make the folder {out}: {error}") from error


def is_filled(out: Path) -> bool:
    """Whether something stands at `out` that `new_folder` would have to overwrite."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))

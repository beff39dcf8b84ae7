"""Judges a COCO-format data set; with `repair` cleans its annotation files and keeps the old ones.

`load_annotations` has already refused what is not COCO; here the values are looked at, and every
picture is decoded. Light: must not import torch, NNI or pymoo.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from smnas.data.files import PICTURE_ERRORS, DataFolder, Part, load_annotations, write_annotations
from smnas.data.findings import Finding, Kind, Note, Tally
from smnas.errors import DataError

SLACK_PX = 0.5
"""How far a box may leave its picture before it is reported: exporters round."""

Data = dict[str, Any]

KINDS: Mapping[str, Kind] = {
    "picture id of two pictures": Kind("fatal", "no telling whose objects are whose"),
    "category id of two categories": Kind("fatal", "no telling which class is meant"),
    "no pictures": Kind("fatal", "nothing is left to train or evaluate on"),
    "no objects": Kind("fatal", "nothing is left to learn or to find"),
    "categories differ from train": Kind("fatal", "scores would compare unlike classes"),
    "picture listed twice": Kind("repaired", "the copy of the entry is removed", True),
    "file listed twice": Kind("repaired", "objects move to the first entry", True),
    "missing picture": Kind("dropped", "left out with its objects", True),
    "unreadable picture": Kind("dropped", "left out with its objects", True),
    "size differs from the file": Kind("repaired", "width and height are taken from the file"),
    "object of an unknown picture": Kind("dropped", "belongs to nothing"),
    "object of an unknown category": Kind("dropped", "has no class", True),
    "annotation id used twice": Kind("repaired", "the later ones get new ids", True),
    "no area or iscrowd": Kind("repaired", "area of the box, iscrowd 0"),
    "box with NaN or infinity": Kind("dropped", "cannot be learnt or found", True),
    "box without area": Kind("dropped", "cannot be learnt or found"),
    "box wholly outside": Kind("dropped", "cannot be learnt or found"),
    "box partly outside": Kind("repaired", "clipped to the picture"),
    "picture of val in train": Kind("dropped", "left out of train, or val would flatter", True),
    "no val part": Kind("harmless", "a search does without; final numbers need one"),
    "category id gap": Kind("harmless", "labels are counted from 1 without gaps"),
    "category without objects": Kind("harmless", "stays a class; COCO's mean leaves it out"),
    "picture without objects": Kind("harmless", "trained and evaluated as background"),
}
"""Everything that `check_data` can find."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Args:
        findings: by part and kind.
        pictures: how many each part holds after treatment.
        objects: likewise.
        repair: whether the treatments were written, or are what a repair would do.
        backups: `{annotation file: where the one before the repair is}` of the files rewritten.
    """

    findings: tuple[Finding, ...]
    pictures: Mapping[str, int]
    objects: Mapping[str, int]
    repair: bool
    backups: Mapping[Path, Path]

    @property
    def fatal(self) -> bool:
        """Whether the data cannot be used as they now lie on the disk."""
        return any(
            finding.treatment == "fatal" or (finding.blocking and not self.repair)
            for finding in self.findings
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "fatal": self.fatal,
            "repair": self.repair,
            "pictures": dict(self.pictures),
            "objects": dict(self.objects),
            "backups": {str(file): str(backup) for file, backup in self.backups.items()},
            "findings": [finding.to_json() for finding in self.findings],
        }

    def __str__(self) -> str:
        lines = [
            f"{part}: {count} pictures, {self.objects[part]} objects"
            for part, count in self.pictures.items()
        ]
        lines += map(str, self.findings)
        lines += [f"rewritten: {file} (before: {backup})" for file, backup in self.backups.items()]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if any(finding.treatment == "fatal" for finding in self.findings):
            return "fatal: put the findings marked so right by hand; their parts are not rewritten"
        if self.fatal:
            return "not usable as it is: a repair would treat the findings as marked"
        if any(finding.treatment != "harmless" for finding in self.findings) and not self.repair:
            return "usable; a repair would treat the findings as marked"
        return "usable"


def check_data(folder: DataFolder | Path | str, *, repair: bool = False) -> CheckReport:
    """Look at every entry and decode every picture of a data set.

    Args:
        folder: a data set, or the folder to find one in.
        repair: write cleaned annotation files in place, each whole or not at all, and keep the one
            before as `NAME.json.bak`. A part with a fatal finding is left as it is. Pictures are
            never touched.

    Raises:
        DataError: there is no data set in the folder, an annotation file is not COCO, or a repaired
            one cannot be written.
    """
    if not isinstance(folder, DataFolder):
        folder = DataFolder.open(folder)
    tally = Tally(KINDS)
    parts = {"train": folder.train} | ({"val": folder.val} if folder.val else {})
    cleaned = {name: _clean(part, tally.noting(name)) for name, part in parts.items()}
    if "val" in cleaned:
        _part_from_val(cleaned, parts, tally)
    else:
        tally.add("val", "no val part", str(folder.train.annotations.parent))
    for name, data in cleaned.items():
        _describe(data, tally.noting(name))
    findings = tally.findings()
    return CheckReport(
        findings,
        {name: len(data["images"]) for name, data in cleaned.items()},
        {name: len(data["annotations"]) for name, data in cleaned.items()},
        repair,
        _rewrite(parts, cleaned, findings) if repair else {},
    )


def _clean(part: Part, note: Note) -> Data:
    """Apply every treatment to a part's annotations in memory.

    The order matters: entries are made unique before anything is looked up by id, and sizes are
    right before boxes are held against them.
    """
    data = load_annotations(part.annotations)
    _unique_categories(data, note)
    _unique_pictures(data, note)
    _unique_files(data, note)
    _known_references(data, note)
    _unique_annotations(data, note)
    _readable_pictures(data, part, note)
    _sound_boxes(data, note)
    return data


def _unique_categories(data: Data, note: Note) -> None:
    for key, count in Counter(entry["id"] for entry in data["categories"]).items():
        if count > 1:
            note("category id of two categories", str(key))


def _unique_pictures(data: Data, note: Note) -> None:
    first: dict[int, Data] = {}
    for image in data["images"]:
        kept = first.setdefault(image["id"], image)
        if kept is not image:
            kind = "picture listed twice" if kept == image else "picture id of two pictures"
            note(kind, f"{image['id']} ({image['file_name']})")
    data["images"] = list(first.values())


def _unique_files(data: Data, note: Note) -> None:
    first: dict[str, int] = {}
    alias: dict[int, int] = {}
    for image in data["images"]:
        kept = first.setdefault(image["file_name"], image["id"])
        if kept != image["id"]:
            note("file listed twice", f"{image['file_name']} (ids {kept} and {image['id']})")
            alias[image["id"]] = kept
    if alias:
        data["images"] = [image for image in data["images"] if image["id"] not in alias]
        data["annotations"] = list(_moved(data["annotations"], alias))


def _moved(annotations: list[Data], alias: Mapping[int, int]) -> Iterator[Data]:
    """Annotations with alias ids resolved, without those that the first entry has already."""
    present = {_content(entry) for entry in annotations if entry["image_id"] not in alias}
    for entry in annotations:
        if entry["image_id"] in alias:
            entry = entry | {"image_id": alias[entry["image_id"]]}
            if _content(entry) in present:
                continue
            present.add(_content(entry))
        yield entry


def _content(annotation: Data) -> tuple[Any, ...]:
    return annotation["image_id"], annotation["category_id"], *annotation["bbox"]


def _known_references(data: Data, note: Note) -> None:
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    kept = []
    for entry in data["annotations"]:
        if entry["image_id"] not in images:
            note("object of an unknown picture", f"{entry['id']} (picture {entry['image_id']})")
        elif entry["category_id"] not in categories:
            note(
                "object of an unknown category", f"{entry['id']} (category {entry['category_id']})"
            )
        else:
            kept.append(entry)
    data["annotations"] = kept


def _unique_annotations(data: Data, note: Note) -> None:
    used: set[int] = set()
    following = max((entry["id"] for entry in data["annotations"]), default=0) + 1
    for entry in data["annotations"]:
        if entry["id"] in used:
            note("annotation id used twice", f"{entry['id']} (now {following})")
            entry["id"], following = following, following + 1
        used.add(entry["id"])


def _readable_pictures(data: Data, part: Part, note: Note) -> None:
    files = [part.images / image["file_name"] for image in data["images"]]
    # Decoding releases the interpreter lock, and a picture cut short shows only when it is decoded.
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_decoded_size, files))
    kept = []
    for image, size in zip(data["images"], sizes, strict=True):
        name = image["file_name"]
        if size is None:
            note("missing picture", name)
        elif isinstance(size, str):
            note("unreadable picture", f"{name} ({size})")
        else:
            if (image.get("width"), image.get("height")) != size:
                said = f"{image.get('width')}x{image.get('height')}"
                note("size differs from the file", f"{name} ({said}, file {size[0]}x{size[1]})")
                image["width"], image["height"] = size
            kept.append(image)
    _keep_pictures(data, kept)


def _keep_pictures(data: Data, kept: list[Data]) -> None:
    ids = {image["id"] for image in kept}
    data["images"] = kept
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] in ids]


def _decoded_size(file: Path) -> tuple[int, int] | str | None:
    """(width, height) of a picture; what is wrong with it; or None when there is no file."""
    if not file.is_file():
        return None
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.size
    except PICTURE_ERRORS as error:
        return str(error).split("\n")[0].replace(str(file), "file")


def _sound_boxes(data: Data, note: Note) -> None:
    images = {image["id"]: image for image in data["images"]}
    kept = []
    for entry in data["annotations"]:
        image = images[entry["image_id"]]
        fault = box_fault(entry["bbox"], image["width"], image["height"])
        if fault is not None:
            note(fault, f"{image['file_name']} (annotation {entry['id']}: {entry['bbox']})")
        if fault is None or KINDS[fault].treatment == "repaired":
            kept.append(_repaired(entry, image, fault, note))
    data["annotations"] = kept


def _repaired(entry: Data, image: Data, fault: str | None, note: Note) -> Data:
    if fault is not None:
        entry["bbox"] = clipped(entry["bbox"], image["width"], image["height"])
    box_area = entry["bbox"][2] * entry["bbox"][3]
    if "area" not in entry or "iscrowd" not in entry:
        note("no area or iscrowd", f"annotation {entry['id']}")
        entry = {"area": box_area, "iscrowd": 0} | entry
    if fault is not None:
        # An outline's area may be smaller than its box's, never larger.
        entry["area"] = min(entry["area"], box_area)
    return entry


def box_fault(bbox: list[float], width: float, height: float) -> str | None:
    """The key of `KINDS` that a COCO box deserves in a picture of that size, or None."""
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return "box with NaN or infinity"
    if w <= 0 or h <= 0:
        return "box without area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box wholly outside"
    if min(x, y, width - x - w, height - y - h) < -SLACK_PX:
        return "box partly outside"
    return None


def clipped(bbox: list[float], width: float, height: float) -> list[float]:
    """The part of a COCO box that lies in the picture, as [x, y, width, height]."""
    x, y, w, h = bbox
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


def _part_from_val(cleaned: dict[str, Data], parts: Mapping[str, Part], tally: Tally) -> None:
    """Hold train against val: the same classes, no picture in common."""
    train, val = ({c["id"]: c["name"] for c in data["categories"]} for data in cleaned.values())
    for key in sorted(train.keys() | val.keys()):
        if train.get(key) != val.get(key):
            example = f"{key}: {train.get(key)!r} in train, {val.get(key)!r} in val"
            tally.add("val", "categories differ from train", example)
    shared = _shared_files(*(_files(cleaned[name], parts[name]) for name in ("train", "val")))
    for ours, theirs in shared.items():
        tally.add("train", "picture of val in train", f"{ours} (in val: {theirs})")
    kept = [image for image in cleaned["train"]["images"] if image["file_name"] not in shared]
    _keep_pictures(cleaned["train"], kept)


def _files(data: Data, part: Part) -> dict[str, Path]:
    return {image["file_name"]: part.images / image["file_name"] for image in data["images"]}


def _shared_files(ours: Mapping[str, Path], theirs: Mapping[str, Path]) -> dict[str, str]:
    """`{name in ours: name in theirs}` of files with equal bytes.

    Names prove nothing: both parts may count their pictures from 1. Only files of equal length
    are read.
    """
    by_length: dict[int, list[str]] = defaultdict(list)
    for name, file in theirs.items():
        by_length[file.stat().st_size].append(name)
    digests: dict[int, dict[bytes, str]] = {}
    shared = {}
    for name, file in ours.items():
        length = file.stat().st_size
        if length in by_length:
            if length not in digests:
                digests[length] = {_digest(theirs[other]): other for other in by_length[length]}
            other = digests[length].get(_digest(file))
            if other is not None:
                shared[name] = other
    return shared


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _describe(data: Data, note: Note) -> None:
    """Note what holds for a part as a whole, after all treatments."""
    for section, kind in (("images", "no pictures"), ("annotations", "no objects")):
        if not data[section]:
            note(kind, "the part is empty")
    names = {category["id"]: category["name"] for category in data["categories"]}
    for before, after in pairwise(sorted(names)):
        if after - before > 1:
            note("category id gap", f"none between {before} and {after}")
    used = {entry["category_id"] for entry in data["annotations"]}
    for key in sorted(names.keys() - used):
        note("category without objects", names[key])
    filled = {entry["image_id"] for entry in data["annotations"]}
    for image in data["images"]:
        if image["id"] not in filled:
            note("picture without objects", image["file_name"])


def _rewrite(
    parts: Mapping[str, Part], cleaned: Mapping[str, Data], findings: tuple[Finding, ...]
) -> dict[Path, Path]:
    backups = {}
    for name, part in parts.items():
        treatments = {finding.treatment for finding in findings if finding.part == name}
        if "fatal" not in treatments and treatments & {"repaired", "dropped"}:
            backups[part.annotations] = _replace(part.annotations, cleaned[name])
    return backups


def _replace(file: Path, data: Data) -> Path:
    backup = file.with_name(f"{file.name}.bak")
    number = 1
    while backup.exists():
        backup = file.with_name(f"{file.name}.bak{number}")
        number += 1
    try:
        shutil.copy2(file, backup)
        write_annotations(file, data)
    except OSError as error:
        raise DataError(f"repair: cannot write {file}: {error.strerror}") from error
    return backup

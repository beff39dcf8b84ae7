"""Imports Pascal VOC (one XML a picture, lists of names) into the COCO layout that smnas reads.

Nothing is dropped in silence: the report names every picture and box that was left out or changed.
Light: must not import torch, NNI or pymoo.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from smnas.data.check import box_fault, clipped
from smnas.data.files import PICTURE_ERRORS, is_filled, new_folder, write_annotations
from smnas.data.findings import Finding, Kind, Note, Tally
from smnas.data.split import split_ids
from smnas.errors import DataError

MARKER = "import.json"
"""In the imported folder: where it came from, and the report."""

VAL_SHARE = 0.2
"""Share of pictures that become `val` where the source has no lists of its own."""

KINDS: Mapping[str, Kind] = {
    "in two lists": Kind(
        "dropped", "kept in test before val before train, so that scores are honest"
    ),
    "in no list": Kind("dropped", "the source's own lists leave it out"),
    "missing annotation": Kind("dropped", "listed, but has no XML"),
    "malformed annotation": Kind("dropped", "the XML cannot be read"),
    "missing picture": Kind("dropped", "left out with its objects"),
    "unreadable picture": Kind("dropped", "left out with its objects"),
    "size differs from the file": Kind("repaired", "width and height are taken from the file"),
    "malformed object": Kind("dropped", "no name, or no box of four numbers"),
    "box with NaN or infinity": Kind("dropped", "cannot be learnt or found"),
    "box without area": Kind("dropped", "cannot be learnt or found"),
    "box wholly outside": Kind("dropped", "cannot be learnt or found"),
    "box partly outside": Kind("repaired", "clipped to the picture"),
    "difficult object": Kind("harmless", "kept as an ordinary object, marked ignore: 1"),
}
"""Everything that an import can find."""

_PARTS = ("train", "val", "test")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class ImportReport:
    """What an import made, and what it left out or changed.

    Args:
        source: the VOC folder.
        out: the COCO folder.
        lists: where the parts come from: the source's lists, or a split by name.
        categories: class names; the k-th has category id k, from 1.
        pictures: how many each part holds.
        objects: likewise.
        findings: by part and kind.
        earlier: True if `out` had been imported from `source` before and was left as it was.
    """

    source: str
    out: str
    lists: str
    categories: tuple[str, ...]
    pictures: Mapping[str, int]
    objects: Mapping[str, int]
    findings: tuple[Finding, ...]
    earlier: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "out": self.out,
            "lists": self.lists,
            "categories": list(self.categories),
            "pictures": dict(self.pictures),
            "objects": dict(self.objects),
            "findings": [finding.to_json() for finding in self.findings],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImportReport:
        """The inverse of `to_json`; `earlier` is False."""
        findings = tuple(
            Finding(f["part"], f["kind"], f["treatment"], f["meaning"], tuple(f["examples"]))
            for f in record["findings"]
        )
        plain = {key: record[key] for key in ("source", "out", "lists", "pictures", "objects")}
        return cls(categories=tuple(record["categories"]), findings=findings, **plain)

    def __str__(self) -> str:
        lines = [f"imported {self.source} to {self.out}; parts: {self.lists}"]
        if self.earlier:
            lines.append("this was done before, and is left as it is; remove the folder to redo it")
        lines += [
            f"{part}: {count} pictures, {self.objects[part]} objects"
            for part, count in self.pictures.items()
        ]
        lines.append(f"{len(self.categories)} categories: {', '.join(self.categories)}")
        return "\n".join([*lines, *map(str, self.findings)])


@dataclass(frozen=True)
class _Object:
    name: str
    bbox: list[float]
    difficult: bool


@dataclass(frozen=True)
class _Picture:
    file: Path
    size: tuple[int, int]
    objects: list[_Object]


def import_voc(source: Path | str, out: Path | str) -> ImportReport:
    """Turn a Pascal VOC folder into a COCO folder; pictures are hard-linked where possible.

    The parts are `ImageSets/Main/{train,val,test}.txt`. Without both `train` and `val`, what `test`
    leaves is split 80/20 by a hash of the picture's name. Category ids are the sorted class names,
    from 1; picture ids the sorted picture names, from 1, over all parts.

    Args:
        source: holds `Annotations/*.xml`, `JPEGImages/` and, usually, `ImageSets/Main/`.
        out: must not exist or be empty, or have been imported from `source` before: then it is left
            as it is. Made whole or not at all.

    Raises:
        DataError: `source` is not VOC or gives no training picture, or `out` holds something else
            or cannot be written.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    if is_filled(out):
        return _earlier_report(source, out)
    tally = Tally(KINDS)
    sets, lists = _image_sets(source, tally)
    files = {file.stem: file for file in sorted((source / "JPEGImages").iterdir())}
    parts = {
        name: dict(_read_pictures(source, stems, files, tally.noting(name)))
        for name, stems in sets.items()
    }
    if not parts["train"]:
        raise DataError(f"voc: wanted pictures to train on in {source}, got none that can be read")
    report = _report(source, out, lists, parts, tally)
    with new_folder(out) as build:
        _write(build, parts, report)
    return report


def _earlier_report(source: Path, out: Path) -> ImportReport:
    wanted = f"voc: wanted an empty or new folder, or one imported from {source}"
    try:
        report = ImportReport.from_json(json.loads((out / MARKER).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{wanted}, got other files in {out}") from error
    if report.source != str(source):
        raise DataError(f"{wanted}, got the import of {report.source} in {out}")
    return replace(report, earlier=True)


def _image_sets(source: Path, tally: Tally) -> tuple[dict[str, list[str]], str]:
    """`{part: picture names}` with every name in one part only, and where the parts come from."""
    for name in ("Annotations", "JPEGImages"):
        if not (source / name).is_dir():
            raise DataError(f"voc: wanted the folders Annotations and JPEGImages in {source}")
    annotated = sorted(file.stem for file in (source / "Annotations").glob("*.xml"))
    folder = source / "ImageSets" / "Main"
    lists = {name: _read_list(folder / f"{name}.txt") for name in _PARTS}
    if lists["train"] and lists["val"]:
        sets = {name: stems for name, stems in lists.items() if stems}
        origin = "ImageSets/Main"
    else:
        train, val = split_ids(set(annotated) - set(lists["test"]), VAL_SHARE)
        sets = {"train": train, "val": val}
        sets |= {"test": lists["test"]} if lists["test"] else {}
        origin = f"no lists of train and val, so split {1 - VAL_SHARE:.0%}/{VAL_SHARE:.0%} by name"
    sets = _disjoint(sets, tally)
    for stem in sorted(set(annotated).difference(*sets.values())):
        tally.add("-", "in no list", stem)
    return sets, origin


def _read_list(file: Path) -> list[str]:
    """First word of each line; lists of one class have a second."""
    if not file.is_file():
        return []
    return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]


def _disjoint(sets: Mapping[str, Sequence[str]], tally: Tally) -> dict[str, list[str]]:
    taken: set[str] = set()
    kept: dict[str, list[str]] = {}
    for part in reversed(_PARTS):
        stems = dict.fromkeys(sets.get(part, ()))
        for stem in stems:
            if stem in taken:
                tally.add(part, "in two lists", stem)
        kept[part] = [stem for stem in stems if stem not in taken]
        taken |= stems.keys()
    return {part: kept[part] for part in _PARTS if part in sets}


def _read_pictures(
    source: Path, stems: Iterable[str], files: Mapping[str, Path], note: Note
) -> Iterable[tuple[str, _Picture]]:
    for stem in stems:
        picture = _read_picture(source, stem, files, note)
        if picture is not None:
            yield stem, picture


def _read_picture(
    source: Path, stem: str, files: Mapping[str, Path], note: Note
) -> _Picture | None:
    try:
        root = ElementTree.parse(source / "Annotations" / f"{stem}.xml").getroot()
    except FileNotFoundError:
        note("missing annotation", stem)
        return None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        note("malformed annotation", f"{stem}.xml ({error})")
        return None
    # The XML's own word comes second: people rename pictures and leave it as it was.
    said = Path(root.findtext("filename", "").strip() or stem).name
    file = files.get(stem, source / "JPEGImages" / said)
    size = _size(file, root, note)
    return None if size is None else _Picture(file, size, _objects(root, stem, size, note))


def _size(file: Path, root: ElementTree.Element, note: Note) -> tuple[int, int] | None:
    """(width, height) as the file has them: an XML may say 0, or be about another version."""
    if not file.is_file():
        note("missing picture", file.name)
        return None
    try:
        with Image.open(file) as picture:
            size = picture.size
    except PICTURE_ERRORS:
        note("unreadable picture", file.name)
        return None
    said = root.findtext("size/width", "none"), root.findtext("size/height", "none")
    if tuple(text.strip() for text in said) != tuple(map(str, size)):
        note(
            "size differs from the file",
            f"{file.name} ({'x'.join(said)}, file {size[0]}x{size[1]})",
        )
    return size


def _objects(
    root: ElementTree.Element, stem: str, size: tuple[int, int], note: Note
) -> list[_Object]:
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{stem}.xml object {number}"
        name = element.findtext("name", "").strip()
        corners = _corners(element)
        if not name or corners is None:
            note("malformed object", where)
            continue
        bbox = _kept_box(corners, size, f"{where} {name} {corners}", note)
        if bbox is None:
            continue
        difficult = element.findtext("difficult", "0").strip() == "1"
        if difficult:
            note("difficult object", f"{where} {name}")
        objects.append(_Object(name, bbox, difficult))
    return objects


def _corners(element: ElementTree.Element) -> list[float] | None:
    """[xmin, ymin, xmax, ymax] as written, or None."""
    try:
        return [float(element.findtext(f"bndbox/{corner}", "")) for corner in _CORNERS]
    except ValueError:
        return None


def _kept_box(
    corners: list[float], size: tuple[int, int], where: str, note: Note
) -> list[float] | None:
    """A box as COCO's [x, y, width, height], clipped to the picture, or None when it is dropped.

    VOC counts pixels from 1 and includes the last: columns 1 to 1 are [0, 1) in COCO's terms. So
    one is taken off xmin and ymin and nothing off xmax and ymax, as detectron2 does. By the same
    rule equal corners would be a box of one pixel; in real files they are slips of the mouse, so
    they have no area.
    """
    xmin, ymin, xmax, ymax = corners
    if xmax <= xmin or ymax <= ymin:
        note("box without area", where)
        return None
    bbox = [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]
    fault = box_fault(bbox, *size)
    if fault is None:
        return bbox
    note(fault, where)
    return clipped(bbox, *size) if KINDS[fault].treatment == "repaired" else None


def _report(
    source: Path, out: Path, lists: str, parts: Mapping[str, dict[str, _Picture]], tally: Tally
) -> ImportReport:
    objects = {
        part: [thing for picture in pictures.values() for thing in picture.objects]
        for part, pictures in parts.items()
    }
    names = {thing.name for things in objects.values() for thing in things}
    return ImportReport(
        str(source),
        str(out),
        lists,
        tuple(sorted(names)),
        {part: len(pictures) for part, pictures in parts.items()},
        {part: len(things) for part, things in objects.items()},
        tally.findings(),
    )


def _write(build: Path, parts: Mapping[str, dict[str, _Picture]], report: ImportReport) -> None:
    (build / "annotations").mkdir()
    stems = sorted(stem for pictures in parts.values() for stem in pictures)
    ids = {stem: number for number, stem in enumerate(stems, start=1)}
    for part, pictures in parts.items():
        (build / part).mkdir()
        for picture in pictures.values():
            _link(picture.file, build / part / picture.file.name)
        data = _coco(pictures, ids, report.categories)
        write_annotations(build / "annotations" / f"instances_{part}.json", data)
    (build / MARKER).write_text(json.dumps(report.to_json(), indent=1))


def _link(file: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(file, target)
    except OSError:
        # Another file system, or one without links; a copy that fails too is an error.
        shutil.copyfile(file, target)


def _coco(
    pictures: Mapping[str, _Picture], ids: Mapping[str, int], categories: Sequence[str]
) -> dict[str, Any]:
    category_ids = {name: number for number, name in enumerate(categories, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem, picture in sorted(pictures.items()):
        width, height = picture.size
        images.append(
            {"id": ids[stem], "file_name": picture.file.name, "width": width, "height": height}
        )
        for thing in picture.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": ids[stem],
                    "category_id": category_ids[thing.name],
                    "bbox": thing.bbox,
                    "area": thing.bbox[2] * thing.bbox[3],
                    # iscrowd would take it out of training; `ignore` keeps what VOC said.
                    "iscrowd": 0,
                    "ignore": int(thing.difficult),
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
    }

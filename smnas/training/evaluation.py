"""COCO metrics of a detector on a data set, by pycocotools, or by detectron2's compiled version of
it where that is installed. The trial calls it after training.

The only place that turns detections into COCO results. Must not import the search, spaces or
builders.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader

from smnas.data.coco import Example
from smnas.errors import DataError
from smnas.quiet import QuietDevice
from smnas.training.precision import autocast

METRICS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""COCO's names, in the order of pycocotools: IoU .50:.95, .50, .75, and objects below 32², between,
and above 96² pixels of the original picture.
"""

_log = logging.getLogger(__name__)


class Examples(Protocol):
    """A data set with its COCO annotations, as `smnas.data.coco.CocoDataset`."""

    @property
    def coco(self) -> COCO: ...

    @property
    def category_ids(self) -> Sequence[int]: ...

    @property
    def image_ids(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def evaluate(
    model: nn.Module,
    dataset: Examples,
    *,
    device: torch.device,
    batch: int,
    quiet: QuietDevice,
    amp: bool = False,
    workers: int = 0,
) -> dict[str, float]:
    """Average precision of a detector over the pictures of a data set.

    Detections with a box or score that is not finite are dropped, with a warning that counts them:
    they can only lower the metrics, and one overflow in half precision should not cost a training.
    (A detector whose weights are not finite fails in `train`.)

    Args:
        model: in evaluation mode, `model(images)` gives for each picture a dict of `boxes`
            (`n x 4`, x0 y0 x1 y1, pixels of the image), `labels` (from 1) and `scores`. It is moved
            to the device; its mode is restored.
        batch: pictures at a time.
        amp: mixed precision, on CUDA only.
        workers: processes that load pictures; 0 loads them here.

    Returns:
        `METRICS` by name, 0 to 1. A size of which the data has no object is left out. Without any
        detection they are 0.

    Raises:
        DataError: the data set has no object.
        ValueError: the detector gave a label that the data set does not have.
    """
    results = detect(
        model, dataset, device=device, batch=batch, quiet=quiet, amp=amp, workers=workers
    )
    with quiet.working():
        return coco_metrics(dataset.coco, results, dataset.image_ids)


def detect(
    model: nn.Module,
    dataset: Examples,
    *,
    device: torch.device,
    batch: int,
    quiet: QuietDevice,
    amp: bool = False,
    workers: int = 0,
) -> list[dict[str, Any]]:
    """COCO results of a detector over the pictures of a data set; arguments as of `evaluate`.

    Raises:
        DataError: the data set has no object.
        ValueError: the detector gave a label that the data set does not have.
    """
    if not len(dataset) or not dataset.coco.getAnnIds(imgIds=dataset.image_ids, iscrowd=False):
        raise DataError(f"evaluation: wanted objects, got none in {len(dataset)} pictures")
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch,
        collate_fn=list,
        num_workers=workers,
        # Without its own generator a loader draws from the global one and disturbs the training.
        generator=torch.Generator(),
    )
    was_training = model.training
    model.to(device).eval()
    stream, results = iter(loader), []
    for _ in range(len(loader)):
        with quiet.working(), torch.inference_mode(), autocast(device, amp):
            examples = next(stream)
            detections = model([example.image.to(device) for example in examples])
            for example, detection in zip(examples, detections, strict=True):
                results += coco_results(example, detection, dataset.category_ids)
    model.train(was_training)
    return results


def coco_metrics(
    coco: COCO, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float]:
    """Run COCO's box evaluation, silently.

    Args:
        coco: the truth.
        results: COCO results: dicts of `image_id`, `category_id`, `bbox` (x, y, width, height) and
            `score`; may be empty.
        image_ids: the pictures that count.

    Returns:
        `METRICS` by name, 0 to 1; what pycocotools gives as -1, for want of objects, is left out.
    """
    return _summary(_evaluated(coco, results, image_ids))


def coco_table(
    coco: COCO, results: list[dict[str, Any]], image_ids: Sequence[int]
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """COCO's metrics over all classes, and of each class by its category id; arguments as of
    `coco_metrics`.

    A class without objects in these pictures has no metrics. Over the classes that have one, the
    mean of a metric is that over all classes.
    """
    evaluation = _evaluated(coco, results, image_ids)
    ids = evaluation.params.catIds
    return _summary(evaluation), {key: _of_class(evaluation, k) for k, key in enumerate(ids)}


def _of_class(evaluation: COCOeval, index: int) -> dict[str, float]:
    # IoU threshold x recall x area (all, small, medium, large), at most 100 detections a picture
    precision = evaluation.eval["precision"][:, :, index, :, -1]
    thresholds = evaluation.params.iouThrs.round(2).tolist()
    parts = [precision[:, :, 0]]
    parts += [precision[thresholds.index(iou), :, 0] for iou in (0.5, 0.75)]
    parts += [precision[:, :, area] for area in (1, 2, 3)]
    # -1 stands for a class without objects of that size
    return {n: float(p.mean()) for n, p in zip(METRICS, parts, strict=True) if (p > -1).all()}


def _evaluated(coco: COCO, results: list[dict[str, Any]], image_ids: Sequence[int]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        detected = coco.loadRes(results) if results else _nothing(coco)
        evaluation = _evaluator()(coco, detected, "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _summary(evaluation: COCOeval) -> dict[str, float]:
    values = map(float, evaluation.stats[: len(METRICS)])
    return {name: value for name, value in zip(METRICS, values, strict=True) if value >= 0}


@cache
def _evaluator() -> type[COCOeval]:
    """detectron2's evaluation, which gives the same numbers sooner, else pycocotools'."""
    if find_spec("detectron2") is None:
        return COCOeval
    try:
        from smnas.detectors.detectron2.evaluation import COCOeval_opt
    except ImportError as error:
        _log.warning("detectron2's COCO evaluation is not usable, pycocotools is used: %s", error)
        return COCOeval
    return COCOeval_opt


def _nothing(coco: COCO) -> COCO:
    """Results without a detection, which `loadRes` cannot read."""
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def coco_results(
    example: Example, detection: dict[str, Tensor], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """A picture's detections as COCO results, in pixels of the file.

    Args:
        example: the picture that was looked at.
        detection: `boxes`, `labels` and `scores` of a detector.
        category_ids: in the order of labels.

    Raises:
        ValueError: a label is none of the categories.
    """
    boxes, scores, labels = (detection[key].cpu() for key in ("boxes", "scores", "labels"))
    if labels.numel() and not 1 <= int(labels.min()) <= int(labels.max()) <= len(category_ids):
        raise ValueError(
            f"detector: wanted labels 1 to {len(category_ids)}, got {sorted(set(labels.tolist()))}"
        )
    finite = boxes.isfinite().all(dim=1) & scores.isfinite()
    if dropped := len(finite) - int(finite.sum()):
        _log.warning("picture %s: dropped %d detections, not finite", example.image_id, dropped)
    corners = boxes[finite].double() / example.scale
    corners[:, 2:] -= corners[:, :2]
    return [
        {
            "image_id": example.image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }
        for box, label, score in zip(
            corners.tolist(), labels[finite].tolist(), scores[finite].tolist(), strict=True
        )
    ]

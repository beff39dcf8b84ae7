"""detectron2's compiled COCO metrics against pycocotools'."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smnas.training import evaluation


def truth_and_results(seed: int) -> tuple[COCO, list[dict]]:
    """Objects of all sizes, crowds among them, and detections that are near them or anywhere."""
    rng = np.random.default_rng(seed)
    objects, results = [], []
    for number in range(120):
        side = rng.uniform(5, 150, 2)
        box = [*rng.uniform(0, 100, 2), *side]
        where = {"image_id": int(rng.integers(12)), "category_id": int(rng.integers(1, 4))}
        crowd = int(rng.random() < 0.05)
        objects.append(
            {"id": number + 1, "bbox": box, "area": side.prod(), "iscrowd": crowd, **where}
        )
        for _ in range(rng.integers(3)):
            near = np.add(box, rng.normal(0, 0.1, 4) * side.mean()).clip(1)
            results.append({"bbox": near.tolist(), "score": float(rng.random()), **where})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "width": 300, "height": 300} for i in range(12)],
        "annotations": objects,
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, results


@pytest.mark.detectron2
@pytest.mark.parametrize("found", [slice(None), slice(1), slice(0)])
def test_compiled_metrics_are_pycocotools(monkeypatch: pytest.MonkeyPatch, found: slice) -> None:
    pytest.importorskip("detectron2._C", reason="needs detectron2, see docs/detectron2.md")
    assert evaluation._evaluator().__name__ == "COCOeval_opt"
    for seed in range(3):
        coco, results = truth_and_results(seed)
        fast = evaluation.coco_metrics(coco, results[found], range(10))
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "_evaluator", lambda: COCOeval)
            slow = evaluation.coco_metrics(coco, results[found], range(10))
        assert fast == pytest.approx(slow, abs=1e-6) and set(fast) == set(evaluation.METRICS)
        assert found.stop is not None or 0.05 < fast["map"] < 0.95


def test_pycocotools_is_the_evaluation_where_detectron2_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluation._evaluator.cache_clear()
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    assert evaluation._evaluator() is COCOeval
    evaluation._evaluator.cache_clear()

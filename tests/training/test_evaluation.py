"""COCO metrics by scenario, with the areas worked out, and against pycocotools run by hand."""

import contextlib
import logging
import math

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from smnas.data.coco import Example
from smnas.errors import DataError
from smnas.training.evaluation import METRICS, coco_table, detect, evaluate

CPU = torch.device("cpu")
SMALL, MEDIUM, LARGE = [10, 10, 20, 20], [10, 10, 50, 50], [10, 10, 100, 100]
"""COCO boxes (x, y, width, height) of area 400 < 32², 2500 < 96² and 10000 > 96²."""


class Quiet:
    """Stands for a `QuietDevice`."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def working(self):
        self.count += 1
        yield


class Pictures:
    """A data set of 200x200 pictures, given as `{image id: [(category id, bbox), ...]}`.

    The detector sees them at `scale`; a picture's pixel (0, 0) holds its id, so that the fake
    detector knows what it looks at.
    """

    def __init__(self, objects, *, image_ids=None, scale=1.0, crowds=()) -> None:
        self.category_ids = (3, 8)
        self.image_ids = tuple(objects) if image_ids is None else tuple(image_ids)
        self.scale = scale
        annotations = [
            {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
            for image, found in objects.items()
            for category, box in found
        ]
        for number, annotation in enumerate(annotations, 1):
            annotation |= {"id": number, "iscrowd": int(number in crowds)}
        self.coco = COCO()
        self.coco.dataset = {
            "images": [{"id": i, "width": 200, "height": 200} for i in objects],
            "annotations": annotations,
            "categories": [{"id": i, "name": str(i)} for i in self.category_ids],
        }
        self.coco.createIndex()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        side = round(200 * self.scale)
        image = torch.full((3, side, side), float(self.image_ids[index]))
        none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return Example(image, *none, self.image_ids[index], self.scale)


class Oracle(nn.Module):
    """Says what it is told: `{image id: [(label, score, bbox), ...]}`, in pixels of the image."""

    def __init__(self, answers) -> None:
        super().__init__()
        self.answers, self.sizes = answers, []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training and torch.is_inference_mode_enabled()
        self.sizes.append(len(images))
        found = [self.answers.get(int(image[0, 0, 0]), []) for image in images]
        return [
            {
                "boxes": torch.tensor(
                    [[x, y, x + w, y + h] for _, _, (x, y, w, h) in one], dtype=torch.float32
                ).reshape(-1, 4),
                "labels": torch.tensor([label for label, _, _ in one], dtype=torch.int64),
                "scores": torch.tensor([score for _, score, _ in one]),
            }
            for one in found
        ]


def scores(answers, pictures, batch=2, **options):
    return evaluate(Oracle(answers), pictures, device=CPU, batch=batch, quiet=Quiet(), **options)


def test_perfect():
    pictures = Pictures({1: [(3, SMALL)], 2: [(8, MEDIUM)], 5: [(3, LARGE)]})
    answers = {1: [(1, 0.9, SMALL)], 2: [(2, 0.8, MEDIUM)], 5: [(1, 0.7, LARGE)]}
    assert scores(answers, pictures) == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_missed():
    # One of two objects found: precision 1 up to recall .5, that is at 51 of the 101 recall points.
    pictures = Pictures({1: [(3, MEDIUM)], 2: [(3, MEDIUM)]})
    found = scores({1: [(1, 0.9, MEDIUM)]}, pictures)
    expected = dict.fromkeys(("map", "ap50", "ap75", "ap_medium"), 51 / 101)
    assert found == pytest.approx(expected)


def test_false_positive():
    # The wrong one is the surer one: precision 1/2 at every recall.
    elsewhere = [120, 120, 50, 50]
    pictures = Pictures({1: [(3, MEDIUM)]})
    found = scores({1: [(1, 0.9, elsewhere), (1, 0.5, MEDIUM)]}, pictures)
    assert found["map"] == pytest.approx(0.5)
    # The right one first: full recall comes before the mistake.
    found = scores({1: [(1, 0.5, elsewhere), (1, 0.9, MEDIUM)]}, pictures)
    assert found["map"] == pytest.approx(1.0)


def test_wrong_class():
    pictures = Pictures({1: [(3, MEDIUM)]})
    assert scores({1: [(2, 0.9, MEDIUM)]}, pictures)["map"] == 0.0


def test_loose_box():
    # 50x50 against 50x40 inside it: IoU 2000 / 2500 = .8, so 7 of the 10 thresholds .50:.95 accept
    # it (.80 itself is met: pycocotools asks for at least the threshold).
    pictures = Pictures({1: [(3, MEDIUM)]})
    found = scores({1: [(1, 0.9, [10, 10, 50, 40])]}, pictures)
    assert found == pytest.approx({"map": 0.7, "ap50": 1.0, "ap75": 1.0, "ap_medium": 0.7})


def test_no_detection_at_all_is_zero_and_no_error():
    pictures = Pictures({1: [(3, MEDIUM)], 2: [(8, LARGE)]})
    expected = {"map": 0.0, "ap50": 0.0, "ap75": 0.0, "ap_medium": 0.0, "ap_large": 0.0}
    assert scores({}, pictures) == expected


def test_sizes_without_objects_are_left_out():
    pictures = Pictures({1: [(3, LARGE)]})
    assert set(scores({1: [(1, 0.9, LARGE)]}, pictures)) == {"map", "ap50", "ap75", "ap_large"}


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_boxes_are_scaled_back_to_the_original_picture(scale):
    pictures = Pictures({1: [(3, SMALL)], 2: [(3, LARGE)]}, scale=scale)
    seen = {1: [(1, 0.9, [v * scale for v in SMALL])], 2: [(1, 0.9, [v * scale for v in LARGE])]}
    found = scores(seen, pictures)
    # Sizes, too, are judged in the original picture: 20 pixels are small at any scale.
    expected = {"map": 1.0, "ap50": 1.0, "ap75": 1.0, "ap_small": 1.0, "ap_large": 1.0}
    assert found == pytest.approx(expected)


def test_only_the_pictures_of_the_data_set_count():
    objects = {1: [(3, MEDIUM)], 2: [(3, MEDIUM)], 3: [(3, MEDIUM)]}
    found = scores({2: [(1, 0.9, MEDIUM)]}, Pictures(objects, image_ids=[2]))
    assert found["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("objects", [{}, {1: [], 2: []}])
def test_no_object_is_an_error_of_the_data(objects):
    with pytest.raises(DataError, match=f"wanted objects, got none in {len(objects)} pictures"):
        scores({}, Pictures(objects))


def test_crowds_alone_are_no_objects():
    with pytest.raises(DataError):
        scores({}, Pictures({1: [(3, LARGE)]}, crowds=(1,)))


def test_what_is_not_finite_is_dropped_and_counted(caplog):
    pictures = Pictures({1: [(3, MEDIUM)]})
    answers = {
        1: [
            (1, 0.9, [math.nan, 10, 50, 50]),
            (1, math.nan, MEDIUM),
            (1, 0.8, [10, 10, math.inf, 50]),
            (1, 0.5, MEDIUM),
        ]
    }
    with caplog.at_level(logging.WARNING):
        assert scores(answers, pictures)["map"] == pytest.approx(1.0)
    assert "picture 1: dropped 3 detections" in caplog.text


@pytest.mark.parametrize("label", [0, 3])
def test_a_label_outside_the_data_set_is_a_bug_of_the_detector(label):
    with pytest.raises(ValueError, match=rf"wanted labels 1 to 2, got \[{label}\]"):
        scores({1: [(label, 0.9, MEDIUM)]}, Pictures({1: [(3, MEDIUM)]}))


def test_equal_to_pycocotools_run_by_hand():
    generator = torch.Generator().manual_seed(4)

    def box():
        size = torch.randint(20, 150, (2,), generator=generator)
        return torch.cat([torch.randint(0, 50, (2,), generator=generator), size]).tolist()

    objects = {
        i: [(8, SMALL)] + [(3 if j % 2 else 8, box()) for j in range(i % 4)] for i in range(1, 13)
    }
    pictures = Pictures(objects, scale=2.0)
    answers, results = {}, []
    for image, found in objects.items():
        answers[image] = []
        for category, truth in found + [(3, box())]:
            near = [v + int(torch.randint(-4, 5, (), generator=generator)) for v in truth]
            score = torch.rand((), generator=generator).item()
            answers[image].append((1 if category == 3 else 2, score, [2 * v for v in near]))
            results.append(
                {"image_id": image, "category_id": category, "bbox": near, "score": score}
            )
    plain = COCOeval(pictures.coco, pictures.coco.loadRes(results), "bbox")
    plain.evaluate()
    plain.accumulate()
    plain.summarize()
    found = scores(answers, pictures, batch=5)
    assert list(found.values()) == pytest.approx(list(plain.stats[:6]), abs=1e-12)
    assert 0.1 < found["map"] < 0.9 and len(set(found.values())) == 6


def test_batches_are_quiet_and_silent_and_leave_no_trace(capsys):
    pictures = Pictures({i: [(3, MEDIUM)] for i in range(1, 6)})
    capsys.readouterr()  # pycocotools talks while the fixture is built
    model, quiet = Oracle({}), Quiet()
    before = torch.get_rng_state()
    evaluate(model, pictures, device=CPU, batch=2, quiet=quiet)
    assert model.sizes == [2, 2, 1] and quiet.count == 4  # and the metrics
    assert model.training
    assert not evaluate(model.eval(), pictures, device=CPU, batch=8, quiet=quiet)["map"]
    assert not model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""


def test_the_table_of_each_class():
    """One class found of one and a half, one with a loose box (.8), one that the pictures lack."""
    pictures = Pictures({1: [(3, MEDIUM)], 2: [(3, MEDIUM), (8, LARGE)], 5: []})
    pictures.coco.dataset["categories"].append({"id": 9, "name": "9"})
    with contextlib.redirect_stdout(None):
        pictures.coco.createIndex()
    answers = {1: [(1, 0.9, MEDIUM)], 2: [(2, 0.8, [10, 10, 100, 80])]}
    options = {"device": CPU, "batch": 2, "quiet": Quiet()}
    results = detect(Oracle(answers), pictures, **options)
    whole, classes = coco_table(pictures.coco, results, pictures.image_ids)
    assert whole == pytest.approx(evaluate(Oracle(answers), pictures, **options))
    names = ("map", "ap50", "ap75", "ap_medium")
    assert classes[3] == pytest.approx(dict.fromkeys(names, 51 / 101))
    assert classes[8] == pytest.approx({"map": 0.7, "ap50": 1, "ap75": 1, "ap_large": 0.7})
    assert classes[9] == {}
    assert whole["map"] == pytest.approx((classes[3]["map"] + classes[8]["map"]) / 2)


def test_loading_in_other_processes_changes_nothing():
    pictures = Pictures({1: [(3, MEDIUM)], 2: [(3, LARGE)], 3: [(8, SMALL)]})
    answers = {1: [(1, 0.9, MEDIUM)], 3: [(2, 0.9, SMALL)]}
    assert scores(answers, pictures, workers=1) == scores(answers, pictures)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_on_the_gpu():
    class Seeing(Oracle):
        def forward(self, images):
            assert images[0].is_cuda and torch.is_autocast_enabled("cuda")
            return super().forward(images)

    pictures = Pictures({1: [(3, MEDIUM)]})
    options = {"device": torch.device("cuda"), "batch": 1, "quiet": Quiet(), "amp": True}
    assert evaluate(Seeing({1: [(1, 0.9, MEDIUM)]}), pictures, **options)["map"] == 1.0

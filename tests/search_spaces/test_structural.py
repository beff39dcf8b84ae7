"""The structural space: its size, what is legal; every option builds, trains and detects."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from nni.mutable import Mutable
from torch import Tensor, nn
from torchvision.models import ResNet

from search_spaces.structural import StructuralSpace
from smnas.detectors.space import load_space
from smnas.detectors.torchvision import Backbone, Detector
from smnas.encoding import Encoding
from smnas.errors import SpaceError
from smnas.records import identity
from smnas.stopping import no_larger

REFERENCE = "search_spaces.structural:StructuralSpace"
OPTIONS = {
    "backbone": "resnet18 resnet34 resnet50 resnet101 resnext50 resnext101 mobilenet_v2".split(),
    "neck": ["fpn", "none"],
    "neck_start": [2, 3],
    "neck_end": [5, 6],
    "neck_width": [64, 128, 256],
    "rpn": ["rpn", "ga_rpn", "none"],
    "head": ["rcnn", "cascade2", "cascade3", "retinanet"],
    "input_size": ["512x512", "800x600", "1080x720", "1333x800"],
}
DEFAULT = {label: options[0] for label, options in OPTIONS.items()}
SIDE = 160


@pytest.fixture(scope="module")
def space() -> StructuralSpace:
    return StructuralSpace()


@pytest.fixture(scope="module")
def small() -> StructuralSpace:
    """Small enough to train: every option but the input sizes, which are one."""
    return StructuralSpace(num_classes=3, input_sizes=(f"{SIDE}x{SIDE}",), head_width=64)


def is_legal(sample: dict) -> bool:
    """The rules as one would say them."""
    if (sample["rpn"] == "none") != (sample["head"] == "retinanet"):
        return False
    neck = (sample["neck_start"], sample["neck_end"], sample["neck_width"])
    return sample["neck"] == "fpn" or neck == (2, 5, 64)


def test_choices_in_their_order(space):
    choices = Encoding.of(space).choices
    assert {choice.label: list(choice.options) for choice in choices} == OPTIONS
    assert [choice.label for choice in choices] == list(OPTIONS)
    ordinal = [choice.label for choice in choices if choice.ordinal]
    assert ordinal == ["neck_start", "neck_end", "neck_width"]


def test_what_is_larger(space):
    """Lists of the space's own options; what has more of everything, and nothing else."""
    sizes = Encoding.of(space).monotone
    for label, lists in sizes.items():
        assert all(set(chain) <= set(OPTIONS[label]) for chain in lists)
    assert set(OPTIONS) - set(sizes) == {"neck", "rpn"}
    small = {**DEFAULT, "neck_start": 3}
    for change in (
        {"backbone": "resnext101"},
        {"neck_start": 2},
        {"neck_end": 6},
        {"neck_width": 256},
        {"head": "cascade3"},
        {"input_size": "800x600"},
    ):
        assert no_larger(small, {**small, **change}, sizes)
        assert not no_larger({**small, **change}, small, sizes)
    for change in ({"backbone": "mobilenet_v2"}, {"neck": "none"}, {"head": "retinanet"}):
        assert not no_larger(small, {**small, **change}, sizes)
        assert not no_larger({**small, **change}, small, sizes)


def test_input_sizes_compare_where_both_sides_do():
    sizes = StructuralSpace(input_sizes=["320x320", "400x300", "640x320"]).monotone["input_size"]
    assert sizes == [("320x320", "640x320"), ("400x300", "640x320")]


def test_size_and_legal_samples_by_enumeration(space):
    encoding = Encoding.of(space)
    samples = [dict(zip(OPTIONS, options)) for options in itertools.product(*OPTIONS.values())]
    assert len(samples) == encoding.size == 8064
    wanted = {identity(sample) for sample in samples if is_legal(sample)}
    found = {identity(encoding.sample(index)) for index in encoding.legal()}
    assert len(found) == 2548 == 7 * (1 + 2 * 2 * 3) * 7 * 4
    assert found == wanted


def test_nni_agrees_on_what_is_legal(space):
    for changes, legal in (
        ({}, True),
        ({"rpn": "none"}, False),
        ({"head": "retinanet"}, False),
        ({"rpn": "none", "head": "retinanet"}, True),
        ({"neck": "none"}, True),
        ({"neck": "none", "neck_width": 128}, False),
        ({"neck": "none", "neck_start": 3}, False),
        ({"neck": "none", "neck_end": 6}, False),
    ):
        assert space.contains({**DEFAULT, **changes}) == legal


def test_the_default_is_the_first_options(space):
    assert isinstance(space.detector, Detector)
    assert space.detector.input_size == "512x512"
    body = space.detector.model.backbone.backbone
    assert isinstance(body, Backbone)
    assert body.name == "resnet18"


def test_building_the_space_builds_one_backbone(monkeypatch):
    built = []
    initialise = ResNet.__init__
    monkeypatch.setattr(ResNet, "__init__", lambda *a, **k: built.append(1) or initialise(*a, **k))
    space = StructuralSpace()
    assert len(built) == 1
    space.freeze({**DEFAULT, "backbone": "resnet34", "neck": "none"})
    assert len(built) == 2


def test_level_6_needs_a_large_input():
    sizes = ("96x96", "160x128", "160x160")
    encoding = Encoding.of(StructuralSpace(input_sizes=sizes))
    legal = [encoding.sample(index) for index in encoding.legal()]
    with_6 = {sample["input_size"] for sample in legal if sample["neck_end"] == 6}
    assert with_6 == {"160x160"}
    assert {sample["input_size"] for sample in legal} == set(sizes)
    assert len(legal) == 7 * 7 * (13 + 7 + 7)


def test_level_7_is_for_one_stage_detectors():
    encoding = Encoding.of(StructuralSpace(neck_ends=(5, 6, 7), input_sizes=("288x288", "256x256")))
    legal = [encoding.sample(index) for index in encoding.legal()]
    with_7 = [sample for sample in legal if sample["neck_end"] == 7]
    assert {sample["head"] for sample in with_7} == {"retinanet"}
    assert {sample["input_size"] for sample in with_7} == {"288x288"}
    assert len(with_7) == 7 * 2 * 3


def test_a_pyramid_may_have_to_end_at_6():
    encoding = Encoding.of(StructuralSpace(neck_ends=(6,)))
    assert len(encoding.legal()) == 7 * (1 + 6) * 7 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_sizes": ["64x64"]}, "wanted a map of 3x3 cells on level 5, got '64x64'"),
        ({"input_sizes": ["96x96"], "neck_ends": [6]}, "on level 6, got '96x96'"),
        ({"input_sizes": ["512"]}, "input_size: wanted WIDTHxHEIGHT .*, got '512'"),
        ({"input_sizes": [512]}, "input_size: wanted WIDTHxHEIGHT .*, got 512"),
        ({"input_sizes": "512x512"}, "input_sizes: wanted a list"),
        ({"input_sizes": []}, "input_sizes: wanted a list"),
        ({"input_sizes": ["512x512", "512x512"]}, "input_sizes: wanted a list of different"),
        ({"neck_ends": [4, 5]}, "neck_ends: wanted levels from 5 to 7"),
        ({"neck_ends": [7]}, "neck_ends: wanted levels from 5 to 7, 7 not first"),
        ({"neck_ends": 5}, "neck_ends: wanted a list"),
        ({"num_classes": 0}, "num_classes: wanted a positive integer, got 0"),
        ({"num_classes": "ten"}, "num_classes: wanted a positive integer, got 'ten'"),
        ({"head_width": 1.5}, "head_width: wanted a positive integer, got 1.5"),
        ({"norm": "gn_wz"}, "norm: wanted one of .*'gn_ws'"),
        ({"norm": "frozen_bn"}, "norm: 'frozen_bn' wants pretrained"),
        ({"pretrained": True}, "want norm 'bn' or 'frozen_bn', got norm 'gn_ws'"),
        ({"library": "mmdet"}, "library: wanted one of"),
        ({"input_size": ["512x512"]}, "no argument 'input_size'; did you mean 'input_sizes'"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(SpaceError, match=message):
        load_space(REFERENCE, arguments)


@pytest.mark.parametrize("label", OPTIONS)
def test_unknown_options(space, label):
    with pytest.raises(SpaceError, match=f"{label}.*wanted one of"):
        space.freeze({**DEFAULT, label: "other"})


def test_frozen_detectors_know_nothing_of_nni(small):
    detector = small.freeze(
        {**DEFAULT, "rpn": "ga_rpn", "head": "cascade3", "input_size": f"{SIDE}x{SIDE}"}
    )
    assert type(detector) is Detector
    assert not any(isinstance(module, Mutable) for module in detector.modules())


def test_parameters_of_a_known_detector():
    """Faster R-CNN on ResNet-50 with a pyramid, 90 classes: what torchvision documents."""
    space = StructuralSpace(num_classes=90, norm="bn")
    sample = {**DEFAULT, "backbone": "resnet50", "neck_end": 6, "neck_width": 256}
    with torch.device("meta"):
        detector = space.freeze(sample)
    assert sum(p.numel() for p in detector.parameters()) == 41_808_406


def covering() -> Iterator[dict]:
    """Few legal samples in which every option occurs, and every pair of options that may occur.

    Backbones are spared from the pairs: each comes once.
    """
    options = {**OPTIONS, "backbone": ["resnet18"], "input_size": [f"{SIDE}x{SIDE}"]}
    samples = [dict(zip(options, chosen)) for chosen in itertools.product(*options.values())]
    samples = [sample for sample in samples if is_legal(sample)]
    missing = set().union(*map(pairs, samples))
    backbones = iter(OPTIONS["backbone"])
    while missing:
        best = max(samples, key=lambda sample: len(pairs(sample) & missing))
        missing -= pairs(best)
        yield {**best, "backbone": next(backbones, "resnet18")}


def pairs(sample: dict) -> set:
    return set(itertools.combinations(sample.items(), 2))


COVERING = list(covering())


def test_the_covering_covers():
    for label, options in OPTIONS.items():
        if label != "input_size":
            assert {sample[label] for sample in COVERING} == set(options)
    assert len({identity(sample) for sample in COVERING}) == len(COVERING) < 20


def picture() -> tuple[Tensor, dict[str, Tensor]]:
    """A picture with an object for every level of a pyramid."""
    boxes = [
        [4, 4, 20, 20],
        [30, 6, 62, 38],
        [90, 10, 154, 74],
        [12, 30, 140, 158],
        [0, 0, 159, 159],
    ]
    labels = [1, 2, 3, 1, 2]
    image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
    }


@pytest.mark.parametrize("sample", COVERING, ids=lambda sample: "-".join(map(str, sample.values())))
def test_builds_trains_and_detects(small, sample):
    torch.manual_seed(0)
    detector = small.freeze(sample)
    image, target = picture()
    losses = detector([image], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [name for name, p in detector.named_parameters() if not has_gradient(p)] == []
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert set(found) == {"boxes", "labels", "scores"}


def has_gradient(parameter: nn.Parameter) -> bool:
    slope = parameter.grad
    return slope is not None and bool(slope.isfinite().all()) and bool((slope != 0).any())


def test_one_sample_one_detector(small):
    """No two legal samples are the same network: sizes of all parts, in order, differ."""
    encoding = Encoding.of(small)
    seen: dict[tuple, str] = {}
    legal = [encoding.sample(index) for index in encoding.legal()]
    same_backbone = [sample for sample in legal if sample["backbone"] == "resnet18"]
    for sample in same_backbone:
        with torch.device("meta"):
            detector = small.freeze(sample)
        shape = tuple((name, tuple(p.shape)) for name, p in detector.named_parameters())
        seen.setdefault((shape, tuple(detector.model.backbone.neck.stages)), identity(sample))
    assert len(seen) == len(same_backbone) == 13 * 7

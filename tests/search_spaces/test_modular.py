"""The modular space: its size, what is legal, its operators; every option builds and trains."""

import json
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces.modular import ModularSpace
from search_spaces.structural import StructuralSpace
from smnas.detectors.components import BACKBONES
from smnas.detectors.operators import MOBILENET, MOVES, STRUCTURE, labels_of, string_of
from smnas.detectors.space import load_space
from smnas.detectors.string_moves import count_stages
from smnas.detectors.strings import STRINGS, BackboneString
from smnas.detectors.torchvision import Backbone, Detector
from smnas.encoding import Encoding
from smnas.errors import SpaceError
from smnas.records import identity
from smnas.stopping import no_larger

REFERENCE = "search_spaces.modular:ModularSpace"
SIZE = "96x96"
SMALL = {
    "num_classes": 3,
    "input_sizes": (SIZE, "160x128"),
    "neck_widths": (32, 64),
    "base_widths": (16, 24, 32),
    "blocks_range": (4, 8),
    "head_width": 32,
}
"""Arguments of a space that is small enough to train."""

FASTER_RCNN = {
    "neck": "fpn",
    "neck_start": 2,
    "neck_end": 5,
    "neck_width": 64,
    "rpn": "rpn",
    "head": "rcnn",
    "input_size": SIZE,
}
STRUCTURES = {
    "fpn": FASTER_RCNN,
    "wide": {**FASTER_RCNN, "neck_start": 3, "neck_width": 256},
    "none": {**FASTER_RCNN, "neck": "none"},
    "retinanet": {**FASTER_RCNN, "neck_start": 3, "rpn": "none", "head": "retinanet"},
    "cascade": {**FASTER_RCNN, "rpn": "ga_rpn", "head": "cascade3"},
}
PARENTS = [
    {"backbone": backbone, **structure}
    for backbone in BACKBONES
    for key, structure in STRUCTURES.items()
    if backbone == "resnet18" or key in ("fpn", "none")
] + [{"backbone": "mobilenet_v2", **STRUCTURES["cascade"]}]


def name(sample: dict) -> str:
    return "-".join(str(value) for value in sample.values())


def serial(string: str, **structure: object) -> dict:
    """A modular sample of a string; a plain Faster R-CNN but for the named choices."""
    return {**labels_of(BackboneString.parse(string)), **FASTER_RCNN, **structure}


@pytest.fixture(scope="module")
def joint() -> ModularSpace:
    return ModularSpace(**SMALL)


@pytest.fixture(scope="module")
def structural() -> StructuralSpace:
    return StructuralSpace(num_classes=3, input_sizes=(SIZE,), head_width=32)


# -- what is in the space --------------------------------------------------------------------------


def test_choices_in_their_order():
    found = Encoding.of(ModularSpace())
    options = {choice.label: list(choice.options) for choice in found.choices}
    assert options == {
        "block": ["basicblock", "bottleneck", "resnext"],
        "base_width": [48, 56, 64, 72],
        **{f"depth{k}": list(range(1, 13)) for k in (1, 2, 3, 4)},
        **{f"double{k}": list(range(k, 13 + k)) for k in (1, 2, 3)},
        "neck": ["fpn", "none"],
        "neck_start": [2, 3],
        "neck_end": [5, 6],
        "neck_width": [64, 128, 256],
        "rpn": ["rpn", "ga_rpn", "none"],
        "head": ["rcnn", "cascade2", "cascade3", "retinanet"],
        "input_size": ["512x512", "800x600", "1080x720", "1333x800"],
    }
    nominal = [choice.label for choice in found.choices if not choice.ordinal]
    assert nominal == ["block", "neck", "rpn", "head", "input_size"]


def test_what_is_larger():
    """A wider backbone, or one with more blocks in a stage; also in the union of several spaces."""
    spaces = [ModularSpace(base_widths=widths, blocks_range=[4, 6]) for widths in ([16], [16, 32])]
    encoding = Encoding.union([Encoding.of(space) for space in spaces])
    sizes = json.loads(json.dumps(encoding.describe()["monotone"]))
    assert sizes == json.loads(json.dumps(encoding.monotone))
    first = spaces[1].draw(np.random.default_rng(0)) | {"base_width": 16, "depth1": 1}
    for change in ({"base_width": 32}, {"depth1": 3}, {"base_width": 32, "depth1": 2}):
        assert no_larger(first, {**first, **change}, sizes)
        assert not no_larger({**first, **change}, first, sizes)
    moved = {**first, "double1": int(first["double1"]) + 1}
    assert not no_larger(first, moved, sizes) and not no_larger(moved, first, sizes)


def test_sizes_of_the_paper():
    structures = (1 + 2 * 2 * 3) * 7 * 4
    assert ModularSpace().count_legal() == 406_428 * 3 * 4 * structures
    large = ModularSpace(blocks=("bottleneck",), base_widths=(64,), blocks_range=(5, 35))
    assert large.count_legal() == 207_417_404 * structures
    assert Encoding.of(large).describe()["legal"] == large.count_legal()


@pytest.mark.parametrize(
    ("structure", "structures"),
    [
        ({"neck": "none", "neck_width": 32}, 1),
        ({"neck_width": 16}, 2 * 1 * 3),
        ({"head": "cascade2", "input_size": "160x160"}, 2 * 2 * 2 * 2),
        ({"rpn": "none", "head": "retinanet"}, 2 * 1 * 2),
    ],
)
def test_closed_form_against_enumeration(structure, structures):
    parent = {**serial("bottleneck_16_11-2-2-2"), **structure}
    arguments = {**SMALL, "blocks_range": (4, 5), "base_widths": (16, 24), "blocks": ["bottleneck"]}
    space = ModularSpace(parent, **arguments)
    encoding = Encoding.of(space)
    legal = encoding.legal()
    assert len(legal) == space.count_legal() == (4 + 40) * 2 * structures
    assert len({str(string_of(encoding.sample(index))) for index in legal}) == (4 + 40) * 2
    assert encoding.check(parent).tolist() in legal.tolist()


def test_a_mobilenet_has_one_inside():
    parent = {"backbone": "mobilenet_v2", **FASTER_RCNN}
    space = ModularSpace(parent, **{**SMALL, "blocks_range": (4, 4), "base_widths": (16, 24)})
    encoding = Encoding.of(space)
    legal = [encoding.sample(index) for index in encoding.legal()]
    mobilenets = [sample for sample in legal if sample["block"] == MOBILENET]
    assert len(legal) == space.count_legal() == (3 * 2 * 4 + 1) * 4
    assert len(mobilenets) == 4
    with pytest.raises(SpaceError, match="mobilenet_v2 has the numbers of the smallest string"):
        space.freeze({**mobilenets[0], "base_width": 24})


def test_only_a_mobilenets_space_has_mobilenets(joint):
    assert MOBILENET not in Encoding.of(joint).choices[0].options


@pytest.mark.parametrize("parent", PARENTS, ids=name)
def test_a_structures_control_is_in_its_space(parent):
    with torch.device("meta"):
        space = ModularSpace(parent, **{**SMALL, "input_sizes": ("128x128",)})
    control = space.from_structural(parent)
    encoding = Encoding.of(space)
    assert encoding.sample(encoding.check(control)) == control
    if parent["backbone"] in STRINGS:
        assert str(string_of(control)) == STRINGS[parent["backbone"]]
    options = {choice.label: choice.options for choice in encoding.choices}
    for label in ("neck", "rpn", "input_size"):
        assert options[label] == (parent[label],)
    cascade = parent["head"] == "cascade3"
    assert options["head"] == (("cascade2", "cascade3") if cascade else (parent["head"],))


def test_a_modular_sample_may_be_the_structure():
    parent = serial("resnext_40_1-2-21111111111-2", neck_width=48)
    options = {c.label: c.options for c in Encoding.of(ModularSpace(parent, **SMALL)).choices}
    assert options["base_width"] == (16, 24, 32, 40)
    assert options["neck_width"] == (32, 48, 64)
    assert options["depth3"] == tuple(range(1, 12))


# -- detectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", PARENTS, ids=name)
def test_the_control_has_the_parents_parameters(joint, structural, parent):
    with torch.device("meta"):
        wanted = structural.freeze(parent)
        found = joint.freeze(joint.from_structural(parent))
    shapes = [[(n, p.shape) for n, p in model.named_parameters()] for model in (wanted, found)]
    assert shapes[0] == shapes[1]
    assert found.model.backbone.neck.stages == wanted.model.backbone.neck.stages


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_the_control_starts_from_the_parents_weights(joint, structural, backbone):
    parent = {"backbone": backbone, **STRUCTURES["cascade"]}
    torch.manual_seed(0)
    wanted = structural.freeze(parent).state_dict()
    torch.manual_seed(0)
    found = joint.freeze(joint.from_structural(parent)).state_dict()
    assert list(wanted) == list(found)
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_freezing_takes_samples_of_any_structure(joint):
    """Beyond the ranges of the space, as those of a parent's group may be."""
    detector = joint.freeze(serial("bottleneck_40_1-211111-12-2", neck_end=6, input_size="192x192"))
    assert type(detector) is Detector
    assert str(detector.model.backbone.backbone.string) == "bottleneck_40_1-211111-12-2"
    assert detector.num_classes == 3
    assert list(detector.model.backbone.neck.stages) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "block"}, "wanted a block kind, got 'block'"),
        ({"base_width": 17}, "base_width: wanted an even number, got 17"),
        ({"depth1": 0}, "depth1: wanted a positive integer, got 0"),
        ({"depth1": "1"}, "depth1: wanted a positive integer, got '1'"),
        ({"double3": 6}, "doublings: wanted different indices of blocks from 0 to 4"),
        ({"double3": 3}, "doublings: wanted different indices of blocks from 0 to 4"),
        ({"rpn": "none"}, "'one-stage heads and no others go without an RPN' does not hold"),
        ({"neck": "none"}, "neck_width.*wanted one of .32., got 64"),
        ({"neck_end": 6}, "'96x96 is too small for level 6' does not hold"),
        ({"neck_start": 4}, "wanted a start of 2 or 3"),
        ({"neck_width": "64"}, "neck_width: wanted a positive integer, got '64'"),
        ({"head": "mask"}, "head: wanted one of"),
        ({"input_size": "96"}, "input_size: wanted WIDTHxHEIGHT"),
        ({"widht": 3}, "no choice named 'widht'"),
        ({"backbone": "resnet18"}, "no choice named '.*'"),
    ],
)
def test_foreign_samples(joint, changes, message):
    with pytest.raises(SpaceError, match=message):
        joint.freeze({**serial("basicblock_16_11-2-2-2"), **changes})


def test_a_missing_choice(joint):
    sample = serial("basicblock_16_11-2-2-2")
    sample.pop("double2")
    with pytest.raises(SpaceError, match="choice 'double2' is missing"):
        joint.freeze(sample)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": []}, "blocks: wanted a list"),
        ({"blocks": ["bottelneck"]}, "blocks: .*did you mean 'bottleneck'"),
        ({"blocks": ["mobilenet_v2"]}, "blocks: wanted one of"),
        ({"base_widths": [64, 48]}, "base_widths: wanted widths in ascending order"),
        ({"base_widths": [15]}, "base_widths: wanted an even number, got 15"),
        ({"base_widths": ["64"]}, "base_widths: wanted a positive integer, got '64'"),
        ({"neck_widths": [64, 32]}, "neck_widths: wanted widths in ascending order"),
        ({"blocks_range": [3, 9]}, "blocks_range: wanted 4 <= fewest <= most"),
        ({"blocks_range": [9, 5]}, "blocks_range: wanted 4 <= fewest <= most"),
        ({"blocks_range": 5}, "blocks_range: wanted two numbers, got 5"),
        ({"blocks_range": [5, "9"]}, "blocks_range: wanted a positive integer, got '9'"),
        ({"input_sizes": ["64x64"]}, "input_sizes: wanted a map of 3x3 cells"),
        ({"norm": "frozen_bn"}, "norm: wanted gn_ws, gn or bn"),
        ({"structure": "resnet18"}, "structure: wanted a sample, got 'resnet18'"),
        ({"structure": {"backbone": "resnet18"}}, "choice 'neck' is missing"),
        ({"structure": {**FASTER_RCNN, "backbone": "resnet19"}}, "did you mean 'resnet18'"),
        ({"structure": {**PARENTS[0], "rpn": "none"}}, "'one-stage heads .* does not hold"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(SpaceError, match=message):
        load_space(REFERENCE, {**SMALL, **arguments})


def covering() -> list[dict]:
    """Few legal samples in which every option of the small space occurs, and a MobileNet."""
    space = ModularSpace(**{**SMALL, "input_sizes": (SIZE,)})
    rng = np.random.default_rng(0)
    samples = [space.draw(rng) for _ in range(2000)]
    missing = {item for sample in samples for item in sample.items()}
    chosen = []
    while missing:
        best = max(samples, key=lambda sample: len(missing & set(sample.items())))
        missing -= set(best.items())
        chosen.append(best)
    return [*chosen, ModularSpace(**SMALL).from_structural(PARENTS[-1])]


COVERING = covering()


def test_the_covering_covers(joint):
    for choice in Encoding.of(joint).choices:
        if choice.label not in ("input_size", "neck_end"):
            assert set(choice.options) <= {sample[choice.label] for sample in COVERING}
    assert COVERING[-1]["block"] == MOBILENET
    assert len(COVERING) < 15


@pytest.mark.parametrize("sample", COVERING, ids=name)
def test_builds_trains_and_detects(joint, sample):
    torch.manual_seed(0)
    detector = joint.freeze(sample)
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    boxes = [[2, 2, 14, 14], [20, 4, 44, 28], [50, 6, 94, 50], [8, 20, 84, 94], [0, 0, 95, 95]]
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([1, 2, 3, 1, 2])}
    losses = detector([image], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [n for n, p in detector.named_parameters() if not has_gradient(p)] == []
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert set(found) == {"boxes", "labels", "scores"}


def has_gradient(parameter: nn.Parameter) -> bool:
    slope = parameter.grad
    return slope is not None and bool(slope.isfinite().all()) and bool((slope != 0).any())


def test_a_mobilenets_backbone(joint):
    detector = joint.freeze(COVERING[-1])
    assert type(detector.model.backbone.backbone) is Backbone


# -- operators -------------------------------------------------------------------------------------


def spaces() -> dict[str, ModularSpace]:
    parents = {
        "resnet18": {"backbone": "resnet18", **FASTER_RCNN},
        "resnet101": {"backbone": "resnet101", **STRUCTURES["cascade"]},
        "mobilenet": {"backbone": "mobilenet_v2", **STRUCTURES["retinanet"]},
        "none": {"backbone": "resnext50", **STRUCTURES["none"]},
    }
    with torch.device("meta"):
        return {
            "joint": ModularSpace(**SMALL, neck_ends=(5, 6, 7)),
            "tiny": ModularSpace(parents["none"], **{**SMALL, "blocks_range": (4, 4)}),
            **{key: ModularSpace(parent, **SMALL) for key, parent in parents.items()},
        }


SPACES = spaces()
any_space = st.sampled_from(list(SPACES.values()))
any_seed = st.integers(0, 2**32)


@given(any_space, any_seed)
@settings(deadline=None)
def test_mutants_are_legal_and_differ_from_their_parent(space, seed):
    rng = np.random.default_rng(seed)
    encoding = Encoding.of(space)
    sample = space.draw(rng)
    encoding.check(sample)
    for _ in range(4):
        child = space.mutate(sample, rng)
        encoding.check(child)
        assert identity(child) != identity(sample)
        assert list(child) == [choice.label for choice in encoding.choices]
        sample = child


@given(any_space, any_seed)
@settings(deadline=None)
def test_children_of_two_are_legal_and_made_of_them(space, seed):
    rng = np.random.default_rng(seed)
    first, second = space.draw(rng), space.draw(rng)
    child = space.crossover(first, second, rng)
    Encoding.of(space).check(child)
    assert string_of(child) in (string_of(first), string_of(second))
    assert all(child[label] in (first[label], second[label]) for label in STRUCTURE)
    if string_of(first) != string_of(second) and any(first[k] != second[k] for k in STRUCTURE):
        assert child not in (first, second)
    assert space.crossover(first, first, rng) == first


@given(any_space, any_seed)
@settings(deadline=None)
def test_equal_seeds_give_equal_children(space, seed):
    def children() -> list[str]:
        rng = np.random.default_rng(seed)
        first, second = space.draw(rng), space.draw(rng)
        return [identity(space.mutate(first, rng)), identity(space.crossover(first, second, rng))]

    assert children() == children()


def reached(space: ModularSpace, start: dict) -> set[str]:
    """Identities of all samples that single moves lead to."""
    operators = space._operators
    seen, queue = {identity(start)}, deque([start])
    while queue:
        sample = queue.popleft()
        for move in (*MOVES, "base_width"):
            for found in operators.neighbours(sample, move):
                if identity(found) not in seen:
                    seen.add(identity(found))
                    queue.append(found)
    return seen


def legal(space: ModularSpace) -> Iterable[str]:
    encoding = Encoding.of(space)
    return (identity(encoding.sample(index)) for index in encoding.legal())


def test_every_string_is_reached():
    arguments = {**SMALL, "base_widths": (16, 24), "blocks_range": (5, 7), "blocks": ["resnext"]}
    space = ModularSpace(
        {**serial("resnext_16_1-21-2-12"), "neck": "none", "neck_width": 32}, **arguments
    )
    found = reached(space, space.draw(np.random.default_rng(0)))
    assert found == set(legal(space))
    assert len(found) == 2 * count_stages(5, 7) == 2 * (40 + 200 + 700)


@pytest.mark.parametrize("backbone", [None, "mobilenet_v2"])
def test_every_structure_is_reached(backbone):
    parent = None if backbone is None else {"backbone": backbone, **STRUCTURES["cascade"]}
    arguments = {**SMALL, "base_widths": (16,), "blocks_range": (4, 4), "blocks": ["bottleneck"]}
    space = ModularSpace(parent, **arguments, neck_ends=(5, 6))
    found = reached(space, space.draw(np.random.default_rng(0)))
    assert found == set(legal(space))
    assert len(found) == space.count_legal()


def test_mutation_reaches_everything():
    """A walk through a space of 16 samples meets them all; coming back is no exception."""
    structure = {**STRUCTURES["none"], "neck_width": 32, "rpn": "rpn", "head": "cascade2"}
    arguments = {**SMALL, "base_widths": (16, 24), "blocks_range": (4, 4), "blocks": ["basicblock"]}
    space = ModularSpace({**serial("basicblock_16_1-2-2-2"), **structure}, **arguments)
    assert space.count_legal() == 16
    rng = np.random.default_rng(0)
    sample = space.draw(rng)
    seen: Counter[str] = Counter()
    for _ in range(800):
        sample = space.mutate(sample, rng)
        seen[identity(sample)] += 1
    assert set(seen) == set(legal(space))
    assert min(seen.values()) > 800 / 16 / 4


def test_the_base_width_moves_to_a_neighbour_in_every_second_mutant():
    space = ModularSpace(**{**SMALL, "base_widths": (16, 24, 32, 48)})
    rng = np.random.default_rng(0)
    widths = Counter(
        space.mutate(serial("resnext_24_11-21-12-2"), rng)["base_width"] for _ in range(400)
    )
    assert set(widths) == {16, 24, 32}
    assert abs(widths[24] - 200) < 60


def test_draws_are_uniform():
    """Chi-square over 100 samples, a MobileNet's among them: its 99.9 % point is 148.2."""
    parent = {"backbone": "mobilenet_v2", **FASTER_RCNN}
    arguments = {**SMALL, "base_widths": (16, 24), "blocks_range": (4, 4)}
    space = ModularSpace(parent, **arguments)
    rng = np.random.default_rng(0)
    counts = Counter(identity(space.draw(rng)) for _ in range(4000))
    assert set(counts) == set(legal(space)) and len(counts) == 100
    assert sum((count - 40) ** 2 / 40 for count in counts.values()) < 148.2


def test_encoding_takes_the_spaces_own_draw(joint):
    encoding = Encoding.of(joint)
    indices = [encoding.random(np.random.default_rng(7)) for _ in range(2)]
    assert indices[0].tolist() == indices[1].tolist()
    assert encoding.sample(indices[0]) == joint.draw(np.random.default_rng(7))
    assert all(encoding.is_legal(index) for index in indices)


def test_foreign_parents_are_refused(joint):
    rng = np.random.default_rng(0)
    sample = serial("resnext_40_11-21-12-2")
    with pytest.raises(SpaceError, match="base_width"):
        joint.mutate(sample, rng)
    with pytest.raises(SpaceError, match="base_width"):
        joint.crossover(joint.draw(rng), sample, rng)


def test_nothing_to_mutate(monkeypatch):
    operators = ModularSpace(**SMALL)._operators
    monkeypatch.setattr(type(operators), "neighbours", lambda *_: [])
    with pytest.raises(SpaceError, match="no sample besides"):
        operators.mutate(serial("basicblock_16_1-2-2-2"), np.random.default_rng(0))

"""The modular stage: the inside of a detector, for one structure or for all of them.

An NNI model space whose samples say the structure, too, so that each is a whole detector. It brings
its own operators, SM-NAS's: general ones would rarely keep a backbone string valid. Takes from
`search_spaces.structural` what both stages share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from operator import and_

import numpy as np
import torch
from nni.mutable import Categorical, ExpressionConstraint, MutableExpression, ensure_frozen
from torch import nn

from search_spaces.structural import (
    structure_options,
    structure_rules,
    structure_sizes,
    wire_detector,
)
from smnas.detectors.components import check_count, check_list, check_option, load_library
from smnas.detectors.operators import (
    DEPTHS,
    DOUBLES,
    INNER,
    MOBILENET,
    NECK,
    STRUCTURE,
    Insides,
    Operators,
    check_even,
    labels_of,
    string_of,
)
from smnas.detectors.space import DetectorSpace
from smnas.detectors.string_moves import DOUBLINGS, STAGES
from smnas.detectors.strings import KINDS, STRINGS, BackboneString
from smnas.encoding import Encoding
from smnas.errors import SpaceError
from smnas.records import Option, Sample

CASCADES = ("cascade2", "cascade3")


class ModularSpace(DetectorSpace):
    """Block kind, base width, blocks per stage, doublings, neck (Yao et al. 2020, modular level).

    Four stages, exactly three blocks that double the width, anywhere. The places of these blocks
    (`double1` to `double3`) are counted from 1 over all stages, ascending.

    Given a structure, the space holds what may become of it: neck or none, proposals, kind of head
    and input size are its own, and the other options reach as far as to hold the structure itself.
    The number of a cascade's stages stays open. Without a structure everything is open.

    Args:
        structure: a sample of `StructuralSpace`, or of a modular space.
        num_classes: without background.
        input_sizes: WIDTHxHEIGHT each; pictures are scaled to fit.
        neck_ends: coarsest levels of the pyramid: 5, 6, and 7 for one-stage detectors only.
        neck_widths: channels of the pyramid's maps, ascending.
        blocks: kinds of residual blocks.
        base_widths: even, ascending; the last stage has 8 times as many channels (and a
            bottleneck's expansion).
        blocks_range: fewest and most blocks of all stages together, at least 4.
        norm: `gn_ws`, `gn` or `bn`.
        head_width: of the two fully connected layers of R-CNN heads.
        library: `torchvision`, `detectron2`, or `auto`.

    Raises:
        SpaceError: an argument is out of range, or the structure is none.
    """

    def __init__(
        self,
        structure: Sample | None = None,
        num_classes: int = 80,
        input_sizes: Sequence[str] = ("512x512", "800x600", "1080x720", "1333x800"),
        neck_ends: Sequence[int] = (5, 6),
        neck_widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[str] = KINDS,
        base_widths: Sequence[int] = (48, 56, 64, 72),
        blocks_range: Sequence[int] = (5, 15),
        norm: str = "gn_ws",
        head_width: int = 1024,
        library: str = "auto",
    ) -> None:
        super().__init__()
        self._insides = _insides(blocks, base_widths, blocks_range)
        _check_widths("neck_widths", neck_widths)
        options = structure_options(input_sizes, neck_ends, neck_widths)
        self._first_neck = {label: options[label][0] for label in NECK[1:]}
        if structure is not None:
            _check_sample(structure)
            self._insides = self._insides.including(_string(structure))
            options = _narrowed(options, structure)
        self.monotone = {**_inner_sizes(self._insides), **structure_sizes(options)}
        parts = load_library(library)

        inner = _inner_choices(self, self._insides)
        outer = {label: self.choice(label, listed) for label, listed in options.items()}
        rules = structure_rules(outer)
        self._outer = Encoding({**outer, **_constraints(rules)})
        if structure is not None:
            self._outer.check(self._structure_of(structure))
        for label, expression in {**_inner_rules(inner, self._insides), **rules}.items():
            self.rule(label, expression)

        body = (
            parts.MutableBackbone(MOBILENET, norm=norm)
            if ensure_frozen(inner["block"]) == MOBILENET
            else parts.MutableSerialBackbone(_string_expression(inner), norm=norm)
        )
        self.detector = wire_detector(
            parts, body, outer, num_classes=num_classes, head_width=head_width, norm=norm
        )

    def from_structural(self, sample: Sample) -> dict[str, Option]:
        """The sample that builds the same detector as one of `StructuralSpace` does.

        Raises:
            SpaceError: a choice is missing, or the backbone is unknown.
        """
        _check_sample(sample)
        return {**self._insides.labels(_string(sample)), **self._structure_of(sample)}

    def freeze(self, sample: Sample) -> nn.Module:
        """The detector of a sample, newly initialised from torch's global generator.

        The sample is held against the space of its own structure, which reaches as far as it: a
        trial knows its experiment's ranges, but not the structure that its candidate comes from.

        Raises:
            SpaceError: the sample is of no such space.
        """
        # The default detector is not wanted: it takes neither memory nor random numbers.
        with torch.device("meta"):
            own = type(self)(**{**self.trace_kwargs, "structure": dict(sample)})
        return DetectorSpace.freeze(own, sample)

    def count_legal(self) -> int:
        """Number of legal samples, in closed form."""
        return self._insides.count * len(self._operators.structures)

    def draw(self, rng: np.random.Generator) -> dict[str, Option]:
        """A legal sample, each equally likely."""
        return self._operators.draw(rng)

    def mutate(self, sample: Sample, rng: np.random.Generator) -> dict[str, Option]:
        """Another legal sample, one to four moves away (`detectors.operators`).

        Raises:
            SpaceError: the sample is not of this space.
        """
        return self._operators.mutate(self._checked(sample), rng)

    def crossover(
        self, first: Sample, second: Sample, rng: np.random.Generator
    ) -> dict[str, Option]:
        """A legal sample of parts of two (`detectors.operators`).

        Returns:
            A sample that differs from both, or one of them if they have nothing to exchange.

        Raises:
            SpaceError: a sample is not of this space.
        """
        return self._operators.crossover(self._checked(first), self._checked(second), rng)

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding.of(self)

    @cached_property
    def _operators(self) -> Operators:
        structures = [self._outer.sample(index) for index in self._outer.legal()]
        return Operators(self._insides, structures)

    def _checked(self, sample: Sample) -> dict[str, Option]:
        return self._encoding.sample(self._encoding.check(sample))

    def _structure_of(self, sample: Sample) -> dict[str, Option]:
        """A sample's structure; a missing neck has the first levels and width of this space, which
        need not be those of a structural space.
        """
        structure = {label: sample[label] for label in STRUCTURE}
        without = "backbone" in sample and structure["neck"] == "none"
        return {**structure, **self._first_neck} if without else structure


def _inner_sizes(insides: Insides) -> dict[str, Sequence[Sequence[Option]]]:
    """What is larger inside a backbone: wider, and more blocks in a stage. Kinds of blocks and
    places where the width doubles do not compare.
    """
    depths = tuple(range(1, insides.most + 1))
    return {"base_width": [insides.base_widths], **dict.fromkeys(DEPTHS, [depths])}


def _insides(
    blocks: Sequence[str], base_widths: Sequence[int], blocks_range: Sequence[int]
) -> Insides:
    check_list("blocks", blocks, "kinds of blocks")
    for block in blocks:
        check_option("blocks", block, KINDS)
    _check_widths("base_widths", base_widths)
    for width in base_widths:
        check_even("base_widths", width)
    if not isinstance(blocks_range, list | tuple) or len(blocks_range) != 2:
        raise SpaceError(f"blocks_range: wanted two numbers, got {blocks_range!r}")
    for number in blocks_range:
        check_count("blocks_range", number)
    fewest, most = blocks_range
    if not STAGES <= fewest <= most:
        raise SpaceError(f"blocks_range: wanted {STAGES} <= fewest <= most, got {blocks_range!r}")
    return Insides(tuple(blocks), tuple(base_widths), fewest, most)


def _check_widths(part: str, widths: Sequence[int]) -> None:
    check_list(part, widths, "widths")
    for width in widths:
        check_count(part, width)
    if sorted(widths) != list(widths):
        raise SpaceError(f"{part}: wanted widths in ascending order, got {widths!r}")


def _check_sample(sample: Sample) -> None:
    """Refuses what is neither a structural nor a modular sample, as far as ranges need it."""
    if not isinstance(sample, Mapping):
        raise SpaceError(f"structure: wanted a sample, got {sample!r}")
    inner = ("backbone",) if "backbone" in sample else INNER
    for label in (*inner, *STRUCTURE):
        if label not in sample:
            raise SpaceError(f"sample: choice {label!r} is missing; got {sorted(sample)}")
    for label in NECK[1:]:
        check_count(label, sample[label])


def _string(sample: Sample) -> BackboneString | None:
    """The backbone of a structural or a modular sample; None for a MobileNet."""
    if "backbone" not in sample:
        return string_of(sample)
    check_option("backbone", sample["backbone"], (*STRINGS, MOBILENET))
    text = STRINGS.get(str(sample["backbone"]))
    return None if text is None else BackboneString.parse(text)


def _narrowed(
    options: Mapping[str, Sequence[Option]], structure: Sample
) -> dict[str, Sequence[Option]]:
    """The options that a structure leaves open, with its own among them."""
    narrowed: dict[str, Sequence[Option]] = {label: (structure[label],) for label in STRUCTURE}
    if structure["head"] in CASCADES:
        narrowed["head"] = CASCADES
    for label in NECK[1:]:
        narrowed[label] = (
            options[label][:1]
            if structure["neck"] == "none"
            else sorted({*options[label], structure[label]})
        )
    return narrowed


def _inner_choices(space: DetectorSpace, insides: Insides) -> dict[str, Categorical]:
    longest = insides.most - STAGES + 1
    last = insides.most - DOUBLINGS + 1
    options: dict[str, Sequence[Option]] = {
        "block": insides.blocks,
        "base_width": insides.base_widths,
        **{label: range(1, longest + 1) for label in DEPTHS},
        **{label: range(k + 1, last + k + 1) for k, label in enumerate(DOUBLES)},
    }
    defaults = labels_of(insides.first)
    return {label: space.choice(label, options[label], defaults[label]) for label in INNER}


def _inner_rules(
    inner: Mapping[str, Categorical], insides: Insides
) -> dict[str, MutableExpression]:
    depth1, depth2, depth3, depth4 = (inner[label] for label in DEPTHS)
    double1, double2, double3 = (inner[label] for label in DOUBLES)
    count = depth1 + depth2 + depth3 + depth4
    fewest, most = insides.fewest, insides.most
    rules = {
        "doublings ascend": (double1 < double2) & (double2 < double3),
        f"{fewest} to {most} blocks": (count >= fewest) & (count <= most),
        "doublings are places of blocks": double3 <= count,
    }
    if MOBILENET in insides.blocks:
        numbers = list(labels_of(insides.first).items())[1:]
        unchanged = reduce(and_, (inner[label] == number for label, number in numbers))
        rules[f"{MOBILENET} has the numbers of the smallest string"] = (
            inner["block"] != MOBILENET
        ) | unchanged
    return rules


def _constraints(rules: Mapping[str, MutableExpression]) -> dict[str, ExpressionConstraint]:
    return {label: ExpressionConstraint(e, label=label) for label, e in rules.items()}


def _string_expression(inner: Mapping[str, Categorical]) -> MutableExpression:
    return MutableExpression(
        lambda *values: str(string_of(dict(zip(INNER, values, strict=True)))),
        f"string({', '.join(['{}'] * len(INNER))})",
        list(inner.values()),
    )

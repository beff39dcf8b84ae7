"""The modular stage: the inside of a detector, for one structure or for all of them.

An NNI model space whose samples say the structure, too, so that each is a whole detector. It brings
its own operators, SM-NAS's: general ones would rarely keep a backbone string valid. Reads
`search_spaces.structural` for what both stages share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from nni.mutable import (
    Categorical,
    ExpressionConstraint,
    MutableExpression,
    ensure_frozen,
)
from torch import nn

from search_spaces.structural import structure_options, structure_rules, wire_detector
from smnas.detectors.components import (
    check_count,
    check_list,
    check_option,
    load_library,
)
from smnas.detectors.space import DetectorSpace
from smnas.detectors.string_moves import (
    DOUBLINGS,
    STAGES,
    bound_moves,
    count_stages,
    doubling_moves,
    draw_stages,
    insertions,
    removals,
    smallest_stages,
)
from smnas.detectors.strings import KINDS, BackboneString
from smnas.encoding import Encoding
from smnas.errors import SpaceError
from smnas.records import Option, Sample

MOBILENET = "mobilenet_v2"
"""The one backbone without a string: a block option with a single inside."""

STRINGS = {
    "resnet18": "basicblock_64_11-21-21-21",
    "resnet34": "basicblock_64_111-2111-211111-211",
    "resnet50": "bottleneck_64_111-2111-211111-211",
    "resnet101": f"bottleneck_64_111-2111-2{'1' * 22}-211",
    "resnext50": "resnext_64_111-2111-211111-211",
    "resnext101": f"resnext_64_111-2111-2{'1' * 22}-211",
}
"""The structural space's backbones as strings."""

CASCADES = ("cascade2", "cascade3")
DEPTHS = tuple(f"depth{k + 1}" for k in range(STAGES))
DOUBLES = tuple(f"double{k + 1}" for k in range(DOUBLINGS))
INNER = ("block", "base_width", *DEPTHS, *DOUBLES)
NECK = ("neck", "neck_start", "neck_end", "neck_width")
HEADS = ("rpn", "head")
STRUCTURE = (*NECK, *HEADS, "input_size")

MOVES = {
    "insert": 1.0, "remove": 1.0, "doubling": 1.0, "bound": 1.0, "neck": 1.0, "head": 0.5,
    "input_size": 0.5, "block": 0.25,
}  # fmt: skip
"""What a mutation draws from, by weight; SM-NAS weighs the four moves of a string alike."""

MOST_MOVES = 3
"""A mutation makes one move to so many."""


@dataclass(frozen=True)
class _Inside:
    """What may be chosen of a backbone."""

    blocks: tuple[str, ...]
    base_widths: tuple[int, ...]
    fewest: int
    most: int

    @property
    def first(self) -> BackboneString:
        """The default, and what stands for the missing string of a MobileNet."""
        stages = smallest_stages(self.fewest)
        return BackboneString(self.blocks[0], self.base_widths[0], stages)

    def including(self, parent: BackboneString | None) -> _Inside:
        """Ranges that reach as far as a parent; None stands for a MobileNet."""
        if parent is None:
            return replace(self, blocks=(*self.blocks, MOBILENET))
        count = len(parent.blocks)
        return _Inside(
            tuple(dict.fromkeys((*self.blocks, parent.kind))),
            tuple(sorted({*self.base_widths, parent.base_width})),
            min(self.fewest, count),
            max(self.most, count),
        )


class ModularSpace(DetectorSpace):
    """Block kind, base width, blocks per stage, doublings, neck (Yao et al. 2020, modular level).

    Four stages, exactly three blocks that double the width, anywhere. The places of these blocks
    (`double1` to `double3`) are counted from 1 over all stages, ascending.

    Given a structure, the space holds what may become of it: neck or none, proposals, kind of head
    and input size are its own, and its other options reach as far as to hold the structure itself.
    The number of a cascade's stages stays open. Without one, everything is open.

    Args:
        structure: a sample of `StructuralSpace`, or of a modular space.
        num_classes: without background.
        input_sizes: WIDTHxHEIGHT each; pictures are scaled to fit.
        neck_ends: coarsest levels of the pyramid: 5, 6, and 7 for one-stage detectors only.
        neck_widths: channels of the pyramid's maps, ascending.
        blocks: kinds of residual blocks.
        base_widths: even, ascending; the last stage has 8 times as many (and a bottleneck's
            expansion).
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
        inside = _inside(blocks, base_widths, blocks_range)
        _check_widths("neck_widths", neck_widths)
        options = structure_options(input_sizes, neck_ends, neck_widths)
        self._first_neck = {label: options[label][0] for label in NECK[1:]}
        if structure is not None:
            _check_structure(structure)
            inside = inside.including(_string(structure))
            options = _narrowed(options, structure)
        self._inside = inside
        parts = load_library(library)

        inner = {
            label: self.choice(label, listed, default)
            for label, (listed, default) in _inner_options(inside).items()
        }
        outer = {label: self.choice(label, listed) for label, listed in options.items()}
        rules = structure_rules(outer)
        self._outer = Encoding({**outer, **_constraints(rules)})
        if structure is not None:
            self._outer.check(
                {label: self._structure_of(structure)[label] for label in STRUCTURE}
            )
        for label, expression in {**_inner_rules(inner, inside), **rules}.items():
            self.rule(label, expression)

        body = (
            parts.MutableBackbone(MOBILENET, norm=norm)
            if ensure_frozen(inner["block"]) == MOBILENET
            else parts.MutableSerialBackbone(_string_expression(inner), norm=norm)
        )
        self.detector = wire_detector(
            parts,
            body,
            outer,
            num_classes=num_classes,
            head_width=head_width,
            norm=norm,
        )

    def from_structural(self, sample: Sample) -> dict[str, Option]:
        """The sample that builds the same detector as one of `StructuralSpace` does.

        Raises:
            SpaceError: a choice is missing, or the backbone is unknown.
        """
        _check_structure(sample)
        return {**self._inner_labels(_string(sample)), **self._structure_of(sample)}

    def freeze(self, sample: Sample) -> nn.Module:
        """The detector of a sample, newly initialised from torch's global generator.

        The sample is held against the space of its own structure, which its values widen: a trial
        knows the ranges of its experiment, but not the structure that its candidate comes from.

        Raises:
            SpaceError: the sample is of no such space.
        """
        with torch.device("meta"):
            own = type(self)(**{**self.trace_kwargs, "structure": dict(sample)})
        return DetectorSpace.freeze(own, sample)

    # -- what `Encoding` and the optimiser take instead of general means ---------------------------

    def count_legal(self) -> int:
        """Number of legal samples, in closed form."""
        return self._count_insides() * len(self._structures)

    def draw(self, rng: np.random.Generator) -> dict[str, Option]:
        """A legal sample, each equally likely."""
        structure = self._structures[rng.integers(len(self._structures))]
        return {**self._draw_inside(rng), **structure}

    def mutate(self, sample: Sample, rng: np.random.Generator) -> dict[str, Option]:
        """Another sample near a legal one: the base width moves in every second child, then one to
        three of `MOVES` are made (Yao et al. 2020, modular level).

        Raises:
            SpaceError: the sample is not of this space.
        """
        child = parent = self._checked(sample)
        widths = self.neighbours(parent, "base_width")
        if widths and rng.random() < 0.5:
            child = _one_of(widths, rng)
        for _ in range(rng.integers(1, MOST_MOVES + 1)):
            child = self._moved(child, rng)
        return self._moved(child, rng) if child == parent else child

    def crossover(
        self, first: Sample, second: Sample, rng: np.random.Generator
    ) -> dict[str, Option]:
        """A legal sample of parts of two: the backbone of one, each other choice of either.

        Returns:
            A sample that differs from both, or one of them if they have nothing to exchange.

        Raises:
            SpaceError: a sample is not of this space.
        """
        parents = [self._checked(sample) for sample in (first, second)]
        structures = {tuple(s.values()) for s in self._structures}
        genes = itertools.product(*({p[label] for p in parents} for label in STRUCTURE))
        outer = sorted(set(genes) & structures, key=str)
        children = [
            {
                **{label: p[label] for label in INNER},
                **dict(zip(STRUCTURE, values, strict=True)),
            }
            for p in parents
            for values in outer
        ]
        return _one_of(
            [child for child in children if child not in parents] or parents, rng
        )

    def neighbours(self, sample: Sample, move: str) -> list[dict[str, Option]]:
        """All legal samples that one move leads to from a legal sample, never itself.

        Args:
            sample: of this space.
            move: a key of `MOVES`, or `base_width`.
        """
        return self._neighbours[move](dict(sample))

    def _checked(self, sample: Sample) -> dict[str, Option]:
        return self._encoding.sample(self._encoding.check(sample))

    def _moved(
        self, sample: dict[str, Option], rng: np.random.Generator
    ) -> dict[str, Option]:
        weights = np.array(list(MOVES.values()))
        order = rng.choice(
            len(MOVES), len(MOVES), replace=False, p=weights / weights.sum()
        )
        for k in order:
            if found := self.neighbours(sample, list(MOVES)[k]):
                return _one_of(found, rng)
        raise SpaceError(f"mutation: the space has no sample besides {sample}")

    @cached_property
    def _neighbours(
        self,
    ) -> dict[str, Callable[[dict[str, Option]], list[dict[str, Option]]]]:
        return {
            "insert": lambda sample: self._string_moves(sample, insertions),
            "remove": lambda sample: self._string_moves(sample, removals),
            "doubling": lambda sample: self._string_moves(sample, doubling_moves),
            "bound": lambda sample: self._string_moves(sample, bound_moves),
            "base_width": self._width_moves,
            "block": self._block_moves,
            "neck": lambda sample: self._structure_moves(sample, NECK, _is_near_neck),
            "head": lambda sample: self._structure_moves(sample, HEADS),
            "input_size": lambda sample: self._structure_moves(sample, ("input_size",)),
        }

    def _string_moves(
        self,
        sample: dict[str, Option],
        moves: Callable[[tuple[str, ...]], list[tuple[str, ...]]],
    ) -> list[dict[str, Option]]:
        string = _string(sample)
        if string is None:
            return []
        found = [replace(string, stages=stages) for stages in moves(string.stages)]
        allowed = range(self._inside.fewest, self._inside.most + 1)
        return [{**sample, **_labels(s)} for s in found if len(s.blocks) in allowed]

    def _width_moves(self, sample: dict[str, Option]) -> list[dict[str, Option]]:
        if sample["block"] == MOBILENET:
            return []
        widths = self._inside.base_widths
        at = widths.index(int(sample["base_width"]))
        near = [k for k in (at - 1, at + 1) if 0 <= k < len(widths)]
        return [{**sample, "base_width": widths[k]} for k in near]

    def _block_moves(self, sample: dict[str, Option]) -> list[dict[str, Option]]:
        others = [block for block in self._inside.blocks if block != sample["block"]]
        return [
            {
                **sample,
                **(
                    self._inner_labels(None) if block == MOBILENET else {"block": block}
                ),
            }
            for block in others
        ]

    def _structure_moves(
        self,
        sample: dict[str, Option],
        labels: Sequence[str],
        is_near: Callable[[Sample, Sample], bool] = lambda old, new: True,
    ) -> list[dict[str, Option]]:
        own = {label: sample[label] for label in STRUCTURE}
        kept = [label for label in STRUCTURE if label not in labels]
        return [
            {**sample, **found}
            for found in self._structures
            if found != own
            and all(found[k] == own[k] for k in kept)
            and is_near(own, found)
        ]

    # -- the ranges --------------------------------------------------------------------------------

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding.of(self)

    @cached_property
    def _structures(self) -> list[dict[str, Option]]:
        """All legal choices of everything but the backbone."""
        return [self._outer.sample(index) for index in self._outer.legal()]

    @property
    def _kinds(self) -> list[str]:
        return [block for block in self._inside.blocks if block != MOBILENET]

    def _count_insides(self) -> int:
        inside = self._inside
        strings = count_stages(inside.fewest, inside.most)
        kinds = len(self._kinds) * len(inside.base_widths)
        return kinds * strings + (MOBILENET in inside.blocks)

    def _draw_inside(self, rng: np.random.Generator) -> dict[str, Option]:
        inside = self._inside
        if MOBILENET in inside.blocks and rng.integers(self._count_insides()) == 0:
            return self._inner_labels(None)
        kind = self._kinds[rng.integers(len(self._kinds))]
        width = inside.base_widths[rng.integers(len(inside.base_widths))]
        return _labels(
            BackboneString(kind, width, draw_stages(inside.fewest, inside.most, rng))
        )

    def _inner_labels(self, string: BackboneString | None) -> dict[str, Option]:
        if string is None:
            return {**_labels(self._inside.first), "block": MOBILENET}
        return _labels(string)

    def _structure_of(self, sample: Sample) -> dict[str, Option]:
        """A sample's structure, with the first levels and width for a neck that it has not.

        What a structural space takes for them need not be among this space's options.
        """
        structure = {label: sample[label] for label in STRUCTURE}
        without = "backbone" in sample and structure["neck"] == "none"
        return {**structure, **self._first_neck} if without else structure


def _inside(
    blocks: Sequence[str], base_widths: Sequence[int], blocks_range: Sequence[int]
) -> _Inside:
    check_list("blocks", blocks, "kinds of blocks")
    for block in blocks:
        check_option("blocks", block, KINDS)
    _check_widths("base_widths", base_widths)
    for width in base_widths:
        _check_even("base_widths", width)
    if not isinstance(blocks_range, list | tuple) or len(blocks_range) != 2:
        raise SpaceError(f"blocks_range: wanted two numbers, got {blocks_range!r}")
    fewest, most = blocks_range
    for number in (fewest, most):
        check_count("blocks_range", number)
    if not STAGES <= fewest <= most:
        raise SpaceError(
            f"blocks_range: wanted fewest and most, from {STAGES} on, got {blocks_range!r}"
        )
    return _Inside(tuple(blocks), tuple(base_widths), fewest, most)


def _check_widths(part: str, widths: Sequence[int]) -> None:
    check_list(part, widths, "widths")
    for width in widths:
        check_count(part, width)
    if sorted(widths) != list(widths):
        raise SpaceError(f"{part}: wanted widths in ascending order, got {widths!r}")


def _check_even(part: str, width: int) -> None:
    if width % 2:
        raise SpaceError(f"{part}: wanted even numbers, got {width}")


def _check_structure(sample: Sample) -> None:
    """Refuses what is neither a structural nor a modular sample, as far as ranges need it."""
    if not isinstance(sample, Mapping):
        raise SpaceError(f"structure: wanted a sample, got {sample!r}")
    inner = ("backbone",) if "backbone" in sample else INNER
    for label in (*inner, *STRUCTURE):
        if label not in sample:
            raise SpaceError(
                f"sample: choice {label!r} is missing; got {sorted(sample)}"
            )
    for label in NECK[1:]:
        check_count(label, sample[label])


def _string(sample: Sample) -> BackboneString | None:
    """The backbone of a structural or a modular sample; None for a MobileNet.

    Raises:
        SpaceError: the numbers make no string.
    """
    name = sample.get("backbone", sample.get("block"))
    if name == MOBILENET:
        return None
    if "backbone" in sample:
        check_option("backbone", name, (*STRINGS, MOBILENET))
        return BackboneString.parse(STRINGS[str(name)])
    for label in INNER[1:]:
        check_count(label, sample[label])
    _check_even("base_width", sample["base_width"])
    return _from_labels(*(sample[label] for label in INNER))


def _from_labels(block: str, base_width: int, *numbers: int) -> BackboneString:
    depths, doubles = numbers[:STAGES], numbers[STAGES:]
    return BackboneString.from_numbers(
        block, base_width, depths, [place - 1 for place in doubles]
    )


def _labels(string: BackboneString) -> dict[str, Option]:
    places = [place + 1 for place in string.doublings]
    return dict(
        zip(
            INNER,
            (string.kind, string.base_width, *string.depths, *places),
            strict=True,
        )
    )


def _string_expression(inner: Mapping[str, Categorical]) -> MutableExpression:
    return MutableExpression(
        lambda *values: str(_from_labels(*values)),
        f"string({', '.join(['{}'] * len(INNER))})",
        list(inner.values()),
    )


def _inner_options(inside: _Inside) -> dict[str, tuple[Sequence[Option], Option]]:
    """`{label: (options, default)}`."""
    longest = inside.most - STAGES + 1
    options: list[Sequence[Option]] = [inside.blocks, inside.base_widths]
    options += [range(1, longest + 1)] * STAGES
    options += [range(k + 1, inside.most - DOUBLINGS + k + 2) for k in range(DOUBLINGS)]
    defaults = _labels(inside.first)
    return {
        label: (o, defaults[label]) for label, o in zip(INNER, options, strict=True)
    }


def _inner_rules(
    inner: Mapping[str, Categorical], inside: _Inside
) -> dict[str, MutableExpression]:
    block = inner["block"]
    depth1, depth2, depth3, depth4 = (inner[label] for label in DEPTHS)
    double1, double2, double3 = (inner[label] for label in DOUBLES)
    count = depth1 + depth2 + depth3 + depth4
    rules = {
        "doublings ascend": (double1 < double2) & (double2 < double3),
        f"{inside.fewest} to {inside.most} blocks": (count >= inside.fewest)
        & (count <= inside.most),
        "doublings are places of blocks": double3 <= count,
    }
    if MOBILENET in inside.blocks:
        first = list(_labels(inside.first).items())[1:]
        unchanged = [inner[label] == value for label, value in first]
        rules[f"the inner choices of {MOBILENET} are the default ones"] = (
            block != MOBILENET
        ) | _all(unchanged)
    return rules


def _all(expressions: Sequence[MutableExpression]) -> MutableExpression:
    first, *others = expressions
    for expression in others:
        first = first & expression
    return first


def _constraints(
    rules: Mapping[str, MutableExpression],
) -> dict[str, ExpressionConstraint]:
    return {label: ExpressionConstraint(e, label=label) for label, e in rules.items()}


def _narrowed(
    options: Mapping[str, Sequence[Option]], structure: Sample
) -> dict[str, Sequence[Option]]:
    """The options that a structure leaves open, with its own among them."""
    narrowed: dict[str, Sequence[Option]] = {
        label: (structure[label],) for label in ("neck", "rpn", "head", "input_size")
    }
    if structure["head"] in CASCADES:
        narrowed["head"] = CASCADES
    for label in NECK[1:]:
        if structure["neck"] == "none":
            narrowed[label] = options[label][:1]
        else:
            narrowed[label] = sorted({*options[label], structure[label]})
    return {label: narrowed[label] for label in STRUCTURE}


def _is_near_neck(old: Sample, new: Sample) -> bool:
    """Another kind of neck, or the same with one other level or width."""
    changed = [label for label in NECK if old[label] != new[label]]
    return "neck" in changed or len(changed) == 1


def _one_of(
    samples: Sequence[dict[str, Option]], rng: np.random.Generator
) -> dict[str, Option]:
    return samples[rng.integers(len(samples))]

"""The base of search spaces over detectors, and how a space is found by name.

`search_spaces/` derives from `DetectorSpace`; the command line, the optimiser and the trials get a
space from `load_space`. Imports NNI and torch, and no detector library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from nni.mutable import Categorical, ExpressionConstraint, MutableExpression
from torch import nn

from smnas.detectors.nas import ModelSpace, model_context
from smnas.encoding import Encoding
from smnas.errors import SpaceError, nearest
from smnas.records import Option, Sample


class DetectorSpace(ModelSpace, disable_init_wrapper=True):  # type: ignore[call-arg]
    """A search space whose samples are detectors.

    A subclass makes its choices in `__init__`, states its rules, and sets `detector` to parts that
    are wired to each other. Building a space builds one detector, that of the default options; they
    have to keep the rules.

    A subclass may know more of itself than its choices and rules say. Where it has these methods,
    they are taken instead of enumeration, chance and pymoo's own operators; whatever sample they
    give is legal:

    - `count_legal() -> int`: how many samples are legal;
    - `draw(rng: numpy.random.Generator) -> Sample`: one of them, each equally likely;
    - `mutate(sample, rng) -> Sample`: another one that is near to a sample;
    - `crossover(first, second, rng) -> Sample`: one made of two.

    It may also say which options are larger, and therefore at least as accurate by expectation:
    `monotone: Mapping[str, Sequence[Sequence[Option]]]` has `{label: lists from small to large}`;
    partial order pruning (`smnas.stopping`) wants it.

    Attributes:
        detector: the default detector.
    """

    detector: nn.Module

    def choice(
        self, label: str, options: Sequence[Option], default: Option | None = None
    ) -> Categorical:
        """A new choice; may be given to the `Mutable` parts and compared in rules.

        Args:
            label: its name in samples.
            options: different from each other.
            default: the option of the default detector; None for the first one.
        """
        listed = list(options)
        default = listed[0] if default is None else default
        return self.add_mutable(Categorical(listed, default=default, label=label))

    def rule(self, label: str, expression: MutableExpression) -> None:
        """States what every sample has to fulfil.

        Args:
            label: says in words what is ruled; part of the message for a sample that breaks it.
            expression: choices, or sums of them, compared by `==`, `!=`, `<`, `<=`, `>`, `>=` and
                joined by `&` and `|`; never `~`, which makes -2 of True, and -2 counts as true.
        """
        self.add_mutable(ExpressionConstraint(expression, label=label))

    def freeze(self, sample: Sample) -> nn.Module:
        """The detector of a sample, newly initialised from torch's global generator.

        Raises:
            SpaceError: the sample is not of this space.
        """
        Encoding.of(self).check(sample)
        with model_context(dict(sample)):
            return type(self)(*self.trace_args, **self.trace_kwargs).detector


def load_space(reference: str, arguments: Mapping[str, Any]) -> ModelSpace:
    """Builds a search space by name.

    Args:
        reference: `package.module:Class`; the class is an NNI `ModelSpace`.
        arguments: of its constructor, by name.

    Raises:
        SpaceError: the reference is malformed or leads to no space, or an argument is unknown or
            refused.
    """
    space = _find(reference)
    _check_arguments(space, reference, arguments)
    try:
        return space(**arguments)
    except (TypeError, ValueError) as error:
        raise SpaceError(f"space {reference} with {dict(arguments)}: {error}") from error


def takes_argument(reference: str, name: str) -> bool:
    """Whether the constructor of a search space has an argument of that name.

    Raises:
        SpaceError: the reference is malformed or leads to no space.
    """
    return name in inspect.signature(_constructor(_find(reference))).parameters


def _find(reference: str) -> type[ModelSpace]:
    module_name, _, class_name = reference.partition(":")
    if not class_name.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        raise SpaceError(f"space: wanted package.module:Class, got {reference!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever a user's module raises when it is run
        reason = f"{type(error).__name__}: {error}"
        raise SpaceError(f"space {reference}: cannot import {module_name}: {reason}") from error
    names = [name for name, found in vars(module).items() if _is_space(found)]
    space = getattr(module, class_name, None)
    if space is None:
        near = nearest(class_name, names)
        raise SpaceError(f"space {reference}: {module_name} has no {class_name!r}{near}")
    if not _is_space(space):
        raise SpaceError(f"space {reference}: wanted a subclass of NNI's ModelSpace, got {space!r}")
    return space


def _is_space(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, ModelSpace) and found is not ModelSpace


def _check_arguments(space: type[ModelSpace], reference: str, arguments: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(_constructor(space)).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for name in arguments:
        if name not in known:
            raise SpaceError(f"space {reference}: no argument {name!r}{nearest(str(name), known)}")


def _constructor(space: type[ModelSpace]) -> Callable[..., None]:
    """The constructor as it was written: NNI wraps it, once for each subclass, and keeps it."""
    kept = [base.__dict__.get("_init_wrapped") for base in space.__mro__]
    return next(init for init in kept if init is not None and init.__name__ == "__init__")

"""What a stage is searched with: experiment settings -> optimiser and the journal's first line.

`smnas.search` and `smnas.tuner` begin with it. Needs torch only to build the search spaces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from smnas import machine
from smnas.encoding import Encoding
from smnas.experiment import DATA_VARIABLE, Experiment, SearchSettings
from smnas.journal import Trial
from smnas.optimizer import Optimizer
from smnas.records import Sample
from smnas.stages import GroupOptimizer, choose_parents
from smnas.study import Asks

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Stage:
    """What a stage is searched with.

    Args:
        optimizer: fresh.
        encoding: of its space.
        lineage: what it starts from.
    """

    optimizer: Asks
    encoding: Encoding
    lineage: Mapping[str, Any] = field(default_factory=dict)


def first_stage(experiment: Experiment) -> Stage:
    """The stage that starts from nothing."""
    optimizer = make_optimizer(experiment.search)
    return Stage(optimizer, optimizer.encoding)


def next_stage(experiment: Experiment, earlier: Sequence[Trial]) -> Stage:
    """The stage that searches the inside of detectors on the earlier stages' front.

    Raises:
        RunError: there is no front.
        SpaceError: the space does not take a structure, or not this one.
    """
    from smnas.detectors.space import load_space

    settings, objectives = experiment.search, experiment.search.objective_vector()
    name = settings.named_space(str(experiment.path))
    parents = choose_parents(earlier, objectives, settings.groups)
    samples = {parent.candidate.id: parent.candidate.sample for parent in parents}
    members = {}
    for number, (group, structure) in enumerate(samples.items()):
        arguments = {**settings.space_arguments, "structure": dict(structure)}
        space = load_space(name, arguments)
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        control = space.from_structural(structure)
        members[group] = make_optimizer(settings, Encoding.of(space), seed, control, group)
    return Stage(
        GroupOptimizer(members, objectives, earlier, settings.population),
        Encoding.union([member.encoding for member in members.values()]),
        {"parents": {str(group): dict(sample) for group, sample in samples.items()}},
    )


def make_optimizer(
    settings: SearchSettings,
    encoding: Encoding | None = None,
    seed: int | None = None,
    ancestor: Sample | None = None,
    group: int | None = None,
) -> Optimizer:
    """The optimiser that an experiment's settings describe.

    Args:
        settings: `tuner.classArgs`.
        encoding: of the search space; None to build the space that the settings name.
        seed: None takes the settings' own.
        ancestor: see `smnas.optimizer.Optimizer`.
        group: likewise.

    Raises:
        SpaceError: the space cannot be built.
        ConfigError: a setting does not fit the space or the algorithm.
    """
    if encoding is None:
        # torch comes with it, and a search without detectors does without
        from smnas.detectors.space import load_space

        space = settings.named_space("tuner.classArgs")
        encoding = Encoding.of(load_space(space, settings.space_arguments))
    return Optimizer(
        encoding,
        settings.objective_vector(),
        algorithm=settings.algorithm,
        algorithm_args=settings.algorithm_args,
        population=settings.population,
        seed=settings.seed if seed is None else seed,
        baselines=settings.baselines,
        generational=settings.generational,
        stage=settings.stage,
        ancestor=ancestor,
        group=group,
    )


def header(
    experiment: Experiment, encoding: Encoding, workers: int, lineage: Mapping[str, Any] = _NONE
) -> dict[str, Any]:
    """The journal's first line: what identifies the experiment, and what it ran with.

    Args:
        experiment: what is searched.
        encoding: of its space.
        workers: trials at a time.
        lineage: what a later stage starts from; part of what identifies it.
    """
    settings = experiment.search
    # of the groups it is their detectors that count, not how many were wished for; the trust in a
    # recipe may become known later; how the front is shown changes no trial
    notes = ("groups", "proxy_tau", "noise_aware")
    own = {name: value for name, value in settings.to_json().items() if name not in notes}
    identifying = own | {
        "reference_point": dict(settings.objective_vector().reference),
        "trial_command": experiment.trial_command,
        "data": os.environ.get(DATA_VARIABLE),
        **lineage,
    }
    return {
        "name": experiment.name,
        "experiment": identifying,
        "proxy_tau": settings.proxy_tau,
        "library": _library(settings.library),
        "space": encoding.describe(),
        "workers": workers,
        "device": machine.cpu_name() if settings.space is None else _detector_device(),
        "machine": machine.describe(),
    }


def _library(name: str | None) -> dict[str, str | None] | None:
    """The detector library's name and version, None where the space knows none."""
    return None if name is None else {"name": name, "version": machine.versions().get(name)}


def _detector_device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else machine.cpu_name()

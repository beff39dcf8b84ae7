"""Detectors written down as LazyConfigs: Python files that plain detectron2 builds and trains.

`smnas export --detectron2` writes them. Builds nothing. Imports detectron2 for its names only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall
from omegaconf import DictConfig, ListConfig

from smnas.detectors.components import parse_input_size

_INDENT = "    "

_HEAD = '''"""{title}

Written by smnas for detectron2's tools/lazyconfig_train_net.py. Register your data sets and name
them below; pictures are read as RGB. Learning rate and schedule are detectron2's.
"""

'''

_REST = """
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "my_train"
dataloader.test.dataset.names = "my_val"
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations = [
    L(ResizeShortestEdge)(short_edge_length={shorter}, max_size={longer}),
    L(RandomFlip)(horizontal=True),
]
dataloader.test.mapper.augmentations = [
    L(ResizeShortestEdge)(short_edge_length={shorter}, max_size={longer}),
]

optimizer = model_zoo.get_config("common/optim.py").SGD
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
train = model_zoo.get_config("common/train.py").train
"""


def to_python(model: DictConfig, input_size: str, title: str) -> str:
    """A Python file with `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train`.

    It imports smnas only for what detectron2 lacks.

    Args:
        model: LazyConfig of the model (`parts.Detector.config`).
        input_size: WIDTHxHEIGHT.
        title: what it is, in one line.

    Raises:
        SpaceError: the input size is malformed.
    """
    names = {
        ("detectron2", "model_zoo"),
        ("detectron2.data.transforms", "RandomFlip"),
        ("detectron2.data.transforms", "ResizeShortestEdge"),
    }
    text = f"model = {_expression(model, names)}\n"
    imports = [f"from {module} import {name}" for module, name in sorted(names)]
    imports.insert(1, f"from detectron2.config import {LazyCall.__name__} as L")
    shorter, longer = sorted(parse_input_size(input_size))
    rest = _REST.format(shorter=shorter, longer=longer)
    return _HEAD.format(title=title) + "\n".join(imports) + "\n\n" + text + rest


def _expression(value: Any, names: set[tuple[str, str]], indent: str = "") -> str:
    """A value of a config as Python; adds the module and name of all that it refers to."""
    deeper = indent + _INDENT
    if isinstance(value, DictConfig):
        arguments = [
            f"{deeper}{key}={_expression(argument, names, deeper)},\n"
            for key, argument in value.items()
            if key != "_target_"
        ]
        target = _name(value["_target_"], names)
        return f"L({target})(\n{''.join(arguments)}{indent})" if arguments else f"L({target})()"
    if isinstance(value, ListConfig):
        items = [_expression(item, names, deeper) for item in value]
        if not any("\n" in item for item in items):
            return f"[{', '.join(items)}]"
        return "[\n" + "".join(f"{deeper}{item},\n" for item in items) + f"{indent}]"
    return _name(value, names) if callable(value) else repr(value)


def _name(target: str | Callable[..., Any], names: set[tuple[str, str]]) -> str:
    """What a file calls a class or function, or a method of a class, that it has imported."""
    if isinstance(target, str):
        module, _, name = target.rpartition(".")
    else:
        module, name = target.__module__, target.__qualname__
    names.add((module, name.split(".")[0]))
    return name

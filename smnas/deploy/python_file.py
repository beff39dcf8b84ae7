"""A detector as one Python file that needs torch and torchvision only (`smnas export --python`).

The file is written from the detector that has been built: its numbers are read from its modules, so
they are the ones that were trained. Parts that torchvision lacks come with their source. The file's
detector has the same weights under simpler names.
"""

from __future__ import annotations

import ast
import inspect
import pprint
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from smnas.deploy import python_parts as parts
from smnas.deploy.saved import Category
from smnas.detectors import cascade, guided_anchoring
from smnas.detectors.cascade import CascadeHeads
from smnas.detectors.guided_anchoring import GuidedAnchorRPN
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.errors import DeployError

RENAMED = ((r"^model\.", ""), (r"^rpn\.rpn\.", "rpn."), (r"^roi_heads\.module\.", "roi_heads."))
"""Names of weights in a detector of smnas, and in the file's."""


def plain_state(detector: nn.Module) -> dict[str, Tensor]:
    """A detector's weights under the names of the file's detector."""
    state = {}
    for name, value in detector.state_dict().items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = value.cpu()
    return state


def to_python(
    detector: nn.Module, title: str, categories: Sequence[Category], sample: Mapping[str, Any]
) -> str:
    """The text of the file; its weights lie beside it, in a file of its name that ends in `.pt`.

    Args:
        detector: of torchvision's parts.
        title: what the detector is, in one line.
        categories: in the order of labels.
        sample: that it was built from, for the reader.

    Raises:
        DeployError: the detector has parts that cannot be written down.
    """
    model: Any = getattr(detector, "model", None)
    if not hasattr(model, "transform"):
        raise DeployError(
            f"export --python: wanted a detector of torchvision's parts, got"
            f" {type(model).__name__}; --detectron2 writes one of detectron2's"
        )
    sections = [
        _head_lines(title, categories, sample),
        _norm(detector),
        _backbone(model.backbone.backbone),
        _neck(model.backbone.neck),
        *_foreign(model),
        _build(detector),
    ]
    text = "\n\n\n".join(section.strip("\n") for section in sections) + "\n"
    return text.replace("# IMPORTS", "\n".join(_used(_imports(model), text)))


def write_python(text: str, path: Path) -> None:
    """Writes the file.

    Raises:
        DeployError: it cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise DeployError(f"export: {path} cannot be written: {error.strerror}") from error


def _head_lines(title: str, categories: Sequence[Category], sample: Mapping[str, Any]) -> str:
    names = [str(one["name"]) for one in categories]
    return parts.HEADER.format(
        title=title.replace('"', "'"),
        sample=" ".join(f"{label}={option}" for label, option in sample.items()),
        classes=pprint.pformat(names, width=96, compact=True),
    )


def _norm(detector: nn.Module) -> str:
    """The norm of backbone, neck and head, and of the convolutions before them."""
    kinds = {type(module) for module in detector.modules()}
    if nn.GroupNorm in kinds:
        weights = (
            parts.STANDARDIZED if WeightStandardizedConv2d in kinds else parts.NOT_STANDARDIZED
        )
        return parts.GROUP_NORM + weights
    frozen = FrozenBatchNorm2d in kinds
    return parts.BATCH_NORM.format(norm="FrozenBatchNorm2d" if frozen else "nn.BatchNorm2d")


def _backbone(backbone: Any) -> str:
    ends = dict(backbone._ends)
    body = backbone.body
    stages: list[Any] = [getattr(body, f"layer{k}", None) for k in range(1, 5)]
    if None not in stages:
        blocks = [[_block(block) for block in stage] for stage in stages]
        kind = "BasicBlock" if isinstance(stages[0][0], BasicBlock) else "Bottleneck"
        rows = ",\n".join(f"    {stage}" for stage in blocks)
        return parts.RESIDUAL.format(
            kind=kind, stem=body.conv1.out_channels, blocks=f"[\n{rows},\n]", ends=ends
        )
    if getattr(backbone, "name", None) == "mobilenet_v2":
        return parts.MOBILENET.format(ends=ends)
    raise DeployError(f"export --python: cannot write down the backbone {type(backbone).__name__}")


def _block(block: Any) -> tuple[int, int, int, int, int]:
    """Channels in, channels out, stride, groups, channels of the 3x3 convolution."""
    three = block.conv2 if isinstance(block, Bottleneck) else block.conv1
    last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
    stride = int(three.stride[0])
    return (
        block.conv1.in_channels,
        last.out_channels,
        stride,
        three.groups,
        three.out_channels,
    )


def _neck(neck: Any) -> str:
    levels = list(neck.stages)
    if not isinstance(neck.maps, FeaturePyramidNetwork):
        conv = neck.maps[0]
        return parts.SINGLE_MAP.format(
            inputs=conv.in_channels,
            width=conv.out_channels,
            level=levels[-1],
            bias=conv.bias is not None,
        )
    extra = neck.maps.extra_blocks
    if extra is None:
        top = "None"
    elif isinstance(extra, LastLevelMaxPool):
        top = "LastLevelMaxPool()"
    else:
        top = f"LearnedLevels({next(iter(neck.stages.values())).channels}, {len(extra.convs)})"
    inner: list[Any] = [layer[0] for layer in neck.maps.inner_blocks]
    return (parts.LEARNED_LEVELS if "Learned" in top else "") + parts.PYRAMID.format(
        inputs=list(neck.inputs),
        channels=[conv.in_channels for conv in inner],
        width=inner[0].out_channels,
        norm="None" if inner[0].bias is not None else "norm",
        top=top,
        levels=levels,
    )


def _foreign_modules(model: nn.Module) -> list[ModuleType]:
    """Modules of smnas that stand alone, for parts that torchvision lacks."""
    found = []
    if any(isinstance(module, CascadeHeads) for module in model.modules()):
        found.append(cascade)
    if any(isinstance(module, GuidedAnchorRPN) for module in model.modules()):
        found.append(guided_anchoring)
    return found


def _foreign(model: nn.Module) -> list[str]:
    found = [_source(module) for module in _foreign_modules(model)]
    uses_errors = guided_anchoring in _foreign_modules(model)
    return ["ConfigError = ValueError", *found] if uses_errors else found


def _imports(model: nn.Module) -> list[ast.Import | ast.ImportFrom]:
    """What the pieces may import, and what the foreign modules do, but of smnas."""
    texts = [parts.IMPORTS, *map(inspect.getsource, _foreign_modules(model))]
    nodes = [node for text in texts for node in ast.parse(text).body]
    return [
        node
        for node in nodes
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and not str(node.module).startswith(_NOT_IMPORTED))
    ]


_NOT_IMPORTED = ("smnas", "__future__")


def _used(imports: Sequence[ast.Import | ast.ImportFrom], text: str) -> list[str]:
    """Import lines for the names that occur in the text: standard library first."""
    found: dict[str, set[str]] = {}
    for node in imports:
        for alias in node.names:
            name = alias.asname or alias.name
            if re.search(rf"\b{re.escape(name)}\b", text):
                whole = alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
                source = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else ""
                found.setdefault(source, set()).add(whole)
    plain = [f"import {name}" for name in sorted(found.pop("", set()))]
    lines = plain + [source + ", ".join(sorted(names)) for source, names in sorted(found.items())]
    return sorted(lines, key=lambda line: line.split()[1].split(".")[0] in _INSTALLED)


_INSTALLED = ("torch", "torchvision", "PIL")


def _source(module: ModuleType) -> str:
    """A module's text from behind its imports."""
    text = inspect.getsource(module)
    nodes = ast.parse(text).body
    last = max(i for i, n in enumerate(nodes) if isinstance(n, ast.Import | ast.ImportFrom))
    end = nodes[last].end_lineno
    assert end is not None
    return "\n".join(text.splitlines()[end:])


def _build(detector: Any) -> str:
    model = detector.model
    levels = model.backbone.neck.stages
    values: dict[str, Any] = {
        "classes": detector.num_classes,
        "smaller": model.transform.min_size[-1],
        "larger": model.transform.max_size,
        "width": model.backbone.out_channels,
        "strides": [stage.stride for stage in levels.values()],
    }
    if isinstance(model, RetinaNet):
        return parts.RETINANET.format(
            **values,
            anchors=model.anchor_generator.sizes,
            norm="norm" if _has_group_norm(model.head) else "None",
            score=model.score_thresh,
            nms=model.nms_thresh,
            detections=model.detections_per_img,
        )
    proposals = _proposals(model.rpn.rpn)
    heads = _heads(model.roi_heads.module)
    return (parts.TWO_STAGE + proposals + heads + parts.TWO_STAGE_END).format(
        **values, **_numbers(model.rpn.rpn, model.roi_heads.module)
    )


def _has_group_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.GroupNorm) for part in module.modules())


def _proposals(rpn: RegionProposalNetwork) -> str:
    return parts.GUIDED if isinstance(rpn, GuidedAnchorRPN) else parts.RPN


def _heads(heads: nn.Module) -> str:
    return parts.CASCADE if isinstance(heads, CascadeHeads) else parts.REGIONS


def _numbers(rpn: Any, heads: Any) -> dict[str, Any]:
    stages = list(heads.stages) if isinstance(heads, CascadeHeads) else [heads]
    first = stages[0]
    pool = first.box_roi_pool
    sampler = rpn.fg_bg_sampler
    generator = rpn.anchor_generator
    return {
        "before_nms": dict(rpn._pre_nms_top_n),
        "after_nms": dict(rpn._post_nms_top_n),
        "rpn_batch": sampler.batch_size_per_image,
        "rpn_nms": rpn.nms_thresh,
        "anchors": getattr(generator, "sizes", None),
        "scale": getattr(generator, "base_scale", None),
        "pooled": [int(name) for name in pool.featmap_names],
        "pool_scales": list(pool.scales),
        "pool_size": pool.output_size[0],
        "canonical": pool.map_levels.s0,
        "head_width": first.box_head.fc6.out_features,
        "roi_batch": first.fg_bg_sampler.batch_size_per_image,
        "ious": [stage.proposal_matcher.high_threshold for stage in stages],
        "box_weights": [tuple(stage.box_coder.weights) for stage in stages],
        "loss_weights": getattr(heads, "loss_weights", (1.0,)),
        "score": first.score_thresh,
        "nms": first.nms_thresh,
        "detections": first.detections_per_img,
    }

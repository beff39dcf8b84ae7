"""Our components for plain detectron2 configs: import this, call `add_config`, name them.

`MODEL.BACKBONE.NAME: build_serial_fpn_backbone` (or `build_mobilenet_v2_fpn_backbone`, or the same
without `_fpn`), `MODEL.PROPOSAL_GENERATOR.NAME: GuidedAnchorRPN`. Imports detectron2.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from smnas.detectors.detectron2.backbones import MobileNetV2, SerialBackbone
from smnas.detectors.detectron2.guided_anchoring import GuidedAnchorRPN

__all__ = ["GuidedAnchorRPN", "MobileNetV2", "SerialBackbone", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Adds our settings, with their defaults, to a config of detectron2.

    `MODEL.SERIAL.STRING` and `.NORM` are of `SerialBackbone`, `MODEL.MOBILENET_V2.NORM` of
    `MobileNetV2`, `MODEL.GUIDED_ANCHORING.BASE_SCALE` of `GuidedAnchorRPN`.
    """
    cfg.MODEL.SERIAL = CfgNode({"STRING": "basicblock_64_11-21-21-21", "NORM": "gn_ws"})
    cfg.MODEL.MOBILENET_V2 = CfgNode({"NORM": "gn_ws"})
    cfg.MODEL.GUIDED_ANCHORING = CfgNode({"BASE_SCALE": 8.0})


@BACKBONE_REGISTRY.register()
def build_serial_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone of `MODEL.SERIAL`."""
    return SerialBackbone(cfg.MODEL.SERIAL.STRING, cfg.MODEL.SERIAL.NORM)


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """MobileNetV2 with the norm of `MODEL.MOBILENET_V2`."""
    return MobileNetV2(cfg.MODEL.MOBILENET_V2.NORM)


@BACKBONE_REGISTRY.register()
def build_serial_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone of `MODEL.SERIAL` with the pyramid of `MODEL.FPN`."""
    return _pyramid(cfg, build_serial_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """MobileNetV2 with the pyramid of `MODEL.FPN`."""
    return _pyramid(cfg, build_mobilenet_v2_backbone(cfg, input_shape))


def _pyramid(cfg: CfgNode, bottom_up: Backbone) -> Backbone:
    fpn = cfg.MODEL.FPN
    top = LastLevelMaxPool()
    return FPN(
        bottom_up,
        fpn.IN_FEATURES,
        fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top,
        fuse_type=fpn.FUSE_TYPE,
    )

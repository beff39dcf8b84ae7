"""The pieces of text that `python_file` puts together: each is Python with places for numbers."""

from __future__ import annotations

IMPORTS = """
import json
import sys
from collections import OrderedDict
from pathlib import Path
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper
from torchvision.transforms.functional import to_tensor
"""

HEADER = '''
"""{title}: a detector that needs torch and torchvision only.

    python THIS_FILE.py PICTURE...      prints what it finds, a JSON line a picture

`load()` gives it with its weights, which lie beside this file; `build()` without. It is called as
torchvision's detectors are: `detector([image])` in evaluation mode, `detector(images, targets)` in
training. Labels count from 1, in the order of CLASSES.

Found by smnas as {sample}
"""

from __future__ import annotations

# IMPORTS

WEIGHTS = Path(__file__).with_suffix(".pt")
CLASSES = {classes}
'''

GROUP_NORM = '''
def norm(channels: int) -> nn.Module:
    """32 groups, or the next smaller divisor of the channels; at least two channels a group."""
    most = min(32, max(1, channels // 2))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)
'''

BATCH_NORM = '''
norm = {norm}


def standardized(module: nn.Module) -> nn.Module:
    """Convolutions stay as they are with this norm."""
    return module
'''

NOT_STANDARDIZED = '''

def standardized(module: nn.Module) -> nn.Module:
    """Convolutions stay as they are: this detector was trained without weight standardisation."""
    return module
'''

STANDARDIZED = '''

class StandardizedConv2d(nn.Conv2d):
    """Convolves by filters of mean 0 and variance 1 (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-5)
        return self._conv_forward(x, weight, self.bias)


def standardized(module: nn.Module) -> nn.Module:
    """The module, its convolutions without bias (those before a norm) standardised."""
    for part in module.modules():
        if type(part) is nn.Conv2d and part.bias is None:
            part.__class__ = StandardizedConv2d
    return module
'''

_MAPS = """
    def forward(self, x: Tensor) -> dict[int, Tensor]:
        maps = {{}}
        for name, layer in self.body.named_children():
            x = layer(x)
            if name in self.ENDS:
                maps[self.ENDS[name]] = x
        return maps
"""

RESIDUAL = '''
BLOCKS = {blocks}
"""Of each stage: channels in and out, stride, groups and channels of the 3x3 convolution."""


def block(inputs: int, outputs: int, stride: int, groups: int, inner: int) -> nn.Module:
    """A residual block."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
    width = outputs // {kind}.expansion
    if {kind} is BasicBlock:
        return BasicBlock(inputs, width, stride, shortcut, norm_layer=norm)
    # torchvision wants the width of a group, times 64 over that of the block, and rounds down
    base = (inner // groups + 0.5) * 64 / width
    return Bottleneck(
        inputs, width, stride, shortcut, groups=groups, base_width=base, norm_layer=norm
    )


class Backbone(nn.Module):
    """Residual blocks; maps by level, level k has stride 2^k."""

    ENDS = {ends}

    def __init__(self) -> None:
        super().__init__()
        stem = [
            ("conv1", nn.Conv2d(3, {stem}, 7, 2, 3, bias=False)),
            ("bn1", norm({stem})),
            ("relu", nn.ReLU(inplace=True)),
            ("maxpool", nn.MaxPool2d(3, 2, 1)),
        ]
        stages = [
            (f"layer{{number}}", nn.Sequential(*(block(*numbers) for numbers in stage)))
            for number, stage in enumerate(BLOCKS, 1)
        ]
        self.body = standardized(nn.Sequential(OrderedDict(stem + stages)))
''' + _MAPS

MOBILENET = '''
class Backbone(nn.Module):
    """MobileNetV2 without its classifier; maps by level, level k has stride 2^k."""

    ENDS = {ends}

    def __init__(self) -> None:
        super().__init__()
        self.body = standardized(MobileNetV2(norm_layer=norm).features)
''' + _MAPS

LEARNED_LEVELS = '''
class LearnedLevels(ExtraFPNBlock):
    """Levels above the pyramid's top by convolutions of stride 2."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(count))

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        top = results[-1]
        for index, conv in enumerate(self.convs):
            top = conv(F.relu(top) if index else top)
            results.append(top)
            names.append(f"extra{index}")
        return results, names


'''

PYRAMID = '''
class Neck(nn.Module):
    """A feature pyramid: maps of one width, by level."""

    def __init__(self) -> None:
        super().__init__()
        pyramid = FeaturePyramidNetwork({channels}, {width}, {top}, {norm})
        self.maps = standardized(pyramid)

    def forward(self, levels: dict[int, Tensor]) -> dict[int, Tensor]:
        maps = self.maps(OrderedDict((str(level), levels[level]) for level in {inputs}))
        return dict(zip({levels}, maps.values()))
'''

SINGLE_MAP = '''
class Neck(nn.Module):
    """No pyramid: the backbone's last map alone, narrowed."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d({inputs}, {width}, 1, bias={bias})
        layers = [conv] if {bias} else [conv, norm({width})]
        self.maps = standardized(nn.Sequential(*layers))

    def forward(self, levels: dict[int, Tensor]) -> dict[int, Tensor]:
        return {{{level}: self.maps(levels[{level}])}}
'''

_COMMON = '''
class Features(nn.Module):
    """Backbone and neck."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.out_channels = Backbone(), Neck(), {width}

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return self.neck(self.backbone(images))


class Anchors(AnchorGenerator):
    """With stated strides, which torchvision would infer from the sizes of the maps."""

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [[stride, stride] for stride in {strides}])


class Transform(GeneralizedRCNNTransform):
    """torchvision's, but a picture that fits already is not interpolated onto itself."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        shorter, longer = sorted(image.shape[-2:])
        if min(self.min_size[-1] / shorter, self.max_size / longer) == 1:
            return image, target
        return super().resize(image, target)


def transform() -> Transform:
    """Pictures fit into {larger}x{smaller}, either way round; ImageNet's mean and deviation."""
    return Transform({smaller}, {larger}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
'''

_END = '''

def load(weights: str | Path = WEIGHTS) -> nn.Module:
    """The detector with its weights, in evaluation mode."""
    detector = build()
    detector.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return detector.eval()


def main() -> None:
    """Prints what it finds in the pictures that the command line names."""
    detector = load()
    for name in sys.argv[1:]:
        with torch.inference_mode():
            (found,) = detector([to_tensor(Image.open(name).convert("RGB"))])
        names = [CLASSES[label - 1] for label in found["labels"].tolist()]
        boxes, scores = found["boxes"].tolist(), found["scores"].tolist()
        rows = [
            {{"class": c, "score": s, "box": b}} for c, s, b in zip(names, scores, boxes)
        ]
        print(json.dumps({{"picture": name, "found": rows}}))


if __name__ == "__main__":
    main()
'''

RETINANET = _COMMON + '''

class Detector(RetinaNet):
    """torchvision's RetinaNet, with classes from 1 on outside and from 0 on inside."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if self.training and targets is not None:
            shifted = [{{**target, "labels": target["labels"] - 1}} for target in targets]
            return super().forward(images, shifted)
        return [{{**found, "labels": found["labels"] + 1}} for found in super().forward(images)]


def build() -> Detector:
    """The detector, newly initialised."""
    sizes = {anchors}
    anchors = Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(
        {width}, anchors.num_anchors_per_location()[0], {classes}, norm_layer={norm}
    )
    detector = Detector(
        Features(),
        {classes},
        anchor_generator=anchors,
        head=standardized(head),
        score_thresh={score},
        nms_thresh={nms},
        detections_per_img={detections},
    )
    detector.transform = transform()
    return detector
''' + _END

TWO_STAGE = _COMMON + '''

def build() -> GeneralizedRCNN:
    """The detector, newly initialised."""
'''

RPN = """    sizes = {anchors}
    anchors = Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead({width}, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image={rpn_batch},
        positive_fraction=0.5,
        pre_nms_top_n={before_nms},
        post_nms_top_n={after_nms},
        nms_thresh={rpn_nms},
    )
"""

GUIDED = """    rpn = GuidedAnchorRPN(
        {width},
        {strides},
        base_scale={scale},
        pre_nms_top_n={before_nms},
        post_nms_top_n={after_nms},
        batch_size_per_image={rpn_batch},
        positive_fraction=0.5,
        nms_thresh={rpn_nms},
    )
"""

_POOL = """    pool = MultiScaleRoIAlign({pooled}, {pool_size}, sampling_ratio=2)
    pool.scales = {pool_scales}
    pool.map_levels = initLevelMapper(
        {pooled}[0], {pooled}[-1], canonical_scale={canonical}
    )
    channels = {width} * {pool_size}**2
"""

REGIONS = _POOL + """    heads = RoIHeads(
        pool,
        TwoMLPHead(channels, {head_width}),
        FastRCNNPredictor({head_width}, {classes} + 1),
        fg_iou_thresh={ious}[0],
        bg_iou_thresh={ious}[0],
        batch_size_per_image={roi_batch},
        positive_fraction=0.25,
        bbox_reg_weights={box_weights}[0],
        score_thresh={score},
        nms_thresh={nms},
        detections_per_img={detections},
    )
"""

CASCADE = _POOL + """    stages = [
        CascadeStage(
            first=number == 0,
            box_roi_pool=pool,
            box_head=TwoMLPHead(channels, {head_width}),
            box_predictor=ClassAgnosticPredictor({head_width}, {classes} + 1),
            iou_threshold=iou,
            box_weights=BOX_WEIGHTS[number],
            batch_size_per_image={roi_batch},
            positive_fraction=0.25,
            score_thresh={score},
            nms_thresh={nms},
            detections_per_img={detections},
        )
        for number, iou in enumerate({ious})
    ]
    heads = CascadeHeads(stages, {loss_weights})
"""

TWO_STAGE_END = """    return GeneralizedRCNN(Features(), rpn, heads, transform())
""" + _END

"""Costs as exact integers, worked out beside each model."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import DeformConv2d

from smnas.objectives.cost import (
    count_macs,
    count_parameters,
    measure_cost,
    peak_memory_mb,
)


class Deformable(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.offset = nn.Conv2d(8, 18, 3, padding=1)
        self.convolution = DeformConv2d(8, 12, 3, padding=1, **options)

    def forward(self, features):
        return self.convolution(features, self.offset(features))


@pytest.mark.parametrize(
    ("model", "shape", "macs", "parameters"),
    [
        # outputs x weights of one output channel
        (nn.Conv2d(3, 16, 3, padding=1), (1, 3, 20, 30), 16 * 600 * 27, 16 * 27 + 16),
        (nn.Conv2d(3, 16, 3, stride=2, padding=1), (1, 3, 20, 30), 16 * 150 * 27, 448),
        (nn.Conv2d(8, 16, 3, groups=4, padding=1), (1, 8, 10, 10), 16 * 100 * 2 * 9, 304),
        (nn.Conv2d(8, 8, 5, groups=8, padding=2), (1, 8, 10, 10), 8 * 100 * 25, 208),
        (nn.Conv2d(8, 16, 1, bias=False), (2, 8, 10, 10), 2 * 16 * 100 * 8, 128),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 100 * 6 * 4, 102),
        (nn.Linear(100, 10), (7, 100), 7 * 100 * 10, 1010),
        (nn.Linear(100, 10, bias=False), (7, 100), 7000, 1000),
        # offsets: 18 x 100 x 72; deformable: 12 x 100 x 72
        (Deformable(), (1, 8, 10, 10), 1800 * 72 + 1200 * 72, 18 * 73 + 12 * 73),
        # two groups: 12 x 100 x 36
        (Deformable(groups=2), (1, 8, 10, 10), 1800 * 72 + 1200 * 36, 18 * 73 + 12 * 37),
        # norms, activations and pooling are free
        (
            nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8)),
            (1, 8, 10, 10),
            0,
            32,
        ),
    ],
)
def test_exact_counts(model, shape, macs, parameters):
    model.eval()
    with torch.no_grad():
        assert count_macs(lambda: model(torch.rand(shape))) == (macs, ())
    assert count_parameters(model) == parameters


def test_resnet18_as_torchvision_counts_it():
    model = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        macs, _ = count_macs(lambda: model(torch.rand(1, 3, 224, 224)))
    reference = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta
    assert count_parameters(model) == reference["num_params"] == 11689512
    assert macs == 1814073344 and round(macs / 1e9, 3) == reference["_ops"] == 1.814


def test_frozen_parameters_count_and_shared_ones_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert count_parameters(model) == 40
    model[1].weight = model[0].weight
    assert count_parameters(model) == 24


def test_an_unknown_operator_is_named():
    boxes, values = torch.rand(4, 4).sort(dim=1).values, torch.rand(4)
    _, uncounted = count_macs(lambda: torchvision.ops.nms(boxes, values, 0.5))
    assert uncounted == ("torchvision::nms",)


def test_a_whole_two_stage_detector():
    torch.manual_seed(0)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=128
    )
    before = torch.get_rng_state()
    cost = measure_cost(detector, (128, 96))
    assert cost == measure_cost(detector, (128, 96))
    assert detector.training and torch.equal(torch.get_rng_state(), before)
    assert cost.params_m == sum(p.numel() for p in detector.parameters()) / 1e6
    assert cost.uncounted == ("torchvision::nms", "torchvision::roi_align")
    backbone = detector.eval().backbone
    with torch.no_grad():
        macs, _ = count_macs(lambda: backbone(torch.rand(1, 3, 96, 128)))
    # A picture is batched in multiples of 32, so the backbone sees it as it is; the rest is heads.
    assert 1 < cost.macs_g * 1e9 / macs < 1000
    assert cost.to_metrics() == {"params_m": cost.params_m, "macs_g": cost.macs_g}


def test_peak_memory_covers_what_was_held():
    device = torch.device("cpu")
    before = peak_memory_mb(device)
    held = torch.ones(int(before * 1e6 / 4))  # as much again
    assert peak_memory_mb(device) > 1.5 * before
    del held
    assert peak_memory_mb(device) > 1.5 * before  # the peak stays


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_the_gpu():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    held = torch.ones(25_000_000, device=device)
    assert peak_memory_mb(device) >= held.nbytes / 1e6 == 100

"""Necks wired to every backbone: channels, strides, levels, parameters."""

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from smnas.detectors.backbones import Backbone
from smnas.detectors.components import BACKBONES, Stage
from smnas.detectors.necks import Neck
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.errors import SpaceError

STAGES = {
    level: Stage(channels, 2**level) for level, channels in zip((2, 3, 4, 5), (8, 12, 20, 40))
}
PYRAMIDS = [(start, end, False) for start in (2, 3) for end in (5, 6)] + [
    (start, end, True) for start in (2, 3) for end in (5, 6, 7)
]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def maps(stages: dict[int, Stage], side: int = 288) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        level: torch.randn(
            1, stage.channels, side // stage.stride, side // stage.stride, generator=generator
        )
        for level, stage in stages.items()
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_fits_every_backbone(name):
    with torch.device("meta"):
        backbone = Backbone(name)
        levels = backbone(torch.empty(1, 3, 288, 320))
        for start, end, one_stage in PYRAMIDS:
            for width in (64, 128, 256):
                neck = Neck(
                    "fpn", backbone.stages, start=start, end=end, width=width, one_stage=one_stage
                )
                check_contract(
                    neck, neck(levels), {level: width for level in range(start, end + 1)}
                )
        single = Neck("none", backbone.stages)
        check_contract(single, single(levels), {5: 256})


def check_contract(neck: Neck, found: dict[int, torch.Tensor], channels: dict[int, int]) -> None:
    assert list(found) == list(neck.stages) == list(channels)
    for level, stage in neck.stages.items():
        assert stage == (channels[level], 2**level)
        height, width = (-(-side // stage.stride) for side in (288, 320))
        assert found[level].shape == (1, stage.channels, height, width)


def test_a_pyramid_is_torchvisions():
    neck = Neck("fpn", STAGES, start=2, end=5, width=16, norm="bn")
    own = FeaturePyramidNetwork([8, 12, 20, 40], 16)
    own.load_state_dict(neck.maps.state_dict())
    inputs = maps(STAGES)
    wanted = own({str(level): value for level, value in inputs.items()})
    for found, value in zip(neck(inputs).values(), wanted.values(), strict=True):
        assert torch.equal(found, value)


def test_level_6_of_a_two_stage_detector_is_a_subsampled_5():
    neck = Neck("fpn", STAGES, end=6, width=16, norm="bn")
    found = neck(maps(STAGES))
    assert torch.equal(found[6], found[5][:, :, ::2, ::2])
    assert count(neck) == count(Neck("fpn", STAGES, end=5, width=16, norm="bn"))


def test_levels_6_and_7_of_a_one_stage_detector_are_learnt_as_torchvisions():
    neck = Neck("fpn", STAGES, start=3, end=7, width=16, norm="bn", one_stage=True)
    own = LastLevelP6P7(16, 16)
    for conv, source in zip((own.p6, own.p7), neck.maps.extra_blocks.convs, strict=True):
        conv.load_state_dict(source.state_dict())
    found = neck(maps(STAGES))
    wanted, _ = own([found[5]], [found[5]], ["5"])
    assert torch.equal(found[6], wanted[1])
    assert torch.equal(found[7], wanted[2])


def test_a_start_at_3_ignores_level_2():
    neck = Neck("fpn", STAGES, start=3, width=16)
    inputs = maps(STAGES)
    del inputs[2]
    assert list(neck(inputs)) == [3, 4, 5]


def test_without_a_pyramid_the_last_map_is_narrowed():
    neck = Neck("none", STAGES, norm="bn")
    assert count(neck) == 40 * 256 + 256
    (found,) = neck({5: torch.ones(1, 40, 3, 3)}).values()
    weights = neck.maps[0].weight.flatten(1).sum(dim=1)
    assert torch.allclose(found[0, :, 1, 1], weights, atol=1e-5)


def test_without_a_pyramid_its_arguments_do_not_matter():
    plain, other = Neck("none", STAGES), Neck("none", STAGES, start=3, end=6, width=64)
    assert plain.stages == other.stages
    assert count(plain) == count(other)


@pytest.mark.parametrize("kind", ["fpn", "none"])
def test_group_norms_follow_the_convolutions(kind):
    convolutions = 8 if kind == "fpn" else 1
    for norm, conv in (("gn_ws", WeightStandardizedConv2d), ("gn", nn.Conv2d), ("bn", nn.Conv2d)):
        modules = list(Neck(kind, STAGES, norm=norm).modules())
        found = [m for m in modules if isinstance(m, nn.Conv2d)]
        assert [type(m) for m in found] == [conv] * convolutions
        assert all((m.bias is None) == (norm != "bn") for m in found)
        assert sum(isinstance(m, nn.GroupNorm) for m in modules) == (
            convolutions if norm != "bn" else 0
        )


@pytest.mark.parametrize(
    ("levels", "one_stage"),
    [((4, 5), True), ((1, 5), False), ((2, 4), True), ((2, 7), False), ((3, 8), True)],
)
def test_levels_out_of_range(levels, one_stage):
    start, end = levels
    with pytest.raises(SpaceError, match=f"got {start} to {end}"):
        Neck("fpn", STAGES, start=start, end=end, one_stage=one_stage)


def test_unknown_kind_and_width():
    with pytest.raises(SpaceError, match="neck: wanted one of"):
        Neck("pan", STAGES)
    with pytest.raises(SpaceError, match="neck_width: wanted a positive integer, got 0"):
        Neck("fpn", STAGES, width=0)

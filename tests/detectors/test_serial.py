"""Serial backbones: torchvision's ResNets from their strings, and any other string."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from smnas.detectors import torchvision as parts
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.detectors.serial import SerialBackbone
from smnas.detectors.strings import KINDS, BackboneString
from smnas.errors import SpaceError

FIFTY = "111-2111-211111-211"
RESNETS = {
    "resnet18": "basicblock_64_11-21-21-21",
    "resnet34": f"basicblock_64_{FIFTY}",
    "resnet50": f"bottleneck_64_{FIFTY}",
    "resnet101": f"bottleneck_64_111-2111-2{'1' * 22}-211",
    "resnext50_32x4d": f"resnext_64_{FIFTY}",
}
STRINGS = st.builds(
    BackboneString,
    st.sampled_from(KINDS),
    st.sampled_from([2, 6, 14, 16, 24, 38, 48, 56, 64, 72, 100]),
    st.lists(st.text("12", min_size=1, max_size=3), min_size=3, max_size=6).map(tuple),
).filter(lambda string: len(string.doublings) <= 4)


def on_meta(string: str, **arguments: object) -> SerialBackbone:
    """Without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return SerialBackbone(string, **arguments)


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", RESNETS)
def test_parameters_are_torchvisions(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    wanted = {name: shape for name, shape in shapes(model).items() if not name.startswith("fc.")}
    for norm in ("bn", "gn", "gn_ws"):
        found = shapes(on_meta(RESNETS[name], norm=norm).body)
        assert list(found.items()) == list(wanted.items())


@pytest.mark.parametrize("name", RESNETS)
def test_maps_are_torchvisions(name):
    model = getattr(torchvision.models, name)(weights=None).eval()
    backbone = SerialBackbone(RESNETS[name], norm="bn").eval()
    missing, unexpected = backbone.body.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        levels = backbone(picture)
        hidden = model.maxpool(model.relu(model.bn1(model.conv1(picture))))
        for level, layer in zip((2, 3, 4, 5), ("layer1", "layer2", "layer3", "layer4")):
            hidden = getattr(model, layer)(hidden)
            assert torch.equal(levels[level], hidden)


@settings(deadline=None, max_examples=40)
@given(STRINGS, st.sampled_from(["gn_ws", "gn", "bn"]))
def test_any_string_states_the_channels_and_strides_that_it_gives(string, norm):
    backbone = on_meta(str(string), norm=norm)
    assert backbone.string == string
    levels = backbone(torch.empty(1, 3, 256, 128, device="meta"))
    assert list(levels) == list(backbone.stages) == list(range(2, 2 + len(string.stages)))
    assert tuple(stage.channels for stage in backbone.stages.values()) == string.channels
    for level, (channels, stride) in backbone.stages.items():
        assert stride == 2**level
        assert levels[level].shape == (1, channels, 256 // stride, 128 // stride)


@settings(deadline=None, max_examples=20)
@given(STRINGS)
def test_blocks_double_where_the_string_says(string):
    body = on_meta(str(string), norm="bn").body
    blocks = [block for block in body.modules() if isinstance(block, BasicBlock | Bottleneck)]
    outputs = [(block.conv2 if string.kind == "basicblock" else block.conv3) for block in blocks]
    wanted, width = [], string.base_width * (1 if string.kind == "basicblock" else 4)
    for block in string.blocks:
        width *= int(block)
        wanted.append(width)
    assert [conv.out_channels for conv in outputs] == wanted
    ends = [sum(string.depths[:stage]) for stage in range(1, len(string.stages))]
    assert [index for index, block in enumerate(blocks) if block.stride == 2] == ends


@pytest.mark.parametrize("base", range(2, 130, 2))
def test_resnext_has_half_the_base_in_groups_of_four_and_their_doubles(base):
    body = on_meta(f"resnext_{base}_1-21-2-2").body
    blocks = [block for block in body.modules() if isinstance(block, Bottleneck)]
    assert {block.conv2.groups for block in blocks} == {base // 2}
    per_group = [block.conv2.in_channels // block.conv2.groups for block in blocks]
    assert per_group == [4, 8, 8, 16, 32]
    assert all(block.conv2.in_channels == 2 * block.conv3.out_channels // 4 for block in blocks)


@pytest.mark.parametrize(
    ("base", "groups"), [(16, 8), (24, 12), (48, 24), (56, 28), (64, 32), (72, 24), (96, 32)]
)
def test_groups_of_the_norms(base, groups):
    norms = [m for m in on_meta(f"basicblock_{base}_1-1-1").modules() if type(m) is nn.GroupNorm]
    assert len(norms) == 1 + 3 * 2 + 2
    assert {norm.num_groups for norm in norms} == {groups}


@pytest.mark.parametrize("kind", KINDS)
def test_trains_from_full_scale(kind):
    """No branch starts at zero, and every parameter takes part."""
    backbone = SerialBackbone(f"{kind}_16_1-21-12")
    norms = [module for module in backbone.modules() if isinstance(module, nn.GroupNorm)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert all(type(conv) is WeightStandardizedConv2d for conv in convs)
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone(picture)[4].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in backbone.parameters())


def test_convolutions_start_as_torchvisions():
    backbone = SerialBackbone("basicblock_64_1-1-1", norm="bn")
    weight = backbone.body.layer2[0].conv1.weight
    # Kaiming's normal distribution over the outputs: 64 filters of 3x3.
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_the_same_seed_gives_torchvisions_weights(name):
    """So a detector has the same mAP, whichever space its sample is from."""
    torch.manual_seed(3)
    model = getattr(torchvision.models, name)(weights=None)
    torch.manual_seed(3)
    backbone = SerialBackbone(RESNETS[name], norm="bn")
    wanted = dict(model.named_parameters())
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.body.named_parameters())


@pytest.mark.parametrize(
    ("string", "norm", "complaint"),
    [
        ("basicblock_64", "bn", "backbone string: wanted KIND_BASEWIDTH_STAGES"),
        ("basicblock_64_1-1-1", "batch", "norm: wanted one of"),
        ("basicblock_64_1-1-1", "frozen_bn", "norm: wanted gn_ws, gn or bn for backbone"),
    ],
)
def test_what_cannot_be_built(string, norm, complaint):
    with pytest.raises(SpaceError, match=complaint):
        SerialBackbone(string, norm=norm)


def test_a_neck_wants_the_levels_that_it_reads():
    backbone = on_meta("basicblock_16_1-1-1")
    wanted = r"maps of the levels \[3, 4, 5\], got \[2, 3, 4\]"
    with pytest.raises(SpaceError, match=wanted):
        parts.Neck("fpn", backbone.stages, start=3)


def test_the_mutable_twin_is_the_plain_part():
    string = "bottleneck_16_1-2-1-1"
    twin = parts.MutableSerialBackbone(string, norm="gn")
    assert isinstance(twin, SerialBackbone)
    assert shapes(twin) == shapes(SerialBackbone(string, norm="gn"))
    assert twin.stages == SerialBackbone(string, norm="gn").stages

"""Backbones against torchvision's classifiers: sizes, maps, weights."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from smnas.detectors import backbones
from smnas.detectors.backbones import Backbone
from smnas.detectors.components import BACKBONES, NORMS, PRETRAINED_BACKBONES
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.errors import SpaceError

# torchvision's documented sizes less their 1000-class layers (512, 2048 or 1280 inputs); it has no
# ResNeXt-101 32x4d, whose 44,177,704 parameters are those of Xie et al. 2017.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnext50": 25_028_904 - 2_049_000,
    "resnext101": 44_177_704 - 2_049_000,
    "mobilenet_v2": 3_504_872 - 1_281_000,
}
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnext50": (256, 512, 1024, 2048),
    "resnext101": (256, 512, 1024, 2048),
    "mobilenet_v2": (24, 32, 96, 1280),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(name: str, **arguments: object) -> Backbone:
    """Without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return Backbone(name, **arguments)


@pytest.mark.parametrize("norm", ["gn_ws", "gn", "bn"])
@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_count(name, norm):
    assert count(on_meta(name, norm=norm)) == PARAMETERS[name]


def test_frozen_norms_have_no_parameters():
    norms = [m for m in on_meta("resnet18", norm="bn").modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = on_meta("resnet18", norm="frozen_bn")
    assert count(frozen) == PARAMETERS["resnet18"] - sum(count(norm) for norm in norms)
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) == len(norms) == 20


@pytest.mark.parametrize("name", BACKBONES)
def test_states_the_channels_and_strides_that_it_gives(name):
    backbone = on_meta(name)
    levels = backbone(torch.empty(2, 3, 64, 96, device="meta"))
    assert list(levels) == list(backbone.stages) == [2, 3, 4, 5]
    assert tuple(stage.channels for stage in backbone.stages.values()) == CHANNELS[name]
    for level, (channels, stride) in backbone.stages.items():
        assert stride == 2**level
        assert levels[level].shape == (2, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_everywhere_or_nowhere(norm):
    kinds = {type(module) for module in on_meta("resnet18", norm=norm).modules()}
    assert (WeightStandardizedConv2d in kinds) == (norm == "gn_ws")
    assert (nn.Conv2d in kinds) == (norm != "gn_ws")
    wanted = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d}.get(norm, nn.GroupNorm)
    assert kinds & {nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm} == {wanted}


@pytest.mark.parametrize("name", ["resnet18", "resnext50", "mobilenet_v2"])
def test_maps_are_torchvisions(name):
    """The last map, pooled and classified, is what torchvision's classifier says."""
    model = getattr(torchvision.models, backbones._WEIGHTS.get(name, name))(weights=None).eval()
    backbone = Backbone(name, norm="bn").eval()
    source = model.features if name == "mobilenet_v2" else model
    backbone.body.load_state_dict(source.state_dict(), strict=False)
    classifier = model.classifier if name == "mobilenet_v2" else model.fc
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = backbone(picture)[5].mean(dim=(2, 3))
        assert torch.allclose(classifier(pooled), model(picture), atol=1e-5)


def test_maps_of_all_levels_are_torchvisions():
    model = torchvision.models.resnet18(weights=None).eval()
    backbone = Backbone("resnet18", norm="bn").eval()
    missing, unexpected = backbone.body.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert unexpected == ["fc.weight", "fc.bias"]
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.maxpool(model.relu(model.bn1(model.conv1(picture))))
        levels = backbone(picture)
        for level, layer in zip((2, 3, 4, 5), ("layer1", "layer2", "layer3", "layer4")):
            hidden = getattr(model, layer)(hidden)
            assert torch.equal(levels[level], hidden)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_branches_start_at_full_scale(name):
    blocks = [m for m in Backbone(name).modules() if isinstance(m, BasicBlock | Bottleneck)]
    for block in blocks:
        last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
        assert (last.weight == 1).all()


def test_unknown_names():
    with pytest.raises(SpaceError, match="backbone: wanted one of .*'resnet50'"):
        Backbone("resnet5O")
    with pytest.raises(SpaceError, match="norm: wanted one of"):
        Backbone("resnet18", norm="batch")


@pytest.mark.parametrize("norm", ["gn", "gn_ws"])
def test_imagenet_weights_want_a_batch_norm(norm):
    with pytest.raises(SpaceError, match=f"want norm 'bn' or 'frozen_bn', got norm '{norm}'"):
        Backbone("resnet18", norm=norm, pretrained=True)


def test_no_weights_for_resnext101():
    with pytest.raises(SpaceError, match="got 'resnext101'"):
        Backbone("resnext101", norm="bn", pretrained=True)


@pytest.mark.parametrize("name", PRETRAINED_BACKBONES)
def test_torchvision_has_the_weights(name):
    weights = torchvision.models.get_model_weights(backbones._WEIGHTS.get(name, name))
    assert weights["IMAGENET1K_V1"].meta["num_params"] in {
        PARAMETERS[name] + classifier for classifier in (513_000, 2_049_000, 1_281_000)
    }


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_pretrained_weights_are_loaded(name, norm, monkeypatch):
    model = getattr(torchvision.models, name)(weights=None)
    weights = SimpleNamespace(get_state_dict=lambda progress, check_hash: model.state_dict())
    monkeypatch.setattr(backbones, "get_model_weights", lambda _: {"IMAGENET1K_V1": weights})
    found = Backbone(name, norm=norm, pretrained=True).body.state_dict()
    source = (model.features if name == "mobilenet_v2" else model).state_dict()
    assert found
    for key, value in found.items():
        assert torch.equal(value, source[key])

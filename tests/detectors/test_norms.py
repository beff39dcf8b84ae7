"""Norm layers, and the weight-standardised convolution against plain convolutions."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from smnas.detectors.norms import (
    WeightStandardizedConv2d,
    describe_norm,
    group_count,
    head_norm_layer,
    norm_layer,
    standardize_weights,
)
from smnas.errors import SpaceError

PICTURE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def conv(seed: int = 0, bias: bool = True) -> WeightStandardizedConv2d:
    torch.manual_seed(seed)
    return WeightStandardizedConv2d(4, 8, 3, padding=1, bias=bias).eval()


def expected(module: nn.Conv2d) -> torch.Tensor:
    """What a plain convolution gives with filters that were standardised in double precision."""
    rows = module.weight.detach().double().flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / (rows.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt()
    bias = None if module.bias is None else module.bias.detach()
    return F.conv2d(PICTURE, rows.float().view_as(module.weight), bias, padding=1)


def run(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(PICTURE)


def is_right(module: nn.Conv2d) -> bool:
    return torch.allclose(run(module), expected(module), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (16, 8), (24, 12), (32, 16), (48, 24), (56, 28), (64, 32), (72, 24)]
    + [(96, 32), (144, 24), (576, 32), (1280, 32), (2048, 32), (13, 1)],
)
def test_groups_divide_the_channels(channels, groups):
    assert group_count(channels) == groups
    assert channels % groups == 0


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        ("gn_ws", "GroupNorm with weight standardisation"),
        ("gn", "GroupNorm"),
        ("bn", "BatchNorm"),
        ("frozen_bn", "frozen BatchNorm"),
    ],
)
def test_norms_in_words(norm: str, words: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm_layer(norm)(8))
    standardize_weights(module, norm)
    assert describe_norm(module) == words


def test_norm_layers_by_name():
    assert isinstance(norm_layer("bn")(8), nn.BatchNorm2d)
    assert isinstance(norm_layer("frozen_bn")(8), FrozenBatchNorm2d)
    for name in ("gn", "gn_ws"):
        layer = norm_layer(name)(48)
        assert isinstance(layer, nn.GroupNorm)
        assert (layer.num_groups, layer.num_channels) == (24, 48)


def test_only_group_norms_go_into_heads():
    assert head_norm_layer("gn") is norm_layer("gn")
    assert head_norm_layer("bn") is None
    assert head_norm_layer("frozen_bn") is None


def test_unknown_norm():
    for find in (norm_layer, head_norm_layer):
        with pytest.raises(SpaceError, match="norm: wanted one of .* got 'gm_ws'.*'gn_ws'"):
            find("gm_ws")


def test_filters_have_mean_zero_and_variance_one():
    filters = conv().standardized_weight().detach().double().flatten(1)
    assert filters.mean(dim=1).abs().max() < 1e-6
    # The weights are small enough for the epsilon to be seen.
    assert filters.var(dim=1, correction=0) == pytest.approx(1, abs=1e-2)


def test_a_filter_of_equal_weights_becomes_zero():
    module = conv(bias=False)
    nn.init.constant_(module.weight, 3.0)
    assert run(module).abs().max() == 0


@pytest.mark.parametrize("training", [True, False])
def test_convolves_by_standardised_filters(training):
    assert is_right(conv().train(training))


def test_groups_strides_and_dilation_are_those_of_a_convolution():
    arguments = {"stride": 2, "padding": 2, "dilation": 2, "groups": 4, "bias": False}
    module = WeightStandardizedConv2d(4, 8, 3, **arguments)
    plain = nn.Conv2d(4, 8, 3, **arguments)
    with torch.no_grad():
        plain.weight.copy_(module.standardized_weight())
    assert torch.equal(run(module), run(plain))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_weight(training):
    torch.manual_seed(0)
    module = WeightStandardizedConv2d(1, 2, 2).double().train(training)
    picture = PICTURE[:1, :1, :3, :3].double()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"weight": weight}, picture).square().sum()

    assert torch.autograd.gradcheck(loss, module.weight)


def test_gradient_is_orthogonal_to_constants_and_to_the_filter():
    """Shifting or scaling a filter changes nothing, so the loss has no slope that way."""
    module = conv(bias=False)
    nn.init.normal_(module.weight, std=10.0)
    module(PICTURE).square().sum().backward()
    slope = module.weight.grad.flatten(1)
    assert slope.abs().max() > 1e-3
    assert slope.sum(dim=1).abs().max() < 1e-4
    assert (slope * module.weight.flatten(1)).sum(dim=1).abs().max() < 1e-2


def test_weight_is_kept_in_eval_without_gradients_only():
    module = conv()
    with torch.no_grad():
        kept = module.standardized_weight()
        assert module.standardized_weight() is kept
        assert module.train().standardized_weight() is not kept
        assert module.eval().standardized_weight() is not kept
    assert module.standardized_weight().requires_grad


def test_state_dict_is_that_of_a_convolution():
    module = conv()
    run(module)
    assert list(module.state_dict()) == list(nn.Conv2d(4, 8, 3).state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_loading_weights_in_eval_mode(assign):
    module = conv(0)
    before = run(module)
    module.load_state_dict(conv(1).state_dict(), assign=assign)
    assert not torch.allclose(run(module), before)
    assert is_right(module)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}])
def test_optimiser_steps_in_eval_mode_are_seen(options):
    module = conv()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, **options)
    for _ in range(3):
        before = run(module)
        module(PICTURE).square().sum().backward()
        optimizer.step()
        assert not torch.equal(run(module), before)
        assert is_right(module)


def test_a_weight_exchanged_behind_the_back_is_seen():
    module = conv()
    run(module)
    module.weight.data = torch.randn(8, 4, 3, 3)
    assert is_right(module)
    module.weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    assert is_right(module)


def test_eval_forgets_what_data_cannot_show():
    module = conv()
    run(module)
    module.weight.data.copy_(torch.randn(8, 4, 3, 3))
    assert is_right(module.eval())


def test_other_dtypes():
    module = conv()
    run(module)
    wide = module.double()
    with torch.no_grad():
        assert wide(PICTURE.double()).dtype == torch.float64
    assert is_right(module.float())


def test_memory_format_is_followed():
    module = conv()
    run(module)
    module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert module.standardized_weight().is_contiguous(memory_format=torch.channels_last)
    assert is_right(module)


def test_autocast_leaves_nothing_behind():
    module = conv()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(PICTURE).dtype == torch.bfloat16
    assert is_right(module)


def test_inference_mode_does_not_spoil_later_gradients():
    module = conv()
    with torch.inference_mode():
        module(PICTURE)
    assert is_right(module)
    picture = PICTURE.clone().requires_grad_()
    module.requires_grad_(False)
    module(picture).square().sum().backward()
    assert picture.grad.abs().max() > 0


def test_made_in_inference_mode():
    with torch.inference_mode():
        module = conv()
        module(PICTURE)
        assert torch.allclose(module(PICTURE), expected(module), atol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_their_own(clone):
    module = conv()
    run(module)
    twin = clone(module)
    with torch.no_grad():
        twin.weight.normal_()
    assert is_right(twin)
    assert is_right(module)
    assert not torch.equal(run(twin), run(module))


def test_the_kept_weight_is_not_saved():
    fresh, used = io.BytesIO(), io.BytesIO()
    module = conv()
    torch.save(module, fresh)
    run(module)
    torch.save(module, used)
    assert len(used.getvalue()) == len(fresh.getvalue())


def test_exports():
    module = conv()
    with torch.no_grad():
        run(module)
        exported = torch.export.export(module, (PICTURE,)).module()
        assert torch.allclose(exported(PICTURE), run(module), atol=1e-5)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False),
        nn.GroupNorm(4, 8),
        nn.Sequential(nn.Conv2d(8, 2, 1)),
    )


def test_convolutions_before_norms_are_replaced():
    module = net()
    weight = module[0].weight
    names = list(module.state_dict())
    standardize_weights(module, "gn_ws")
    assert type(module[0]) is WeightStandardizedConv2d
    assert type(module[2][0]) is nn.Conv2d
    assert module[0].weight is weight
    assert list(module.state_dict()) == names
    assert run(module).shape == run(net()).shape


@pytest.mark.parametrize("norm", ["gn", "bn", "frozen_bn"])
def test_other_norms_keep_their_convolutions(norm):
    module = net()
    standardize_weights(module, norm)
    assert type(module[0]) is nn.Conv2d


def test_replacing_again_changes_nothing():
    module = net()
    standardize_weights(module, "gn_ws")
    first = module[0]
    standardize_weights(module, "gn_ws")
    assert module[0] is first

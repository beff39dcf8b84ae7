"""The training loop: closed forms on a one-weight model, real steps of a small detector."""

import contextlib
import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from smnas.errors import ConfigError, TrialFailure
from smnas.training.loop import (
    clip_gradients,
    epoch_batches,
    epoch_order,
    parameter_groups,
    train,
    with_half_batch_on_oom,
)
from smnas.training.recipe import Recipe

CPU = torch.device("cpu")
PLAIN = Recipe(epochs=1, lr=0.1, momentum=0, weight_decay=0.5, warmup_iterations=0, flip=0)


class Line(nn.Module):
    """Loss: mean over pictures of (w · brightness - label)². Has memory for `room` pictures."""

    def __init__(self, weight: float = 0.0, room: int = 99) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.room, self.sizes = room, []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        assert self.training
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("tried to allocate")
        error = [
            self.weight * image.mean() - target["labels"][0]
            for image, target in zip(images, targets)
        ]
        loss = torch.stack(error).square().mean()
        return {"loss_a": 0.75 * loss, "loss_b": 0.25 * loss}


class Quiet:
    """Stands for a `QuietDevice`: counts the windows and knows whether one is open."""

    def __init__(self) -> None:
        self.open, self.count = False, 0

    @contextlib.contextmanager
    def working(self):
        self.open, self.count = True, self.count + 1
        yield
        self.open = False


def batch_of(pairs: list[tuple[float, int]]):
    """Uniform pictures of given brightness with one label each."""
    images = [torch.full((3, 4, 4), brightness) for brightness, _ in pairs]
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    return images, [{"boxes": boxes, "labels": torch.tensor([label])} for _, label in pairs]


def run(model, batches, recipe=PLAIN, seed=0, on_epoch=lambda epoch, stats: None, quiet=None):
    generator = torch.Generator().manual_seed(seed)
    return train(
        model,
        batches,
        recipe,
        device=CPU,
        generator=generator,
        quiet=quiet or Quiet(),
        on_epoch=on_epoch,
    )


def test_one_step_is_gradient_descent():
    # w = 0, brightness 1, label 3: d/dw (w - 3)² = -6, so w becomes 0.1 · 6; a vector does not
    # decay.
    model = Line()
    stats = run(model, lambda epoch: [batch_of([(1.0, 3)])])
    assert model.weight.item() == pytest.approx(0.6)
    (epoch,) = stats.epochs
    assert epoch.losses == pytest.approx({"loss_a": 6.75, "loss_b": 2.25})
    assert epoch.loss == pytest.approx(9.0)
    assert epoch.gradient_norm == pytest.approx(6)
    assert epoch.steps == 1 and epoch.learning_rate == 0.1 and stats.parts == 1
    assert stats.seconds == epoch.seconds > 0


def test_gradients_are_clipped():
    model = Line()
    stats = run(
        model,
        lambda epoch: [batch_of([(1.0, 3)])],
        Recipe(**{**vars(PLAIN), "clip_norm": 2.0}),
    )
    assert model.weight.item() == pytest.approx(0.2, rel=1e-4)  # 0.1 · 2
    assert stats.epochs[0].gradient_norm == pytest.approx(6)  # as it was before


@pytest.mark.parametrize("most", [1e-3, 5.0, 5.0000005, 1e9])
def test_clipping_is_torchs_own_bit_by_bit(most):
    ours, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    unused = nn.Parameter(torch.ones(1))
    for model in (ours, theirs):
        model.register_parameter("unused", unused)
        model.weight.grad = torch.tensor([[3.0, 0.1], [0.0, 0.3], [0.0, 0.0]])
        model.bias.grad = torch.tensor([4.0, 0.0, -0.7])
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), most)
    assert torch.equal(clip_gradients(ours, most), expected)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.bias.grad, theirs.bias.grad) and unused.grad is None


def test_the_rate_follows_the_recipe_over_all_epochs():
    recipe = Recipe(**{**vars(PLAIN), "epochs": 2, "lr": 0.1})
    model = Line()
    seen = []
    run(model, lambda epoch: [batch_of([(1.0, 1)])] * 2, recipe, on_epoch=lambda *a: seen.append(a))
    assert [epoch for epoch, _ in seen] == [0, 1]
    rates = [recipe.learning_rate(step, 4) for step in range(4)]
    assert [stats.learning_rate for _, stats in seen] == [rates[1], rates[3]]
    weight = 0.0
    for rate in rates:
        weight -= rate * 2 * (weight - 1)
    assert model.weight.item() == pytest.approx(weight)


def test_steps_and_fetching_are_inside_the_quiet_window_and_callbacks_outside():
    quiet, model = Quiet(), Line()

    class Loader(list):
        def __iter__(self):
            for batch in super().__iter__():
                assert quiet.open
                yield batch

    def on_epoch(epoch, stats):
        assert not quiet.open
        model.eval()  # an evaluation may leave it so

    loader = Loader([batch_of([(1.0, 1)])] * 3)
    run(model, lambda _: loader, Recipe(**{**vars(PLAIN), "epochs": 2}), 0, on_epoch, quiet)
    assert quiet.count == 6


def test_a_caller_may_restore_look_on_and_end_it():
    """Stopped by its caller and restored in another trainer: as one training, step by step."""
    recipe = Recipe(**{**vars(PLAIN), "epochs": 4, "momentum": 0.9})
    batches = [batch_of([(1.0, 3)]), batch_of([(0.5, 1)])]
    whole, seen = Line(), []
    hooks = {"on_step": lambda step, values: seen.append((step, values))}
    options = {"device": CPU, "generator": torch.Generator(), "quiet": Quiet()}
    train(whole, lambda _: batches, recipe, on_epoch=lambda *_: None, **options, **hooks)
    assert [step for step, _ in seen] == list(range(8))
    assert set(seen[0][1]) == {"loss_a", "loss_b", "total", "gradient_norm", "learning_rate"}
    assert [v["learning_rate"] for _, v in seen] == [recipe.learning_rate(k, 8) for k in range(8)]

    first, kept = Line(), []
    begin = {"on_start": lambda trainer: kept.append(trainer) or 0}
    ended = train(
        first, lambda _: batches, recipe, on_epoch=lambda e, _: e == 1, **options, **begin
    )
    assert len(ended.epochs) == 2
    second = Line(first.weight.item())

    def restore(trainer):
        trainer.load_state_dict(kept[0].state_dict())
        return 2

    last = train(
        second, lambda _: batches, recipe, on_epoch=lambda *_: None, **options, on_start=restore
    )
    assert len(last.epochs) == 2 and second.weight.item() == whole.weight.item()


@pytest.mark.parametrize(("label", "shown"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_fails_with_step_and_terms(label, shown):
    batches = [batch_of([(1.0, 1)]), batch_of([(1.0, label)])]
    with pytest.raises(TrialFailure, match=rf"step 1: loss_a {shown}, loss_b {shown}") as caught:
        run(Line(), lambda epoch: batches)
    assert caught.value.reason == "nan_loss"


def test_an_infinite_gradient_of_a_finite_loss_fails_too():
    class Root(Line):
        def forward(self, images, targets):
            return {"loss": self.weight.sqrt()}  # 0, with the slope infinity

    with pytest.raises(TrialFailure, match="step 0: loss 0, total 0, gradient_norm inf"):
        run(Root(), lambda epoch: [batch_of([(1.0, 1)])])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_half_batches_learn_the_same_as_whole_ones(count):
    batches = [
        batch_of([(0.5 + 0.1 * i, i) for i in range(count)]),
        batch_of([(1.0, 2)] * count),
        batch_of([(0.7, 1)]),  # the smaller last batch
    ]
    whole, cut = Line(), Line(room=math.ceil(count / 2))
    expected, stats = run(whole, lambda epoch: batches), run(cut, lambda epoch: batches)
    assert cut.weight.item() == pytest.approx(whole.weight.item(), rel=1e-5)
    assert (expected.parts, stats.parts) == (1, 2)
    half = math.ceil(count / 2)
    # One failure teaches: the second batch is cut at once.
    assert cut.sizes == [count, half, count - half, half, count - half, 1]
    assert stats.epochs[0].losses == pytest.approx(expected.epochs[0].losses)


def test_out_of_memory_with_half_the_batch_fails():
    with pytest.raises(TrialFailure, match="half the batch at a time: tried to alloc") as caught:
        run(Line(room=1), lambda epoch: [batch_of([(1.0, 1)] * 4)])
    assert caught.value.reason == "out_of_memory"


def test_out_of_memory_of_a_batch_that_was_cut_already_is_not_tried_again():
    tried = []

    def compute(parts):
        tried.append(parts)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(TrialFailure):
        with_half_batch_on_oom(compute, 2)
    assert tried == [2]


def test_other_errors_pass_through():
    def compute(parts):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        with_half_batch_on_oom(compute, 1)


def test_mixed_precision_needs_cuda():
    with pytest.raises(ConfigError, match="mixed precision: wanted a CUDA device, got cpu"):
        train(
            Line(),
            lambda epoch: [],
            PLAIN,
            device=CPU,
            generator=torch.Generator(),
            quiet=Quiet(),
            on_epoch=lambda *_: None,
            amp=True,
        )


def test_an_epoch_holds_every_picture_once():
    generator = torch.Generator().manual_seed(0)
    first, second = (epoch_order(11, generator).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(11)) and first != second
    batches = epoch_batches(11, 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [4, 4, 3] and sum(batches, []) == first
    assert len(epoch_batches(8, 4, generator)) == 2


def detector(seed: int) -> FasterRCNN:
    """Torchvision's Faster R-CNN on a tiny backbone; it samples with the global generator."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
    )
    backbone.out_channels = 16
    return FasterRCNN(
        backbone,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU()),
        box_predictor=FastRCNNPredictor(32, 3),
        rpn_post_nms_top_n_train=50,
    )


def squares(count: int):
    """Grey noise with one white (label 1) or black (label 2) square each."""
    generator = torch.Generator().manual_seed(9)
    images, targets = [], []
    for index in range(count):
        image = 0.4 + 0.2 * torch.rand(3, 64, 64, generator=generator)
        x, y = torch.randint(0, 40, (2,), generator=generator).tolist()
        image[:, y : y + 20, x : x + 20] = 1.0 - index % 2
        boxes = torch.tensor([[x, y, x + 20, y + 20]], dtype=torch.float32)
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.tensor([1 + index % 2])})
    return images, targets


def trained(seed: int, recipe: Recipe, device=CPU, **options):
    model, (images, targets) = detector(0), squares(8)
    generator = torch.Generator().manual_seed(seed)

    def batches(epoch):
        orders = epoch_batches(8, recipe.batch, generator)
        return [([images[i] for i in part], [targets[i] for i in part]) for part in orders]

    stats = train(
        model,
        batches,
        recipe,
        device=device,
        generator=generator,
        quiet=Quiet(),
        on_epoch=lambda *_: None,
        **options,
    )
    return model, stats


def test_the_same_seed_gives_the_same_weights_bit_by_bit():
    recipe = Recipe(epochs=3, batch=3, scale_jitter=(0.7, 1.4))
    (first, _), (second, _), (other, _) = trained(1, recipe), trained(1, recipe), trained(2, recipe)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert any(
        not torch.equal(weight, other.state_dict()[name])
        for name, weight in first.state_dict().items()
    )


def test_a_detector_learns():
    _, stats = trained(1, Recipe(epochs=12, batch=4, lr=0.02))
    assert stats.epochs[-1].loss < 0.6 * stats.epochs[0].loss


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@CUDA
@pytest.mark.gpu
def test_mixed_precision_channels_last_learns_on_the_gpu():
    model, stats = trained(1, Recipe(epochs=12), torch.device("cuda"), amp=True, channels_last=True)
    assert stats.epochs[-1].loss < 0.6 * stats.epochs[0].loss
    weight = model.backbone[0].weight
    assert weight.dtype == torch.float32 and weight.is_contiguous(memory_format=torch.channels_last)


@CUDA
@pytest.mark.gpu
def test_a_batch_that_overfills_the_gpu_is_halved():
    class Hungry(Line):
        """Takes 15 MiB a picture: 60 for a batch of four, where 45 are allowed, and 30 for half."""

        def forward(self, images, targets):
            held = torch.empty(len(images) * 15 * 2**18, device="cuda", dtype=torch.float32)
            return {**super().forward(images, targets), "none": held[:1].zero_().sum() * 0}

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(45 * 2**20 / total)
    try:
        stats = train(
            Hungry(),
            lambda epoch: [batch_of([(1.0, 1)] * 4)] * 2,
            PLAIN,
            device=torch.device("cuda"),
            generator=torch.Generator(),
            quiet=Quiet(),
            on_epoch=lambda *_: None,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert stats.parts == 2


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 2))
    model[2].bias.requires_grad = False
    decayed, plain = parameter_groups(model, 1e-4)
    assert decayed["weight_decay"] == 1e-4 and plain["weight_decay"] == 0.0
    assert {p.shape for p in decayed["params"]} == {(8, 3, 3, 3), (2, 8)}
    assert len(plain["params"]) == 3  # the convolution's bias, the norm's weight and bias

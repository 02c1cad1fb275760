"""Training steps under a memory budget: some ops run again, all bits stay."""

import functools
import json

import pytest
import torch
from torch import nn
from training_loops import Loop, Net, assert_equal, batch, compare, everything

import torch_ext

pytestmark = pytest.mark.usefixtures("with_gradients")
LEVERS = ("order", "overwrite", "repeat")


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


class ConvNet(nn.Module):
    """What torchvision's networks do: batch norm, activations in place, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(3, 8)
        self.blocks = nn.ModuleList(self._block(8, 8) for _ in range(4))
        self.last = nn.Linear(8, 10)

    def _block(self, inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x) + x
        return self.last(x.mean((2, 3)))


class Transformer(nn.Module):
    """Dropout, views, an embedding that is the head, too."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.words(tokens)).flatten(0, 1)
        return nn.functional.linear(x, self.words.weight)


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    return x, torch.randint(0, 10, (4,), generator=generator)


def sentences(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 50, (4, 16), generator=generator)
    return words, words.roll(-1, 1).flatten()


CASES = {
    "convolutions": (ConvNet, images, sgd),
    "transformer": (Transformer, sentences, adam),
    "shared and frozen": (Net, lambda seed: batch(seed=seed), adam),
}


def made(name: str):
    torch.manual_seed(0)
    make, batch_of, optimizer = CASES[name]
    return make(), [batch_of(seed) for seed in range(3)], optimizer


@functools.cache
def peak_of(name: str) -> int:
    model, batches, optimizer = made(name)
    return compare(model, optimizer, batches[:1], levers=["order", "overwrite"]).report.peak_bytes


@pytest.mark.parametrize(
    ("name", "share"), [("convolutions", 0.65), ("transformer", 0.8), ("shared and frozen", 0.9)]
)
def test_a_budget_is_met_bit_for_bit(name, share):
    budget = int(share * peak_of(name))
    model, batches, optimizer = made(name)
    report = compare(model, optimizer, batches, levers=LEVERS, memory_budget=budget).report
    (use,) = (use for use in report.levers if use.name == "repeat")
    assert report.budget_met, use.reason
    assert report.peak_bytes <= budget
    assert report.measured_peak_bytes == report.peak_bytes
    assert use.edits == len(report.repeats) > 0
    assert report.extra_seconds == pytest.approx(sum(again.seconds for again in report.repeats))
    assert 0 <= report.extra_seconds_bound <= report.extra_seconds < report.call_seconds
    names = [again.name for again in report.repeats]
    assert len(set(names)) == len(names)
    assert set(names) <= set(report.order)
    assert all(again.op in report.order for again in report.repeats)
    once = ("bernoulli", "native_dropout", "addcmul", "addcdiv", "sqrt")
    assert not any(word in name for name in names for word in once)
    if name == "convolutions":
        assert any("batch_norm" in again for again in names)
        assert model.first[1].num_batches_tracked == len(batches)
        assert any(again.module_path.startswith("blocks.") for again in report.repeats)


def test_given_times_give_the_same_repeats():
    model, batches, optimizer = made("transformer")
    asked = {"levers": LEVERS, "memory_budget": int(0.8 * peak_of("transformer"))}
    report = compare(model, optimizer, batches[:1], **asked).report
    model, batches, optimizer = made("transformer")
    again = compare(model, optimizer, batches[:1], op_seconds=report.op_seconds, **asked).report
    assert again.repeats == report.repeats
    assert again.order == report.order
    assert again.op_seconds == report.op_seconds
    assert sum(report.op_seconds.values()) == pytest.approx(report.call_seconds)


def test_a_budget_below_the_floor_says_which_op_needs_more(tmp_path):
    model, batches, optimizer = made("convolutions")
    step = compare(model, optimizer, batches, levers=LEVERS, memory_budget=1000)
    report = step.report
    assert report.budget_met is False
    assert report.extra_seconds_bound is None
    (use,) = (use for use in report.levers if use.name == "repeat")
    assert "no order and no repeats get below" in use.reason
    assert "needs at once" in use.reason
    assert "test_training_repeat.py" in use.reason
    assert 1000 < report.floor_bytes <= report.peak_bytes < peak_of("convolutions")
    # A report tells of repeats wherever it is shown.
    report.save_html(tmp_path / "step.html")
    rows = dict(report.rows())
    assert rows["ops that run again"] == str(len(report.repeats))
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["repeats"][0]["op"] in fields["order"]


@pytest.mark.parametrize("budget", [None, "1GiB"])
def test_nothing_runs_again_where_nothing_has_to(budget):
    model, batches, optimizer = made("convolutions")
    step = compare(model, optimizer, batches[:1], levers=LEVERS, memory_budget=budget)
    (use,) = (use for use in step.report.levers if use.name == "repeat")
    assert ("give a memory budget" in use.reason) is (budget is None)
    assert not step.report.repeats
    assert step.report.call_seconds is None


def test_torchscript_runs_them_again_too():
    model, batches, optimizer = made("convolutions")
    budget = int(0.75 * peak_of("convolutions"))
    options = {"levers": LEVERS, "memory_budget": budget, "runtime": "torchscript"}
    step = compare(model, optimizer, batches, **options)
    assert step.report.repeats
    assert step.report.measured_peak_bytes == step.report.peak_bytes <= budget


def test_mixed_precision_with_norms_without_weights():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, affine=False))
            for _ in "ab"
        ),
        nn.Flatten(),
        nn.Linear(3 * 16 * 16, 10),
    )
    step = compare(
        model,
        sgd,
        [images(seed) for seed in range(2)],
        around=lambda: torch.autocast("cpu", torch.bfloat16),
        levers=LEVERS,
        memory_budget=1000,
    )
    assert not any("failed" in use.reason for use in step.report.levers)


def test_clipping_needs_all_gradients_but_not_all_activations():
    model, batches, optimizer = made("convolutions")
    loop, own = Loop(model, optimizer), optimizer(model)
    options = {"levers": LEVERS, "memory_budget": int(0.75 * peak_of("convolutions"))}
    step = torch_ext.training_step(
        model, nn.functional.cross_entropy, own, batches[0], clip_grad_norm=0.1, **options
    )
    assert step.report.repeats
    for values in batches:
        loss = loop(*values, clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1))
        assert torch.equal(loss, step(*values))
        assert_equal(everything(loop.model, loop.optimizer), everything(model, own))

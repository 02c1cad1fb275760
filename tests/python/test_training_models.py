"""Common models: each trains as in the loop, or the one error says why not and what helps."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from training_loops import OPTIMIZERS, compare, graphs_of, refusal

import torch_ext

pytestmark = pytest.mark.usefixtures("with_gradients")

WIDTH = 16


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(4, 6, WIDTH, generator=generator), torch.randn(4, 4, generator=generator))
        for _ in range(count)
    ]


def squares(result, target):
    return ((result - target) ** 2).mean()


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layers = kind(WIDTH, WIDTH, batch_first=True, **options)
        self.last = nn.LazyLinear(4)
        self(batches()[0][0])

    def forward(self, x):
        return self.last(self.layers(x)[0][:, -1])


@pytest.mark.parametrize("runtime", ["fx", "torchscript"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "dropout": 0.3},
        {"num_layers": 2, "bidirectional": True},
        {"bias": False},
        {"proj_size": 8},
    ],
)
def test_lstm(options, runtime):
    model = Recurrent(nn.LSTM, **options)
    step = compare(model, OPTIMIZERS["adamw"], batches(), loss_fn=squares, runtime=runtime)
    assert all(graph.captured is not None for graph in graphs_of(step))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_other_recurrent_layers(kind):
    compare(Recurrent(kind, num_layers=2), OPTIMIZERS["adamw"], batches(), loss_fn=squares)


def first_row(layer):
    """Takes the first of six rows; the layer goes by the name 1."""
    return nn.Sequential(Rows(), layer)


class Rows(nn.Module):
    def forward(self, x):
        return x[:, 0]


def pruned():
    layer = nn.Linear(WIDTH, 4)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


def pruned_twice():
    layer = pruned()
    prune.random_unstructured(layer, "weight", amount=0.2)
    prune.l1_unstructured(layer, "bias", amount=0.5)
    return layer


COMPUTED_WEIGHTS = {
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, 4)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, 4)),
    "pruned": pruned,
    "pruned twice": pruned_twice,
    "parametrized weight_norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, 4)),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, 4)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED_WEIGHTS)
def test_weights_that_are_computed_from_others(name):
    """Also after the model was used in between, which computes the attribute anew."""

    def use(number, model, optimizer):
        if number == 1:
            model.eval()
            model(batches()[2][0])
            model.train()

    torch.manual_seed(0)
    model = first_row(COMPUTED_WEIGHTS[name]())
    torch.manual_seed(0)
    twin = first_row(COMPUTED_WEIGHTS[name]())
    step = compare(model, OPTIMIZERS["adamw"], batches(), loss_fn=squares, twin=twin, change=use)
    assert len(graphs_of(step)) == 1


# --- checkpointing --------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Two blocks that run again in the backward pass."""

    def __init__(self, p=0.5, **options):
        super().__init__()
        self.start = nn.Linear(WIDTH, WIDTH)
        self.first = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(p), nn.Linear(WIDTH, WIDTH))
        self.second = nn.Sequential(nn.Dropout(p), nn.Linear(WIDTH, 4))
        self.options = options

    def forward(self, x):
        y = checkpoint(self.first, self.start(x[:, 0]), **self.options)
        return checkpoint(self.second, y, **self.options)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_checkpoint_goes_back_to_its_random_numbers(p):
    model = Checkpointed(p, use_reentrant=False)
    step = compare(model, OPTIMIZERS["adamw"], batches(), loss_fn=squares)
    assert all(graph.captured is not None for graph in graphs_of(step))


def test_torchscript_does_not_go_back_to_random_numbers():
    model = Checkpointed(use_reentrant=False)
    options = {"runtime": "torchscript"}
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], squares, **options)
    assert "runtime='fx'" in message


def test_reentrant_checkpoint():
    model = Checkpointed(use_reentrant=True)
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], squares)
    assert "use_reentrant=False" in message


# --- what is refused ------------------------------------------------------------------------------


class Calls(nn.Module):
    """A layer, and a function of its result."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x[:, 0]))


@torch.library.custom_op("torch_ext_tests::no_backward", mutates_args=())
def no_backward(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class Doubles(torch.autograd.Function):
    """Reads content where tracing cannot see it, in its backward pass too."""

    @staticmethod
    def forward(ctx, x):
        return x * float(x.detach().numpy().max())

    @staticmethod
    def backward(ctx, gradient):
        return gradient


compiled = torch.compile(lambda x: x * 2, backend="eager")

REFUSED = {
    "a compiled module": (lambda: torch.compile(Calls(abs), backend="eager"), "compile"),
    "a compiled part": (
        lambda: first_row(torch.compile(nn.Linear(WIDTH, 4), backend="eager")),
        "1 is compiled",
    ),
    "a scripted part": (lambda: first_row(torch.jit.script(nn.Linear(WIDTH, 4))), "TorchScript"),
    "a compiled function": (lambda: Calls(lambda x: compiled(x)), "torch.compile"),
    "content of activations": (lambda: Calls(Doubles.apply), "depends on the value"),
    "Python's random": (lambda: Calls(lambda x: x * random.random()), "Python's random"),
    "NumPy's random": (lambda: Calls(lambda x: x * float(np.random.rand())), "numpy.random"),
    "momentum=None": (
        lambda: first_row(nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4, momentum=None))),
        "depends on the value",
    ),
    "what cannot be copied": (lambda: Calls(Uncopied()), "cannot be copied"),
}


class Uncopied:
    def __call__(self, x):
        return x

    def __deepcopy__(self, memo):
        raise TypeError("on purpose")


@pytest.mark.parametrize("name", REFUSED)
def test_one_error_for_all_that_cannot_be_captured(name):
    make, cause = REFUSED[name]
    model = make()
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    message = refusal(model, OPTIMIZERS["sgd"](model), batches()[0], squares)
    assert cause in message
    assert random.getstate() == python
    assert repr(np.random.get_state(legacy=False)) == repr(numpy)


def test_what_the_loop_raises_is_the_loops():
    def failing(x):
        raise LookupError("on purpose")

    model = Calls(failing)
    with pytest.raises(LookupError, match="on purpose"):
        torch_ext.training_step(model, squares, OPTIMIZERS["sgd"](model), batches()[0])


def test_what_a_batch_may_not_hold():
    model = Calls(abs)
    x, y = batches()[0]
    step = torch_ext.training_step(model, squares, OPTIMIZERS["sgd"](model), (x, y))
    with pytest.raises(torch_ext.training.UnsupportedError, match="ndarray"):
        step(x, y.numpy())
    with pytest.raises(torch_ext.training.UnsupportedError, match="layout"):
        step(x, y.to_sparse())


# --- transformers ---------------------------------------------------------------------------------

TOKENS = 16


def words(seed):
    return torch.randint(0, 100, (2, TOKENS), generator=torch.Generator().manual_seed(seed))


def mask(first):
    """Of two rows: of the first so many tokens count, of the second all."""
    return (torch.arange(TOKENS) < torch.tensor([[first], [TOKENS]])).long()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def gpt(transformers, attention):
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=32,
        n_positions=32,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return transformers.GPT2LMHeadModel(config)


def bert(transformers, attention):
    config = transformers.BertConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=32,
        vocab_size=100,
        attn_implementation=attention,
    )
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [gpt, bert])
def test_masked_transformers_in_dicts(transformers, make, attention):
    """A mask of ones and one of padding lead transformers to other kernels."""
    given = [
        {"input_ids": words(seed), "attention_mask": mask(first), "labels": words(seed)}
        for seed, first in enumerate((TOKENS, 10, TOKENS, 3))
    ]
    model = make(transformers, attention)
    step = compare(model, OPTIMIZERS["adamw"], given, loss_fn=None)
    assert all(graph.captured is not None for graph in graphs_of(step))
    assert len(graphs_of(step)) <= 2


def test_masked_transformers_in_tuples(transformers):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = gpt(transformers, "sdpa")

        def forward(self, tokens, mask):
            return self.model(input_ids=tokens, attention_mask=mask).logits

    def loss_fn(logits, target):
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    given = [(words(seed), mask(first), words(seed)) for seed, first in enumerate((10, TOKENS))]
    compare(Logits(), OPTIMIZERS["adamw"], given, loss_fn=loss_fn)


def test_losses_of_dicts():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, 4)

        def forward(self, x, y):
            return self.layer(x[:, 0])

    x, y = batches()[0]
    model = Named()
    optimizer = OPTIMIZERS["sgd"](model)

    def of_both(result, batch):
        return squares(result, batch["y"])

    expected = of_both(model(x, y), {"y": y}).item()
    step = torch_ext.training_step(model, of_both, optimizer, {"x": x, "y": y})
    with pytest.raises(ValueError, match="not both"):
        step(x, y=y)
    assert step(x=x, y=y).item() == expected
    with pytest.raises(ValueError, match="loss_fn"):
        torch_ext.training_step(model, None, optimizer, (x, y))

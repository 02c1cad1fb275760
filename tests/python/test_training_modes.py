"""Steps under autocast and other modes, constructed under one and called under another."""

import contextlib
import functools

import pytest
import torch
from torch import nn
from training_loops import OPTIMIZERS, Loop, assert_equal, compare, everything, graphs_of

import torch_ext
from torch_ext.training.modes import Modes, apart

pytestmark = pytest.mark.usefixtures("with_gradients")

BFLOAT16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
AUTOCASTS = {
    "none": contextlib.nullcontext,
    "bfloat16": BFLOAT16,
    "float16": functools.partial(torch.autocast, "cpu", torch.float16),
    "without cache": functools.partial(BFLOAT16, cache_enabled=False),
}


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 64, generator=generator), torch.randn(8, 4, generator=generator))
        for _ in range(count)
    ]


def loss_fn(result, target):
    return ((result.float() - target) ** 2).mean()


class Encoder(nn.Module):
    """Attention with dropout, in a module of torch's."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        return self.last(self.encoder(x.view(-1, 2, 32)).mean(1))


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.layers(x.view(-1, 1, 8, 8)).mean((2, 3)))


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.LSTM(8, 16, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.layers(x.view(-1, 8, 8))[0][:, -1])


class CastsInside(Encoder):
    def forward(self, x):
        with BFLOAT16():
            return super().forward(x)


def has_lstm(around) -> bool:
    """Has this processor one of that dtype, with gradients? With AVX2 there is none of bfloat16."""
    try:
        with torch.enable_grad(), around():
            Sequences()(batches()[0][0])
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("model", [Encoder, Images, Sequences, CastsInside])
@pytest.mark.parametrize(
    ("constructed", "called"),
    [
        ("none", "bfloat16"),
        ("bfloat16", "none"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float16"),
        ("none", "without cache"),
    ],
)
def test_autocast_around_forward_and_loss(model, constructed, called):
    """As in the loop, wherever the step was constructed: backward pass and update are outside."""
    if model is Sequences and not (
        has_lstm(AUTOCASTS[constructed]) and has_lstm(AUTOCASTS[called])
    ):
        pytest.skip("torch has no LSTM of this dtype here")
    around = AUTOCASTS[called]
    network = model()
    loop = Loop(network, OPTIMIZERS["adamw"], loss_fn, around)
    optimizer = OPTIMIZERS["adamw"](network)
    with AUTOCASTS[constructed]():
        step = torch_ext.training_step(network, loss_fn, optimizer, batches()[0])
    for number, values in enumerate(batches()):
        torch.manual_seed(number)
        expected = loop(*values)
        torch.manual_seed(number)
        with around():
            actual = step(*values)
        assert torch.equal(expected.detach(), actual)
        assert_equal(everything(loop.model, loop.optimizer), everything(network, optimizer))
    assert len(graphs_of(step)) == 1 + (constructed != called)
    assert all(graph.captured is not None for graph in graphs_of(step))


@pytest.mark.parametrize("options", [{}, {"max_graphs": 1, "on_new_shape": "eager"}])
def test_one_autocast_around_all_steps_has_fresh_casts_in_each(options):
    """torch keeps the casts of weights until the block ends, and the update changes the weights."""
    network = Encoder()
    optimizer = OPTIMIZERS["sgd"](network)
    loop = Loop(network, OPTIMIZERS["sgd"], loss_fn, BFLOAT16)
    expected, actual = [], []
    for number, values in enumerate(batches()):
        torch.manual_seed(number)
        expected.append(loop(*values).item())
    shorter = [value[:5] for value in batches()[0]]
    with BFLOAT16():
        example = shorter if options else batches()[0]
        step = torch_ext.training_step(network, loss_fn, optimizer, example, **options)
        for number, values in enumerate(batches()):
            torch.manual_seed(number)
            actual.append(step(*values).item())
    assert expected == actual


def test_autocast_in_torchscript():
    compare(
        Encoder(),
        OPTIMIZERS["adamw"],
        batches(),
        loss_fn=loss_fn,
        around=BFLOAT16,
        runtime="torchscript",
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("model", [Encoder, Sequences])
@pytest.mark.parametrize("by_loop", [False, True])
def test_gradients_are_on_while_a_step_runs(mode, model, by_loop):
    """Whatever its caller has switched off: constructed there, and called there."""
    network = model()
    loop = Loop(network, OPTIMIZERS["adamw"], loss_fn)
    optimizer = OPTIMIZERS["adamw"](network)
    example = [value[:5] for value in batches()[0]] if by_loop else batches()[0]
    with mode():
        step = torch_ext.training_step(
            network, loss_fn, optimizer, example, on_new_shape="eager" if by_loop else "capture"
        )
    for number, values in enumerate(batches()):
        torch.manual_seed(number)
        expected = loop(*values)
        torch.manual_seed(number)
        with mode():
            actual = step(*values)
        assert torch.equal(expected.detach(), actual)
        assert_equal(everything(loop.model, loop.optimizer), everything(network, optimizer))


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def one_thread():
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(2)


SWITCHES = {
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "threads": one_thread,
    "oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_what_decides_on_kernels_is_part_of_the_key(name):
    """The second of three steps is made under another mode, by loop and step alike."""
    network = Encoder()
    loop = Loop(network, OPTIMIZERS["adamw"], loss_fn)
    optimizer = OPTIMIZERS["adamw"](network)
    step = torch_ext.training_step(network, loss_fn, optimizer, batches()[0])
    for number, values in enumerate(batches()):
        with SWITCHES[name]() if number == 1 else contextlib.nullcontext():
            torch.manual_seed(number)
            expected = loop(*values)
            torch.manual_seed(number)
            actual = step(*values)
        assert torch.equal(expected.detach(), actual)
        assert_equal(everything(loop.model, loop.optimizer), everything(network, optimizer))
    assert len(graphs_of(step)) == 2


def test_a_mode_is_noticed_before_anything_is_written():
    network = Sequences()
    optimizer = OPTIMIZERS["adamw"](network)
    step = torch_ext.training_step(network, loss_fn, optimizer, batches()[0], max_graphs=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def failing(*_):
        raise ZeroDivisionError

    network.layers.forward = failing
    with BFLOAT16(), pytest.raises(ZeroDivisionError):
        step(*batches()[1])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not optimizer.state


def test_apart_undoes_what_surrounds_it():
    with torch.no_grad(), BFLOAT16(), torch.inference_mode(), apart():
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
    assert Modes.now() == Modes.now()
    with BFLOAT16():
        inside = Modes.now()
    assert inside != Modes.now()

"""Programs that ask for values of their batch: masks, lengths, numbers of tokens."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from training_loops import OPTIMIZERS, compare, graphs_of, refusal

import torch_ext

pytestmark = pytest.mark.usefixtures("with_gradients")

ROWS, WIDTH = 8, 16
MASKS = [[1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0, 1, 1]]
COUNTS = [[3, 5], [4, 4], [3, 5]]


def rows(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(ROWS, WIDTH, generator=generator)


class Asking(nn.Module):
    """A layer, and what `forward` makes of it and of the batch."""

    def __init__(self, finish):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.finish = finish

    def forward(self, x, asked):
        return self.finish(self.layer(x), asked)


def batches(values, dtype=torch.long):
    return [
        (rows(number), torch.tensor(value, dtype=dtype), torch.zeros(()))
        for number, value in enumerate(values)
    ]


def squares(result, target):
    return ((result.sum() - target) ** 2).mean()


MASKED = batches(MASKS, torch.bool)
COUNTED = batches(COUNTS)
# What is asked, the batches, and how many graphs they need.
QUESTIONS = {
    "if on all": (lambda y, m: y * 2 if m.all() else y, batches([[1, 1], [1, 0], [1, 1]]), 2),
    "if on a sum": (lambda y, m: y * 2 if m.sum() == m.numel() else y, MASKED, 1),
    "equal": (lambda y, m: y * 2 if torch.equal(m, m.flip(0)) else y, MASKED, 1),
    "while": (lambda y, n: y[int(n[0]) :] if n[0] > 3 else y, COUNTED, 2),
    "mask as index": (lambda y, m: y[m], MASKED, 2),
    "masked_select": (lambda y, m: torch.masked_select(y, m[:, None]) / m.sum(), MASKED, 2),
    "nonzero": (lambda y, m: y[m.nonzero()[:, 0]], MASKED, 2),
    "item": (lambda y, n: y[: n[0].item()], COUNTED, 2),
    "tolist": (lambda y, n: sum(part.mean() for part in y.split(n.tolist())), COUNTED, 2),
    "numpy": (lambda y, n: y * float(n.numpy()[0]), COUNTED, 2),
    "unique": (lambda y, n: y[:, : len(torch.unique(n))], COUNTED, 2),
    "one_hot": (lambda y, n: y[:, : nn.functional.one_hot(n).shape[1]], COUNTED, 2),
    "computed": (lambda y, n: y[: int((n.clone().add_(1) * 2).max()) // 2 - 1], COUNTED, 2),
    "a float input": (
        lambda y, x: y * 2 if x.mean() > 0 else y,
        batches([[1.0], [-1.0], [2.0]], torch.float),
        2,
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_answer_has_a_graph(name):
    finish, given, graphs = QUESTIONS[name]
    step = compare(Asking(finish), OPTIMIZERS["sgd"], given, loss_fn=squares)
    assert len(graphs_of(step)) == graphs
    assert all(graph.captured is not None for graph in graphs_of(step))


REFUSED = {
    "if on an activation": lambda y, n: y * 2 if y.sum() > 0 else y,
    "a mask of activations": lambda y, n: y[y > 0],
    "numpy of an activation": lambda y, n: y[torch.from_numpy(y.detach().numpy().argmax(1))],
    "a random number": lambda y, n: y * 2 if torch.rand(()) > 0.5 else y,
    "a fraction": lambda y, n: y * (n / 3).max().item(),
    "what is written in parts": lambda y, n: y * 2 if _with_first(n).sum() > 8 else y,
    "what is written to the batch": lambda y, n: y * 2 if n.add_(1).sum() > 8 else y,
}


def _with_first(n):
    n = n.clone()
    n[0] = 7
    return n


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_before_the_step(name):
    model = Asking(REFUSED[name])
    values = batches([[3, 5]])[0]
    message = refusal(model, OPTIMIZERS["sgd"](model), values, squares)
    assert "depends on the value of" in message
    assert "test_training_questions.py" in message


def test_many_answers_run_as_the_loop():
    given = batches([[number, 8 - number] for number in range(1, 7)])
    finish = QUESTIONS["tolist"][0]
    step = compare(Asking(finish), OPTIMIZERS["sgd"], given, loss_fn=squares, max_graphs=3)
    assert len(graphs_of(step)) == 3


def test_a_file_asks_nothing(tmp_path):
    model = Asking(QUESTIONS["item"][0])
    optimizer = OPTIMIZERS["sgd"](model)
    step = torch_ext.training_step(model, squares, optimizer, COUNTED[0], runtime="torchscript")
    with pytest.raises(ValueError, match="asks about values"):
        step.save(tmp_path / "step.pt")
    assert not list(tmp_path.iterdir())


# --- packed sequences -----------------------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self, kind, enforce_sorted):
        super().__init__()
        self.layers = kind(WIDTH, WIDTH, batch_first=True)
        self.enforce_sorted = enforce_sorted

    def forward(self, x, lengths):
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=self.enforce_sorted
        )
        return pad_packed_sequence(self.layers(packed)[0], batch_first=True)[0]


LENGTHS = [[6, 5, 3, 2], [6, 6, 3, 1], [6, 5, 3, 2]]


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences(kind, enforce_sorted):
    given = [(torch.randn(4, 6, WIDTH), torch.tensor(n), torch.zeros(())) for n in LENGTHS]
    step = compare(Packed(kind, enforce_sorted), OPTIMIZERS["adamw"], given, loss_fn=squares)
    assert len(graphs_of(step)) == 2


def test_lengths_as_a_list():
    given = [(torch.randn(4, 6, WIDTH), n, torch.zeros(())) for n in LENGTHS]
    step = compare(Packed(nn.LSTM, True), OPTIMIZERS["adamw"], given, loss_fn=squares)
    assert len(graphs_of(step)) == 2


def test_a_batch_that_is_packed():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.LSTM(WIDTH, WIDTH)

        def forward(self, packed):
            return self.layers(packed)[1][0]

    given = [
        (pack_sequence([torch.randn(n, WIDTH) for n in lengths]), torch.zeros(()))
        for lengths in LENGTHS
    ]
    step = compare(Last(), OPTIMIZERS["adamw"], given, loss_fn=squares)
    assert len(graphs_of(step)) == 2


def test_ctc_loss():
    def loss_fn(result, target):
        return nn.functional.ctc_loss(result.log_softmax(-1), *target)

    given = [
        (torch.randn(10, 2, 5), (torch.randint(1, 5, (2, 4)), torch.tensor([10, 9]), lengths))
        for lengths in (torch.tensor([4, 3]), torch.tensor([2, 3]), torch.tensor([4, 3]))
    ]
    step = compare(nn.Linear(5, 5), OPTIMIZERS["sgd"], given, loss_fn=loss_fn)
    assert len(graphs_of(step)) == 2

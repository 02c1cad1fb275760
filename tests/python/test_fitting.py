"""What fits into a memory budget, before and after: by searching, and by running at the answer."""

import json

import pytest
import torch
from models import traced_wide
from test_cli import complains, run
from torch import Tensor, nn

from torch_ext import capacity_text, fitting, training_capacity
from torch_ext.amounts import MIB
from torch_ext.fitting import Capacity, CapacityError, Fit, Usage, capacity

SPECS = ["Nx16:f32"]


def search(total, budget: int, step: int = 1, start: int = 1) -> Fit:
    measure = lambda size: Usage(0, 0, total(size))  # noqa: E731
    return fitting._Search("N", budget, step, measure).run(start)


# --- the search -----------------------------------------------------------------------------------

CURVES = {
    "linear": lambda n: 1000 + 70 * n,
    "quadratic": lambda n: 500 + 3 * n * n,
    "steps": lambda n: 100 * (n // 7) + 50,
    "flat, then steep": lambda n: 10 + max(0, n - 50) * 200,
    "root": lambda n: int(100 * n**0.5),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("step", [1, 5])
def test_the_largest_size_that_fits(curve, step):
    total = CURVES[curve]
    for budget in (500, 1_100, 2_000, 33_333):
        sizes = [n for n in range(step, 150_000, step) if total(n) <= budget]
        found = search(total, budget, step, start=step)
        assert found.size == max(sizes, default=0)
        assert found.usage.total_bytes == total(found.tried)
        if sizes:
            assert found.next_total_bytes == total(max(sizes) + step) > budget


def test_few_runs_for_a_line():
    runs = []

    def total(n: int) -> int:
        runs.append(n)
        return 1000 + 70 * n

    assert search(total, 10**6).size == 14271
    assert len(runs) <= 12


def test_no_limit():
    found = search(lambda n: 100, 500)
    assert found.size == fitting._LARGEST
    assert found.next_total_bytes is None


def test_sizes_that_are_too_small_are_passed_over():
    def total(n: int) -> int:
        if n < 7:
            raise RuntimeError("too small")
        return 100 * n

    assert search(total, 1000).size == 10


def test_a_model_that_never_runs_says_what_it_said_first():
    def total(n: int) -> int:
        raise RuntimeError(f"not {n}")

    with pytest.raises(RuntimeError, match="not 1"):
        search(total, 1000)


def test_a_search_that_fails_in_the_middle_says_how_far_it_came():
    def total(n: int) -> int:
        if n > 8:
            raise RuntimeError("too odd")
        return 100 * n

    with pytest.raises(CapacityError, match=r"N = \d+ fits; with N = \d+ the model cannot be run"):
        search(total, 100_000)


def test_no_run_takes_more_than_the_machine_has():
    with pytest.raises(CapacityError, match="N = 2 fits; the next run would take"):
        search(lambda n: 2**46 if n > 2 else 2**40 * n, 2**60)


# --- modules --------------------------------------------------------------------------------------


def test_more_fits_after():
    found = capacity(traced_wide(), SPECS, 4 * MIB)
    assert found.before.size < found.after.size
    assert found.before.usage.total_bytes <= 4 * MIB < found.before.next_total_bytes
    assert found.after.usage.total_bytes <= 4 * MIB < found.after.next_total_bytes
    before, after = found.needed
    assert before == found.before.usage
    assert after.total_bytes < before.total_bytes
    assert (after.parameter_bytes, after.input_bytes) == (
        before.parameter_bytes,
        before.input_bytes,
    )


def test_without_a_letter_it_tells_what_is_needed():
    found = capacity(traced_wide(), ["256x16:f32"])
    assert found.before is None
    assert found.needed[0].input_bytes == 256 * 16 * 4
    assert found.saved_bytes > 0


def test_a_module_that_changes_its_state_stays_as_it_is():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x * self.calls

    module = torch.jit.script(Counting())
    capacity(module, SPECS, MIB)
    assert module.calls.item() == 0


@pytest.mark.parametrize(
    ("specs", "options", "words"),
    [
        (["NxM:f32"], {"memory_budget": MIB}, "one letter"),
        (["Nx0.5"], {"memory_budget": MIB}, "not of the form"),
        (SPECS, {}, "needs a memory budget"),
        (SPECS, {"memory_budget": MIB, "step": 0}, "step must be"),
    ],
)
def test_mistakes_are_value_errors(specs, options, words):
    with pytest.raises(ValueError, match=words):
        capacity(traced_wide(), specs, **options)


def test_the_largest_batch_of_a_training_step():
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(*layers)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 128), torch.zeros(size, 128)

    with torch.enable_grad():
        found = training_capacity(
            model, nn.functional.mse_loss, optimizer, batch, 1_150_000, step=8, time_budget=0.1
        )
    assert 0 < found.before.size < found.after.size
    assert found.after.size % 8 == 0
    assert all(map(torch.equal, before, model.parameters()))


# --- for people -----------------------------------------------------------------------------------


def fit(size: int, total: int, following: int | None = None) -> Fit:
    return Fit(size, size or 1, Usage(0, 0, total), following)


SAME = (Usage(0, 0, 100 * MIB), Usage(0, 0, 80 * MIB))
MORE = Capacity("N", 100 * MIB, fit(4, 90 * MIB, 110 * MIB), fit(6, 95 * MIB, 105 * MIB), SAME)


@pytest.mark.parametrize(
    ("found", "english", "japanese"),
    [
        (MORE, "takes N = 6 at a time instead of 4", "4 から 6 に増えます"),
        (
            Capacity("N", MIB, fit(0, 2 * MIB), fit(2, MIB), SAME),
            "takes N = 2 at a time instead of none",
            "N = 2 まで動くようになります",
        ),
        (
            Capacity("", None, None, None, SAME),
            "runs in 80.00 MiB instead of 100.00 MiB (20.0 % less)",
            "100.00 MiB ではなく 80.00 MiB のメモリで動きます",
        ),
        (Capacity("", None, None, None, SAME[:1] * 2), "changes nothing", "変わりません"),
    ],
)
def test_one_sentence(found, english, japanese):
    assert english in capacity_text.sentence(found, "en", None)
    assert japanese in capacity_text.sentence(found, "ja", None)


def test_the_price_shows_its_arithmetic():
    price = capacity_text.Price(0.01, 10)
    found = Capacity("", None, None, None, (Usage(0, 0, 3 * 2**30), Usage(0, 0, 2**30)))
    assert price.yearly(found.saved_bytes) == pytest.approx(2 * 0.01 * 8760 * 10)
    arithmetic = dict(capacity_text.rows(found, price))["saved per year"]
    assert arithmetic == (
        "2.0000 GiB x 0.01 per GiB and hour x 8,760 hours x 10 replicas = 1,752.00"
    )
    assert "saves 1,752.00 a year with 10 copies" in capacity_text.sentence(found, "en", price)
    assert "年間 1,752.00 の節約" in capacity_text.sentence(found, "ja", price)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(traced_wide(), path)
    return path


def test_the_command(model):
    arguments = ("capacity", model, "--input", SPECS[0], "--memory-budget", "4MiB")
    result = run(*arguments, "--price-per-gib-hour", "1", "--replicas", "2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for words in ("memory budget", "largest N before", "parameters", "inputs", "saved per year"):
        assert words in result.stdout
    assert "at a time instead of" in result.stdout.splitlines()[-1]
    japanese = run(*arguments, "--lang", "ja").stdout.splitlines()[-1]
    assert "に増えます" in japanese
    fields = json.loads(run(*arguments, "--json").stdout)
    assert fields["format"] == 1
    assert fields["before"]["size"] < fields["after"]["size"]
    assert fields["needed"][0]["parameter_bytes"] > 0


def test_nothing_fits(model):
    result = run("capacity", model, "--input", SPECS[0], "--memory-budget", "1KiB")
    assert result.returncode == 3
    assert "none: N = 1 needs" in result.stdout
    assert "nothing fits into the memory budget" in result.stderr


def test_bad_usage(model):
    complains(run("capacity", model, "--input", SPECS[0]), 2, "needs a memory budget")
    complains(run("capacity", model, "--input", "NxM:f32", "--memory-budget", "1MiB"), 2, "letter")

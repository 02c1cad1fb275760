"""What fits into a memory budget, before and after: by searching, and by running at the answer."""

import dataclasses
import json

import pytest
import torch
from models import traced_wide
from test_cli import complains, run
from torch import Tensor, nn

from torch_ext import training_capacity
from torch_ext.amounts import MIB
from torch_ext.capacities import search, text
from torch_ext.capacities.search import Capacity, CapacityError, Fit, Usage, capacity

SPECS = ["Nx16:f32"]


def largest(total, budget: int, step: int = 1, start: int = 1) -> Fit:
    measure = lambda size: Usage(0, 0, total(size))  # noqa: E731
    return search._Search("N", budget, step, measure).run(start)


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
        found = largest(total, budget, step, start=step)
        assert found.size == max(sizes, default=0)
        assert found.usage.total_bytes == total(found.tried)
        if sizes:
            assert found.next_total_bytes == total(max(sizes) + step) > budget


def test_few_runs_for_a_line():
    runs = []

    def total(n: int) -> int:
        runs.append(n)
        return 1000 + 70 * n

    assert largest(total, 10**6).size == 14271
    assert len(runs) <= 12


def test_no_limit():
    found = largest(lambda n: 100, 500)
    assert found.size == search._LARGEST
    assert found.next_total_bytes is None
    assert largest(lambda n: 100, 500, step=2**21, start=2**21).size == 2**21


def test_sizes_that_are_too_small_are_passed_over():
    def total(n: int) -> int:
        if n < 7:
            raise RuntimeError("too small")
        return 100 * n

    assert largest(total, 1000).size == 10


def test_a_model_that_never_runs_says_what_it_said_first():
    def total(n: int) -> int:
        raise RuntimeError(f"not {n}")

    with pytest.raises(RuntimeError, match="not 1"):
        largest(total, 1000)


@pytest.mark.parametrize("most", [1, 8, 100, 1023])
@pytest.mark.parametrize("step", [1, 4])
def test_where_a_model_ends_is_found(most, step):
    def total(n: int) -> int:
        if n > most * step:
            raise torch.jit.Error("raise AssertionError: ...\nAssertionError: too long\n")
        return 100 * n

    found = largest(total, 10**9, step, start=step)
    assert found.size == most * step
    assert found.next_total_bytes is None
    assert found.next_error == "AssertionError: too long"
    assert "with the next size the model cannot be run: AssertionError: too long" in str(
        text.rows(Capacity("N", 10**9, found, found, SAME), None)
    )


def test_odd_sizes_that_cannot_be_run_end_the_search_and_it_says_how_far_it_came():
    def total(n: int) -> int:
        if n % 16:
            raise RuntimeError("too odd")
        return 100 * n

    words = r"N = 16 fits; with N = 17 the model cannot be run, with 32 it can.*too odd.*--step"
    with pytest.raises(CapacityError, match=words):
        largest(total, 100_000)
    assert largest(total, 100_000, step=16, start=16).size == 992


@pytest.mark.parametrize("refused", [lambda n: n % 2 == 0, lambda n: n % 4 == 1, lambda n: n == 2])
def test_one_odd_size_is_not_taken_for_the_end(refused):
    def total(n: int) -> int:
        if refused(n):
            raise RuntimeError("too odd")
        return 100 * n

    with pytest.raises(CapacityError, match="nothing can be searched"):
        largest(total, 10_000)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: no")]
)
def test_too_little_memory_is_no_property_of_the_model(error):
    def total(n: int) -> int:
        if n > 50:
            raise error
        return n

    with pytest.raises(CapacityError, match=r"N = \d+ fits; N = \d+ takes more than this machine"):
        largest(total, 10_000)


def test_the_original_order_stays_a_candidate():
    def before(n: int) -> Usage:
        return Usage(0, 0, 100 * n)

    found = search._capacity(
        "N", 999, 1, before, lambda _: (lambda n: Usage(0, 0, 100 * n + 100), "none")
    )
    assert found.after == found.before
    assert found.saved_bytes == 0
    assert found.fits


@pytest.mark.parametrize("least", [33, 40, 45, 46, 64])
def test_a_size_between_one_too_small_and_one_too_large(least):
    def total(n: int) -> int:
        if n < least:
            raise ValueError("too small")
        return 100 * n

    found = largest(total, 4599)
    assert (found.size, found.tried) == ((45, 45) if least <= 45 else (0, least))


def test_what_goes_wrong_after_reordering_does_not_hide_what_was_found_before():
    def before(n: int) -> Usage:
        return Usage(0, 0, 100 * n)

    def refuses(n: int):
        raise RuntimeError("no more")

    with pytest.raises(CapacityError, match="before reordering N = 9 fits; after it: no more"):
        search._capacity("N", 999, 1, before, refuses)


def test_no_run_takes_more_than_the_machine_has():
    with pytest.raises(CapacityError, match="N = 2 fits; the next run would take"):
        largest(lambda n: 2**46 if n > 2 else 2**40 * n, 2**60)


# --- modules --------------------------------------------------------------------------------------


def test_more_fits_after():
    found = capacity(traced_wide(), SPECS, 4 * MIB)
    assert found.before.size < found.after.size
    assert found.is_batch
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


def test_a_training_step_holds_a_larger_batch_if_ops_run_again():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 64), torch.zeros(size, 64)

    def found(most: float) -> Capacity:
        with torch.enable_grad():
            return training_capacity(
                *(model, nn.functional.mse_loss, optimizer, batch, 3 * MIB),
                step=64,
                time_budget=0.5,
                most_extra_time=most,
            )

    much, none = found(10.0), found(1e-9)
    assert much.after.size < much.with_repeats.size
    assert much.with_repeats.usage.total_bytes <= 3 * MIB
    assert 0 < much.extra_time < 10
    assert f"{100 * much.extra_time:.1f} %" in dict(text.rows(much, None))["  extra time"]
    assert none.with_repeats.size == none.after.size == much.after.size
    assert not none.extra_time
    told = dict(text.rows(none, None))["largest N with repeats"]
    assert told.endswith("the next size takes too long")


def test_what_training_holds_is_counted_also_before_the_first_update():
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(128, 128)
            self.register_buffer("table", torch.zeros(4096))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.table[:128]

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 128), torch.zeros(size, 128)

    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.Adam(model.parameters())
    found = []
    with torch.enable_grad():
        for _ in range(2):
            found.append(
                training_capacity(
                    model, nn.functional.mse_loss, optimizer, batch, MIB, step=256, time_budget=0.1
                )
            )
            inputs, target = batch(2)
            nn.functional.mse_loss(model(inputs), target).backward()
            optimizer.step()
    fresh, started = found
    assert fresh == started
    weights = sum(p.nbytes for p in model.parameters())
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert fresh.needed[0].parameter_bytes == weights + 4096 * 4 + held > 3 * weights


# --- for people -----------------------------------------------------------------------------------


def fit(size: int, total: int, following: int | None = None) -> Fit:
    return Fit(size, size or 1, Usage(0, 0, total), following)


SAME = (Usage(0, 0, 100 * MIB), Usage(0, 0, 80 * MIB))
MORE = Capacity(
    *("N", 100 * MIB, fit(4, 90 * MIB, 110 * MIB), fit(6, 95 * MIB, 105 * MIB), SAME),
    is_batch=True,
)


@pytest.mark.parametrize(
    ("found", "english", "japanese"),
    [
        (
            MORE,
            "handles 6 at a time instead of 4",
            "一度に 4 件までだった処理が、同じメモリで 6 件まで",
        ),
        (
            dataclasses.replace(MORE, letter="S", is_batch=False),
            "S can now be as large as 6",
            "4 から 6 まで",
        ),
        (
            Capacity("N", MIB, fit(0, 2 * MIB), fit(2, MIB), SAME, is_batch=True),
            "where nothing fitted before, the program now handles 2 at a time",
            "一度に 2 件まで動くようになります",
        ),
        (
            Capacity("N", MIB, fit(0, 2 * MIB), fit(0, 2 * MIB), SAME),
            "does not fit into 1.00 MiB: even with N = 1 it needs 80.00 MiB, and 100.00 MiB as",
            "収まりません。最小の N = 1 でも 80.00 MiB 必要です(変更前は 100.00 MiB)",
        ),
        (
            Capacity("", 90 * MIB, None, None, SAME[:1] * 2),
            "does not fit into 90.00 MiB: it needs 100.00 MiB",
            "90.00 MiB のメモリには収まりません。100.00 MiB 必要です",
        ),
        (
            Capacity("", None, None, None, SAME),
            "runs in 80.00 MiB instead of 100.00 MiB (20.0 % less)",
            "100.00 MiB から 80.00 MiB に減ります",
        ),
        (Capacity("", None, None, None, SAME[:1] * 2), "changes nothing", "変わりません"),
    ],
)
def test_one_sentence(found, english, japanese):
    assert english in text.sentence(found, "en", None)
    assert japanese in text.sentence(found, "ja", None)


def test_the_price_shows_its_arithmetic():
    price = text.Price(0.01, 10)
    found = Capacity("", None, None, None, (Usage(0, 0, 3 * 2**30), Usage(0, 0, 2**30)))
    assert price.yearly(found.saved_bytes) == pytest.approx(2 * 0.01 * 8760 * 10)
    arithmetic = dict(text.rows(found, price))["saved per year"]
    assert arithmetic == ("2 GiB x 0.01 per GiB and hour x 8,760 hours x 10 replicas = 1,752.00")
    assert "saves 1,752.00 a year with 10 copies" in text.sentence(found, "en", price)
    one = dataclasses.replace(price, replicas=1)
    assert "saves 175.20 a year with 1 copy" in text.sentence(found, "en", one)
    assert "saves" not in text.sentence(found, "en", dataclasses.replace(one, per_gib_hour=0))
    assert "年間 1,752.00 の節約" in text.sentence(found, "ja", price)


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
    assert "まで可能になります" in japanese
    fields = json.loads(run(*arguments, "--json").stdout)
    assert fields["format"] == 1
    assert fields["before"]["size"] < fields["after"]["size"]
    assert fields["needed"][0]["parameter_bytes"] > 0


def test_nothing_fits(model):
    result = run("capacity", model, "--input", SPECS[0], "--memory-budget", "1KiB")
    assert result.returncode == 3
    assert "none: N = 1 needs" in result.stdout
    assert "does not fit into the memory budget" in result.stderr
    assert "It does not fit into 1.00 KiB: even with N = 1" in result.stdout
    given = run("capacity", model, "--input", "256x16", "--memory-budget", "1KiB")
    assert given.returncode == 3
    assert "It does not fit into 1.00 KiB: it needs" in given.stdout


def test_bad_usage(model):
    complains(run("capacity", model, "--input", SPECS[0]), 2, "needs a memory budget")
    budget = ("--memory-budget", "1MiB")
    complains(run("capacity", model, "--input", "NxM:f32", *budget), 2, "letter")
    complains(run("capacity", model, "--input", "nx16:f32", *budget), 2, "capital")
    arguments = ("capacity", model, "--input", SPECS[0])
    for options, words in (
        ((*budget, "--price-per-gib-hour", "0,005"), "'0,005' is not a number like 0.005"),
        ((*budget, "--replicas", "9" * 400), "must be between 1 and 1e9"),
        (("--memory-budget", "9" * 400), "more memory than there can be"),
        (("--memory-budget", "1TiB"), "units: B, KiB, MiB, GiB"),
    ):
        result = run(*arguments, *options)
        assert result.returncode == 2
        assert words in result.stderr.splitlines()[-1]

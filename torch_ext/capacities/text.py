"""What a capacity means, for people: figures, prices, and one sentence in English or Japanese."""

import dataclasses
from typing import Literal

from torch_ext.amounts import amount
from torch_ext.capacities.search import Capacity, Fit, Usage
from torch_ext.columns import Rows

Language = Literal["en", "ja"]

GIB = 2**30
HOURS_PER_YEAR = 24 * 365


@dataclasses.dataclass(frozen=True)
class Price:
    """What memory costs, in any currency."""

    per_gib_hour: float
    replicas: int

    def yearly(self, size_bytes: int) -> float:
        """The price of that much memory, in all replicas, all year."""
        return size_bytes / GIB * self.per_gib_hour * HOURS_PER_YEAR * self.replicas

    def arithmetic(self, size_bytes: int) -> str:
        """The same, to be checked."""
        return (
            f"{size_bytes / GIB:.6g} GiB x {self.per_gib_hour:g} per GiB and hour x "
            f"{HOURS_PER_YEAR:,} hours x {self.replicas:,} replicas = "
            f"{self.yearly(size_bytes):,.2f}"
        )


def rows(found: Capacity, price: Price | None) -> Rows:
    """A table of two columns."""
    table: Rows = []
    if found.memory_budget is not None:
        table.append(("memory budget", amount(found.memory_budget)))
    for name, fit in (("before", found.before), ("after", found.after)):
        if fit is not None:
            table += _fit_rows(found.letter, name, fit)
    if found.with_repeats is not None:
        table += _fit_rows(found.letter, "with repeats", found.with_repeats)
        table.append(("  extra time", f"{100 * found.extra_time:.1f} % of that of all ops"))
    same = f" for {found.letter} = {found.before.tried}" if found.before else ""
    for name, usage in zip(("before", "after"), found.needed, strict=True):
        table.append((f"smallest budget{same}, {name}", _usage_text(usage)))
    if found.saved_bytes <= 0 and found.reason:
        table.append(("why", found.reason))
    if price is not None:
        table.append(("saved per year", price.arithmetic(found.saved_bytes)))
    return table


def _fit_rows(letter: str, name: str, fit: Fit) -> Rows:
    if fit.size == 0:
        needs = f"{letter} = {fit.tried} needs {_usage_text(fit.usage)}"
        return [(f"largest {letter} {name}", f"none: {needs}")]
    if fit.next_is_slow:
        more = "the next size takes too long"
    elif fit.next_total_bytes is not None:
        more = f"the next size takes {amount(fit.next_total_bytes)}"
    elif fit.next_error:
        more = f"with the next size the model cannot be run: {fit.next_error}"
    else:
        more = "larger ones were not tried"
    return [
        (f"largest {letter} {name}", f"{fit.size}; {more}"),
        ("  takes", _usage_text(fit.usage)),
    ]


def _usage_text(usage: Usage) -> str:
    return (
        f"{amount(usage.total_bytes)} = parameters {amount(usage.parameter_bytes)} + inputs "
        f"{amount(usage.input_bytes)} + activations {amount(usage.peak_bytes)}"
    )


# By what was found: the same work takes less, or not, or more fits into the budget. A batch is
# counted; what other letters stand for is not known.
_SENTENCES: dict[Language, dict[str, str]] = {
    "en": {
        "same": "Reordering changes nothing here: the program needs the same memory as before.",
        "less": (
            "The same work runs in {less} instead of {needed} ({percent} % less), with identical "
            "results."
        ),
        "none": "It does not fit into {budget}: {size}it needs {less}, and {needed} as it was.",
        "some batch": (
            "In {budget}, where nothing fitted before, the program now handles {after} at a time, "
            "with identical results."
        ),
        "more batch": (
            "In the same {budget} the program now handles {after} at a time instead of {before}, "
            "with identical results."
        ),
        "some": (
            "In {budget}, where nothing fitted before, {letter} can now be as large as {after}, "
            "with identical results."
        ),
        "more": (
            "In the same {budget} {letter} can now be as large as {after} instead of {before}, "
            "with identical results."
        ),
        "size": "even with {letter} = {smallest} ",
        "price": (
            " For the same work that saves {price} a year with {replicas:,} {copies} of the "
            "program."
        ),
    },
    "ja": {
        "same": "処理の順序を変えても、必要なメモリ量は変わりません。",
        "less": (
            "同じ処理に必要なメモリが {needed} から {less} に減ります"
            "({percent}% 削減、結果は完全に同じ)。"
        ),
        "none": "{budget} のメモリには収まりません。{size}{less} 必要です(変更前は {needed})。",
        "some batch": (
            "これまで {budget} のメモリでは動かなかった処理が、一度に {after} 件まで動くように"
            "なります(結果は完全に同じ)。"
        ),
        "more batch": (
            "これまで {budget} のメモリで一度に {before} 件までだった処理が、同じメモリで "
            "{after} 件まで可能になります(結果は完全に同じ)。"
        ),
        "some": (
            "これまで {budget} のメモリでは動かなかった処理が、{letter} = {after} まで動くように"
            "なります(結果は完全に同じ)。"
        ),
        "more": (
            "同じ {budget} のメモリで、{letter} を {before} から {after} まで大きくできます"
            "(結果は完全に同じ)。"
        ),
        "size": "最小の {letter} = {smallest} でも ",
        "price": (
            "同じプログラムを {replicas:,} プロセス動かす場合、年間 {price} の節約になります。"
        ),
    },
}


def sentence(found: Capacity, language: Language, price: Price | None) -> str:
    """The result, for whoever has to decide."""
    needed, less = (usage.total_bytes for usage in found.needed)
    said = _SENTENCES[language]
    values: dict[str, object] = {
        "needed": amount(needed),
        "less": amount(less),
        "percent": f"{100 * found.saved_bytes / needed:.1f}" if needed else "0.0",
        "budget": amount(found.memory_budget),
        "letter": found.letter,
        "before": found.before and found.before.size,
        "after": found.after and found.after.size,
        "smallest": found.after and found.after.tried,
    }
    values["size"] = said["size"].format(**values) if found.letter else ""
    told = said[_case(found)].format(**values)
    if price is not None and found.fits and price.yearly(found.saved_bytes) >= 0.01:
        told += said["price"].format(
            price=f"{price.yearly(found.saved_bytes):,.2f}",
            replicas=price.replicas,
            copies="copy" if price.replicas == 1 else "copies",
        )
    return told


def _case(found: Capacity) -> str:
    before, after = found.before, found.after
    if not found.fits:
        return "none"
    if before is None or after is None or before.size == after.size:
        return "less" if found.saved_bytes > 0 else "same"
    return ("more" if before.size else "some") + (" batch" if found.is_batch else "")

"""Brings the figures, tables and pictures of the documents in line with benchmarks/results.

In a document `<!--NAME-->...<!--/-->` surrounds what is made here, a figure or a table, from the
newest file of the benchmark in question; sentences are the document's own. With --check nothing is
written, and the exit code is 1 if a document says anything else than the results.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

import checkpointing
import doors
import front
import gains_picture
import largest_batch
import noticing
import optimizers
import passes
import peers
import planner
import planner_picture
import resident
import slices
import standard_models
import timeline
import torchvision_models
import training
from compilers import COMPILERS
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure
from results import FOLDER, Row, Table, latest, read_csv

ROOT = FOLDER.parent
DOCUMENTS = ("README.md", "benchmarks/README.md", "csrc/README.md", "docs/*.md")
BLOCK = re.compile(r"(<!--(?P<name>[a-z0-9-]+)-->)(.*?)(<!--/-->)", re.DOTALL)
EDITED_COLUMNS = (
    "measured before MiB",
    "measured after MiB",
    "overwrite MiB",
    "overwrite bound MiB",
)
WORDS = {
    "ablation": ("without", "worst instance"),
    "checkpointing": checkpointing.WORDS,
    "doors": doors.WORDS,
    "front": front.WORDS,
    "largest-batch": largest_batch.WORDS,
    "models": standard_models.WORDS,
    "models-batch8": standard_models.WORDS,
    "models-compilers": standard_models.WORDS,
    "models-edited": standard_models.WORDS,
    "models-edited-batch8": standard_models.WORDS,
    "models-overwrite": standard_models.WORDS,
    "models-quick": standard_models.WORDS,
    "noticing": noticing.WORDS,
    "optimizers": optimizers.WORDS,
    "passes": passes.WORDS,
    "planner": planner.WORDS,
    "planner-speed": planner.WORDS,
    "resident": resident.WORDS,
    "resident-training": resident.WORDS,
    "slices": slices.WORDS,
    "slices-avx2": slices.WORDS,
    "slices-batch8": slices.WORDS,
    "slices-exported": slices.WORDS,
    "slices-peers": slices.WORDS,
    "slices-peers-batch8": slices.WORDS,
    "slices-training": slices.WORDS,
    "timeline": timeline.WORDS,
    "torchvision": torchvision_models.WORDS,
    "training": training.WORDS,
}
SIX = ("ensemble", "moe", "randwire_seed0", "resnet50", "swin_t", "bert")  # of README.md
PASS_COLUMNS = (
    "model",
    "original MiB",
    "optimize MiB",
    "pass MiB",
    "cold calls",
    "warm ratio",
)
TOLERANCE = 2.0  # of compare_images, root mean square of 0 to 255: other fonts, not other curves


class StaleError(Exception):
    """A document that cannot be brought in line."""


@functools.cache
def _results(name: str) -> tuple[list[str], Table]:
    return read_csv(latest(name), WORDS[name])


def _table(name: str) -> Table:
    return _results(name)[1]


def _comment(name: str, key: str) -> str:
    for comment in _results(name)[0]:
        if comment.startswith(f"{key}: "):
            return comment.removeprefix(f"{key}: ")
    raise StaleError(f"{latest(name)} does not tell its {key}")


# --- standard models ------------------------------------------------------------------------------


def _gain(record: dict[str, str]) -> float:
    before, after = (float(record[f"measured {when} MiB"]) for when in ("before", "after"))
    return 100 * (1 - after / before)


def _gainers() -> list[dict[str, str]]:
    records = [record for record in _table("models-quick").records() if _gain(record) > 0]
    return sorted(records, key=_gain, reverse=True)


def _zeros() -> list[dict[str, str]]:
    return [record for record in _table("models-quick").records() if _gain(record) <= 0]


def _edits_table(batch: str) -> str:
    header = ("model", "before", "order", "and edits", "bound", "overwrites", "copies", "time")
    columns = (*EDITED_COLUMNS, "overwrites", "hoists", "overwrite time")
    rows: list[Row] = [
        (record["model"], *(record[column] for column in columns))
        for record in _table("models-overwrite").records()
        if record["batch"] == batch
    ]
    return Table(header, rows, ("model",)).markdown()


def _shown_table(name: str, shown: Mapping[str, str], words: tuple[str, ...]) -> str:
    """Some columns of a result; `shown`: how they are headed here, and there."""
    return Table(tuple(shown), _table(name).select(tuple(shown.values())).rows, words).markdown()


def _slices_table(name: str = "slices") -> str:
    shown = {
        "model": "model",
        "batch": "batch",
        "before": "before MiB",
        "edits": "edits MiB",
        "sliced": "sliced MiB",
        "time": "time",
        "to 1.15": "to 1.15 MiB",
        "its time": "to 1.15 time",
        "by hand": "hand MiB",
        "hand's time": "hand time",
        "hand's bits": "hand bits",
    }
    return _shown_table(name, shown, ("model", "hand's bits"))


def _front_table() -> str:
    shown = {
        "model": "model",
        "budget %": "budget %",
        "eager loop": "eager MiB",
        "best order": "order MiB",
        "with repeats": "measured MiB",
        "met": "met",
        "extra %": "extra %",
        "bound %": "bound %",
        "time": "time",
    }
    return _shown_table("front", shown, ("model", "met"))


def _checkpointing_table() -> str:
    shown = {
        "model": "model",
        "way": "way",
        "theirs": "theirs MiB",
        "cost": "their time",
        "state": "their state",
        "ours": "ours MiB",
        "extra %": "extra %",
        "bound %": "bound %",
        "ours / theirs": "our time",
    }
    return _shown_table("checkpointing", shown, ("model", "way", "state"))


def _largest_batch_table() -> str:
    shown = {
        "model": "model",
        "budget": "budget MiB",
        "loop": "loop",
        "order": "order",
        "repeats": "repeats",
        "extra %": "extra",
    }
    return _shown_table("largest-batch", shown, ("model",))


def _peers_table() -> str:
    """What others need, and their time beside what optimize takes."""
    peers = ("inference", "compile", "freezing")
    columns = [f"{peer} {what}" for peer in peers for what in ("MiB", "time")]
    header = (
        "model",
        "batch",
        "before",
        "ours",
        *(column.removesuffix(" MiB") for column in columns),
    )
    rows: list[Row] = [
        tuple(record[column] for column in ("model", "batch", "before MiB", "sliced MiB", *columns))
        for name in ("slices-peers", "slices-peers-batch8")
        for record in _table(name).records()
        if record["sliced MiB"]
    ]
    return Table(header, rows, ("model",)).markdown()


def _slices_mean() -> str:
    """Geometric mean of the times beside the modules as they were."""
    times = [float(record["whole time"]) for record in _table("slices-batch8").records()]
    return f"{statistics.geometric_mean(times):.2f}"


def _slices_gpt() -> str:
    (record,) = _table("slices-training").records()
    loop, edits = record["before MiB"], record["edits MiB"]
    sliced = f"{record['least MiB']} with slices, at {record['least time']} of the time"
    return f"{loop} MiB in the eager loop, {edits} by edits and {sliced}"


def _edited_totals() -> str:
    """Of every module that was measured with and without edits beside the order."""
    header = ("group", "batch", "modules", "less by order", "less still by edits", "largest %")
    records = _edited_records()
    rows: list[Row] = []
    kinds = dict.fromkeys((record["group"], record["batch"]) for record in records)
    for group, batch in (*kinds, ("all", "")):
        is_all = group == "all"
        own = [r for r in records if is_all or (r["group"], r["batch"]) == (group, batch)]
        gains = list(map(_edits_gain, own))
        proven = [r for r in own if r["overwrite MiB"] == r["overwrite bound MiB"]]
        counts = (len(own), sum(_gain(r) > 0 for r in own), sum(gain > 0 for gain in gains))
        rows.append((group, batch, *map(str, counts), f"{max(gains):.1f}", str(len(proven))))
    return Table((*header, "proven"), rows, ("group", "batch")).markdown()


def _edited_records() -> list[dict[str, str]]:
    table = _table("models-edited").with_rows_of(_table("models-edited-batch8"))
    return [record for record in table.records() if record["overwrite MiB"]]


def _edits_gain(record: dict[str, str]) -> float:
    """Of the peak of order alone, in %."""
    ordered, edited = (float(record[c]) for c in ("measured after MiB", "overwrite MiB"))
    return 100 * (1 - edited / ordered)


def _edited_models() -> str:
    header = ("model", "batch", "before", "order", "and edits", "bound", "less than order, %")
    rows: list[Row] = [
        (
            record["model"],
            record["batch"],
            *(record[column] for column in EDITED_COLUMNS),
            f"{_edits_gain(record):.1f}",
        )
        for record in _edited_records()
        if record["form"] == "frozen" and _edits_gain(record) > 0
    ]
    return Table(header, rows, ("model", "batch")).markdown()


def _models_table() -> str:
    header = (
        "model",
        "ops",
        "before MiB",
        "after MiB",
        "less by %",
        "bound MiB",
        "best of Inductor's three orders MiB",
        "`optimize_for_inference` MiB",
        "time after / before",
    )
    rows: list[Row] = [
        (
            record["model"],
            record["ops"],
            record["measured before MiB"],
            f"**{record['measured after MiB']}**",
            f"{_gain(record):.1f}",
            record["bound MiB"],
            f"{min(float(record[f'{order} MiB']) for order in ('lpmf', 'bfs', 'dfs')):.2f}",
            record["for inference MiB"],
            record["time"],
        )
        for record in _gainers()
    ]
    return Table(header, rows, ("model",)).markdown()


def _measured(table: Table) -> list[dict[str, str]]:
    return [record for record in table.records() if record["measured after MiB"]]


def broken_promises() -> list[str]:
    """What the documents say of all models of a run, where it does not hold."""
    broken = []
    names = ("models", "models-batch8", "models-compilers", "models-quick", "torchvision")
    for name in (*names, "models-edited", "models-edited-batch8"):
        for record in _measured(_table(name)):
            row = ", ".join(record[key] for key in ("model", "batch", "form") if key in record)
            if record["identical"] != "yes" or record["status"] != "optimal":
                broken.append(f"{name}: {row} is not identical, or not proven")
            if _gain(record) < 0:
                broken.append(f"{name}: {row} needs more than before")
            if record.get("overwrite MiB") and _edits_gain(record) < 0:
                broken.append(f"{name}: {row} needs more with edits than without")
            if float(record.get("error %", 0)) > 1:
                broken.append(f"{name}: the peak of {row} was predicted wrongly")
    if len(_measured(_table("torchvision"))) < len(_table("torchvision").rows):
        broken.append("torchvision: not all networks were measured")
    return broken


def _gains_of(freedom: bool) -> list[float]:
    """Of models that were chosen for their freedom, or of those off the shelf."""
    records = _table("models-quick").records()
    return [_gain(record) for record in records if (record["group"] == "freedom") == freedom]


def _percents(gains: Sequence[float]) -> str:
    """The least and the most of those that gain."""
    gaining = [gain for gain in gains if gain > 0]
    return f"{min(gaining):.1f} to {max(gaining):.1f} %"


def _gaining(gains: Sequence[float]) -> str:
    return str(sum(gain > 0 for gain in gains))


def _in_japanese(text: str) -> str:
    return text.replace(" to ", "~").replace(" %", "%")


def _six() -> str:
    """Those of README.md."""
    records = {record["model"]: record for record in _table("models-quick").records()}
    rows: list[Row] = [
        (
            model,
            records[model]["measured before MiB"],
            records[model]["measured after MiB"],
            records[model]["bound MiB"],
        )
        for model in SIX
    ]
    return Table(("model", "before", "after", "bound"), rows, ("model",)).markdown()


def _times() -> list[float]:
    return sorted(float(record["time"]) for record in _table("models-quick").records())


def _all_models() -> Table:
    """Both runs of `make bench`, at batch 1 and at batch 8."""
    return _table("models").with_rows_of(_table("models-batch8"))


def _compilers() -> str:
    """Without times: this run shared its machine."""
    table = standard_models.by_model(_table("models-compilers")).without_empty_columns()
    columns = [name for name in table.header if name not in ("batch", "time", "± spread")]
    return table.select(columns).markdown()


def _batch8() -> list[float]:
    return [
        _gain(record)
        for record in _measured(_table("models-batch8"))
        if (record["group"], record["form"]) == ("torchvision", "frozen")
    ]


def _against_ours(compiler: str) -> list[float]:
    """Where a compiler was measured: its peak less that of our order, in MiB."""
    return [
        round(float(record[f"{compiler} MiB"]) - float(record["measured after MiB"]), 2)
        for record in _measured(_table("models-compilers"))
        if record[f"{compiler} MiB"]
    ]


def _compilers_against() -> str:
    rows: list[Row] = []
    for compiler in COMPILERS:
        against = _against_ours(compiler)
        less, more = (sum(sign * each > 0 for each in against) for sign in (-1, 1))
        rows.append((compiler, str(less), str(more), str(len(against))))
    return Table(("", "needs less in", "more in", "of models"), rows, ("",)).markdown()


# --- the planner ----------------------------------------------------------------------------------


def _families() -> str:
    columns = ("family", "instances", "ours / best peer", "above best peer", "optimal %")
    summary = planner.summary_of(_table("planner"))
    return summary.select((*columns, "mean gap of rest %")).markdown()


def _peers() -> str:
    records = _table("planner").records()
    rows: list[Row] = []
    for peer in sorted(peers.PEERS, key=lambda peer: planner.mean_ratio(records, peer)):
        answered = [record for record in records if record[peer]]
        equal = sum(record["ours"] == record[peer] for record in answered)
        mean = f"{planner.mean_ratio(records, peer):.2f}"
        rows.append((peer, str(len(answered)), mean, str(equal)))
    header = ("peer", "instances it answers", "our peak / its peak", "equally low")
    return Table(header, rows, ("peer",)).markdown()


def _speed() -> str:
    rows: list[Row] = [
        (f"{int(record['ops']):,}", f"{float(record['ms']):,.0f}", record["status"])
        for record in _table("planner-speed").records()
    ]
    header = ("series-parallel, out-degree 3", "ms", "status")
    return Table(header, rows, ("status",)).markdown()


# --- doors, the pass, training --------------------------------------------------------------------


def _training_table() -> str:
    shown = {
        "model": "model",
        "eager": "eager MiB",
        "backward hooks": "hooks MiB",
        "this step": "ours MiB",
        "bound": "bound MiB",
        "`torch.compile(model)`": "compile MiB",
        "without layout optimisation": "without layout MiB",
        "whole step, without it": "whole step without layout MiB",
        "time / eager": "time / eager",
        "capture s": "capture s",
    }
    return _shown_table("training", shown, ("model",))


def _optimizers_table() -> str:
    shown = {
        "optimizer": "optimizer",
        "eager": "eager MiB",
        "backward hooks": "hooks MiB",
        "this step": "ours MiB",
        "bound": "bound MiB",
        "time / eager": "time / eager",
        "capture s": "capture s",
    }
    return _shown_table("optimizers", shown, ("optimizer",))


def _noticing() -> list[float]:
    return [float(record["of the step %"]) for record in _table("noticing").records()]


def _residents() -> str:
    rows: list[Row] = []
    for record in _table("training").records():
        share = float(record["ours resident MiB"]) / float(record["eager resident MiB"])
        rows.append((record["model"], f"{round(100 * (share - 1)):+}"))
    return Table(("model", "resident memory %"), rows, ("model",)).markdown()


def _inductor_lower() -> str:
    """Where the best of Inductor's three ways needs less than our step."""
    columns = ("compile MiB", "without layout MiB", "whole step without layout MiB")
    lower = []
    for record in _table("training").records():
        best = min(float(record[column]) for column in columns if record[column] != training.NONE)
        if best < float(record["ours MiB"]):
            lower.append(f"{record['model']} ({best:.2f} against {record['ours MiB']})")
    return ", ".join(lower)


def _files_losses() -> str:
    records = _table("training").records()
    column = "file's loss"
    return ", ".join(f"{record['model']} {record[column]}" for record in records)


BLOCKS: dict[str, Callable[[], str]] = {
    "models": _models_table,
    "models-count": lambda: str(len(_table("models-quick").rows)),
    "models-gaining-count": lambda: str(len(_gainers())),
    "models-six": _six,
    "models-range": lambda: _percents([_gain(record) for record in _gainers()]),
    "models-least": lambda: f"{min(map(_gain, _gainers())):.1f}",
    "models-most": lambda: f"{max(map(_gain, _gainers())):.1f}",
    "models-range-ja": lambda: _in_japanese(_percents([_gain(record) for record in _gainers()])),
    "models-time": lambda: f"{statistics.median(_times()):.2f}",
    "models-time-least": lambda: f"{_times()[0]:.2f}",
    "models-time-most": lambda: f"{_times()[-1]:.2f}",
    "shelf-count": lambda: str(len(_gains_of(freedom=False))),
    "shelf-gaining": lambda: _gaining(_gains_of(freedom=False)),
    "shelf-range": lambda: _percents(_gains_of(freedom=False)),
    "shelf-range-ja": lambda: _in_japanese(_percents(_gains_of(freedom=False))),
    "free-count": lambda: str(len(_gains_of(freedom=True))),
    "free-gaining": lambda: _gaining(_gains_of(freedom=True)),
    "free-most": lambda: f"{max(_gains_of(freedom=True)):.1f}",
    "models-zeros-count": lambda: str(len(_zeros())),
    "models-zeros": lambda: ", ".join(record["model"] for record in _zeros()),
    "edited-totals": _edited_totals,
    "edited-models": _edited_models,
    "edited-threads": lambda: _comment("models-edited", "threads").partition(",")[0],
    "edited-machine": lambda: _comment("models-edited", "machine"),
    "overwrite-table": lambda: _edits_table("1"),
    "hoist-table": lambda: _edits_table("8"),
    "overwrite-machine": lambda: _comment("models-overwrite", "machine"),
    "overwrite-threads": lambda: _comment("models-overwrite", "threads").partition(",")[0],
    "checkpointing-table": _checkpointing_table,
    "largest-batch-table": _largest_batch_table,
    "front-table": _front_table,
    "front-machine": lambda: _comment("front", "machine"),
    "front-threads": lambda: _comment("front", "threads"),
    "slices-table": _slices_table,
    "slices-batch8-table": lambda: _slices_table("slices-batch8"),
    "slices-avx2-table": lambda: _slices_table("slices-avx2"),
    "slices-avx2-machine": lambda: _comment("slices-avx2", "machine"),
    "slices-mean": _slices_mean,
    "slices-peers-table": _peers_table,
    "slices-peers-machine": lambda: _comment("slices-peers", "machine"),
    "slices-gpt": _slices_gpt,
    "slices-exported-table": lambda: _slices_table("slices-exported"),
    "slices-exported-machine": lambda: _comment("slices-exported", "machine"),
    "slices-machine": lambda: _comment("slices", "machine"),
    "slices-threads": lambda: _comment("slices", "threads"),
    "models-threads": lambda: _comment("models-quick", "threads").partition(",")[0],
    "all-models": lambda: (
        standard_models.by_model(_all_models()).without_empty_columns().markdown()
    ),
    "all-modules": lambda: str(len(_measured(_all_models()))),
    "all-models-count": lambda: str(len({r["model"] for r in _measured(_all_models())})),
    "all-models-totals": lambda: standard_models.totals(_all_models()).markdown(),
    "all-models-threads": lambda: _comment("models", "threads").partition(",")[0],
    "models-compilers": _compilers,
    "compilers-against": _compilers_against,
    "batch8-count": lambda: str(len(_batch8())),
    "batch8-less": lambda: _gaining(_batch8()),
    "batch8-range": lambda: _percents(_batch8()),
    "machine": lambda: _comment("models-quick", "machine"),
    "torch": lambda: _comment("models-quick", "torch"),
    "sweep-networks": lambda: str(len({r["model"] for r in _measured(_table("torchvision"))})),
    "sweep-modules": lambda: str(len(_measured(_table("torchvision")))),
    "sweep-gaining": lambda: _gaining([_gain(r) for r in _measured(_table("torchvision"))]),
    "planner-families": _families,
    "planner-count": lambda: str(len(_table("planner").rows)),
    "planner-peers": _peers,
    "planner-speed": _speed,
    "ablation": lambda: _table("ablation").markdown(),
    "doors": lambda: doors.by_door(_table("doors")).markdown(),
    "pass": lambda: _table("passes").select(PASS_COLUMNS).markdown(),
    "training": _training_table,
    "training-optimizers": _optimizers_table,
    "noticing-most": lambda: f"{max(_noticing()):.1f}",
    "noticing-count": lambda: str(len(_noticing())),
    "training-residents": _residents,
    "training-inductor-lower": _inductor_lower,
    "resident": lambda: resident.by_malloc(
        _table("resident").with_rows_of(_table("resident-training"))
    ).markdown(),
    "resident-shown": lambda: resident.shown(_table("resident")).markdown(),
    "training-files-losses": _files_losses,
}
PICTURES: dict[str, Callable[[], Figure]] = {
    "docs/memory.png": lambda: timeline.draw(_table("timeline")),
    "docs/gains.png": lambda: gains_picture.draw(_table("models-quick").records()),
    "docs/planner.png": lambda: planner_picture.draw(_table("planner").records()),
}


def filled(text: str) -> str:
    """The text of a document with every block made anew. Raises StaleError."""

    def block(match: re.Match[str]) -> str:
        if match["name"] not in BLOCKS:
            raise StaleError(f"no block {match['name']!r} here; there are: {', '.join(BLOCKS)}")
        made = BLOCKS[match["name"]]()
        start = match.start() and text[match.start() - 1]
        if "\n" in made:
            made = f"\n{made}\n"
        elif start in (0, "\n"):  # Markdown takes such a line for HTML
            raise StaleError(f"{match['name']} must not begin a line")
        return f"{match[1]}{made}{match[4]}"

    return BLOCK.sub(block, text)


def _text_and_made(path: pathlib.Path) -> tuple[str, str]:
    text = path.read_text(encoding="utf-8")
    try:
        return text, filled(text)
    except (StaleError, ValueError) as error:
        raise StaleError(f"{path.relative_to(ROOT)}: {error}") from None


def _paths() -> list[pathlib.Path]:
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def _save(figure: Figure, path: pathlib.Path) -> None:
    # No version of matplotlib in the file: the same picture has the same bytes.
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _differ(old: pathlib.Path, new: pathlib.Path) -> bool:
    try:
        return compare_images(str(old), str(new), TOLERANCE) is not None
    except ImageComparisonFailure:  # of other sizes
        return True


def stale() -> list[str]:
    """What is not as the results say."""
    found = []
    for path in _paths():
        try:
            text, made = _text_and_made(path)
        except StaleError as error:
            found.append(str(error))
            continue
        names = zip(BLOCK.finditer(text), BLOCK.finditer(made), strict=True)
        found += [
            f"{path.relative_to(ROOT)}: block {a['name']!r} is not what the results say"
            for a, b in names
            if a[0] != b[0]
        ]
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in PICTURES.items():
            new = pathlib.Path(folder, name.replace("/", "-"))
            _save(draw(), new)
            if not (ROOT / name).exists():
                found.append(f"{name} is missing")
            elif _differ(ROOT / name, new):
                found.append(f"{name} is not what the results say")
    return found


def _write() -> None:
    for path in _paths():
        try:
            text, made = _text_and_made(path)
        except StaleError as error:
            sys.exit(str(error))
        if made != text:
            unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            unfinished.write_text(made, encoding="utf-8")
            unfinished.replace(path)
    for name, draw in PICTURES.items():
        _save(draw(), ROOT / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell what is not in line")
    if not parser.parse_args(arguments).check:
        _write()
        return
    found = stale()
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

"""Brings the figures, tables and pictures of the documents in line with benchmarks/results.

In a document `<!-- from results: NAME -->...<!-- end -->` surrounds what is made here, a table or a
part of a sentence, from the newest file of the benchmark in question. With --check nothing is
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
from collections.abc import Callable, Sequence

import doors
import gains_picture
import noticing
import passes
import peers
import planner
import planner_picture
import resident
import standard_models
import timeline
import torchvision_models
import training
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure
from results import FOLDER, Row, Table, latest, read_csv

ROOT = FOLDER.parent
DOCUMENTS = ("README.md", "csrc/README.md", "docs/*.md")
BLOCK = re.compile(r"(<!-- from results: (?P<name>[a-z0-9-]+) -->)(.*?)(<!-- end -->)", re.DOTALL)
WORDS = {
    "ablation": ("without", "worst instance"),
    "doors": doors.WORDS,
    "models": standard_models.WORDS,
    "models-batch8": standard_models.WORDS,
    "models-compilers": standard_models.WORDS,
    "models-quick": standard_models.WORDS,
    "noticing": noticing.WORDS,
    "passes": passes.WORDS,
    "planner": planner.WORDS,
    "planner-speed": planner.WORDS,
    "resident": resident.WORDS,
    "resident-training": resident.WORDS,
    "timeline": timeline.WORDS,
    "torchvision": torchvision_models.WORDS,
    "training": training.WORDS,
}
GROUPS = (
    "{shelf} of them are off the shelf (torchvision, transformers): {shelf_gaining} gain, "
    "{least:.1f} to {most:.1f} %. The other {free} were chosen because they branch, and are "
    "written here after papers: {free_gaining} gain, up to {free_most:.1f} %"
)
GROUPS_JA = (
    "{shelf} モデルは一般に配布されているもの(torchvision、transformers)で、減ったのは "
    "{shelf_gaining} モデル({least:.1f}~{most:.1f} %)です。残りの {free} モデルは"
    "並列の枝を持つという理由で選んだもので、減ったのは {free_gaining} "
    "モデル(最大 {free_most:.1f} %)です。"
)
TIMES = "{:.2f} to {:.2f}, median {:.2f}"
TIMES_JA = "{:.2f}~{:.2f}、中央値 {:.2f}"
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


def _models_range() -> str:
    gains = [_gain(record) for record in _gainers()]
    return f"{min(gains):.1f} to {max(gains):.1f} %"


def _measured(table: Table) -> list[dict[str, str]]:
    """The measured rows. Raises StaleError if one breaks what the documents say of them all."""
    records = [record for record in table.records() if record["measured after MiB"]]
    for record in records:
        row = ", ".join(record[key] for key in ("model", "batch", "form") if key in record)
        if record["identical"] != "yes" or record["status"] != "optimal":
            raise StaleError(f"{row} is not identical, or not proven: mend the text")
        if _gain(record) < 0:
            raise StaleError(f"{row} needs more than before: mend the text")
        if float(record.get("error %", 0)) > 1:
            raise StaleError(f"the peak of {row} was predicted wrongly: mend the text")
    return records


def _models_are_as_promised() -> str:
    _measured(_table("models-quick"))
    return "all orders are proven optimal, all outputs identical, all peaks predicted within 1 %"


def _models_groups(words: str) -> str:
    """Of models off the shelf, and of those that were chosen for their freedom."""
    shelf: list[float] = []
    free: list[float] = []
    for record in _table("models-quick").records():
        (free if record["group"] == "freedom" else shelf).append(_gain(record))
    gains = [gain for gain in shelf if gain > 0]
    return words.format(
        shelf=len(shelf),
        shelf_gaining=len(gains),
        least=min(gains),
        most=max(gains),
        free=len(free),
        free_gaining=sum(gain > 0 for gain in free),
        free_most=max(free),
    )


def _models_fused() -> str:
    """Where fusion gets below any order."""
    names = [
        f"{record['model']} {fused:.2f} against {after:.2f} MiB"
        for record in _table("models-quick").records()
        for fused, after in [
            (float(record["for inference MiB"]), float(record["measured after MiB"]))
        ]
        if fused < 0.98 * after
    ]
    return ", ".join(names)


def _models_times(words: str) -> str:
    times = sorted(float(record["time"]) for record in _table("models-quick").records())
    return words.format(times[0], times[-1], statistics.median(times))


def _sweep() -> str:
    table = _table("torchvision")
    measured = _measured(table)
    if len(measured) < len(table.rows):
        raise StaleError("not all networks of torchvision were measured: mend the text")
    networks = {record["model"] for record in measured}
    gaining = sum(_gain(record) > 0 for record in measured)
    return (
        f"{len(networks)} networks, {len(measured)} modules: all give the same bits, none has a "
        f"higher peak, all orders are proven optimal; on images this small only {gaining} had "
        "anything to gain"
    )


def _all_models() -> Table:
    """Both runs of `make bench`, at batch 1 and at batch 8."""
    return _table("models").with_rows_of(_table("models-batch8"))


def _all_models_count() -> str:
    measured = _measured(_all_models())
    models = {record["model"] for record in measured}
    return f"{len(measured)} modules of {len(models)} models"


def _compilers() -> str:
    """Without times: this run shared its machine."""
    table = standard_models.by_model(_table("models-compilers")).without_empty_columns()
    columns = [name for name in table.header if name not in ("batch", "time", "± spread")]
    return table.select(columns).markdown()


def _batch8() -> str:
    gains = [
        _gain(record)
        for record in _measured(_table("models-batch8"))
        if (record["group"], record["form"]) == ("torchvision", "frozen")
    ]
    less = [gain for gain in gains if gain > 0]
    return f"{len(less)} of {len(gains)} need less, by {min(less):.1f} to {max(less):.1f} %"


def _against_ours(compiler: str) -> list[float]:
    """Where a compiler was measured: its peak less that of our order, in MiB."""
    return [
        round(float(record[f"{compiler} MiB"]) - float(record["measured after MiB"]), 2)
        for record in _measured(_table("models-compilers"))
        if record[f"{compiler} MiB"]
    ]


def _compilers_lower() -> str:
    told = []
    for compiler in standard_models.COMPILERS:
        against = _against_ours(compiler)
        less, more = (sum(sign * each > 0 for each in against) for sign in (-1, 1))
        told.append(f"`{compiler}` needs less in {less}, more in {more} of {len(against)}")
    return "; ".join(told)


def _freezing_lower() -> str:
    against = _against_ours("compile freezing")
    return f"{sum(each < 0 for each in against)} of these {len(against)} models"


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
    columns = {
        "model": "model",
        "eager MiB": "eager",
        "hooks MiB": "backward hooks",
        "ours MiB": "this step",
        "bound MiB": "bound",
        "compile MiB": "`torch.compile(model)`",
        "without layout MiB": "without layout optimisation",
        "whole step without layout MiB": "whole step, without it",
        "time / eager": "time / eager",
        "capture s": "capture s",
    }
    table = _table("training").select(tuple(columns))
    return Table(tuple(columns.values()), table.rows, ("model",)).markdown()


def _training(model: str) -> dict[str, str]:
    (record,) = (r for r in _table("training").records() if r["model"] == model)
    return record


def _noticing() -> str:
    records = _table("noticing").records()
    most = max(float(record["of the step %"]) for record in records)
    return f"at most {most:.1f} % of it, for the {len(records)} networks below"


def _swin_training() -> str:
    record = _training("swin_t 2x224")
    return (
        f"{record['eager MiB']} to {record['ours MiB']} MiB, proven {record['status']} (an "
        f"optimizer in backward hooks alone: {record['hooks MiB']})"
    )


def _residents() -> str:
    shares = {
        record["model"]: float(record["ours resident MiB"]) / float(record["eager resident MiB"])
        for record in _table("training").records()
    }
    return ", ".join(f"{model} {round(100 * (share - 1)):+} %" for model, share in shares.items())


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
    "models-range": _models_range,
    "models-range-ja": lambda: _models_range().replace(" to ", "~"),
    "models-groups": lambda: _models_groups(GROUPS),
    "models-groups-ja": lambda: _models_groups(GROUPS_JA),
    "models-fused": _models_fused,
    "models-times": lambda: _models_times(TIMES),
    "models-times-ja": lambda: _models_times(TIMES_JA),
    "models-promises": _models_are_as_promised,
    "models-zeros-count": lambda: str(len(_zeros())),
    "models-zeros": lambda: ", ".join(record["model"] for record in _zeros()),
    "models-threads": lambda: _comment("models-quick", "threads").partition(",")[0],
    "all-models": lambda: (
        standard_models.by_model(_all_models()).without_empty_columns().markdown()
    ),
    "all-models-count": _all_models_count,
    "all-models-totals": lambda: standard_models.totals(_all_models()).markdown(),
    "all-models-threads": lambda: _comment("models", "threads").partition(",")[0],
    "models-compilers": _compilers,
    "models-compilers-lower": _compilers_lower,
    "models-freezing-lower": _freezing_lower,
    "models-batch8": _batch8,
    "machine": lambda: _comment("models-quick", "machine"),
    "torch": lambda: _comment("models-quick", "torch"),
    "torchvision-sweep": _sweep,
    "planner-families": _families,
    "planner-count": lambda: str(len(_table("planner").rows)),
    "planner-peers": _peers,
    "planner-speed": _speed,
    "ablation": lambda: _table("ablation").markdown(),
    "doors": lambda: doors.by_door(_table("doors")).markdown(),
    "pass": lambda: _table("passes").select(PASS_COLUMNS).markdown(),
    "training": _training_table,
    "training-noticing": _noticing,
    "training-swin": _swin_training,
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

"""One page of HTML that holds all it shows and loads nothing."""

import html
import json
import os
import string
from collections.abc import Iterable, Sequence
from typing import Any

from torch_ext import amounts
from torch_ext._version import __version__
from torch_ext.program.program import Program
from torch_ext.reporting import wording
from torch_ext.reporting.advice import Advice, find_advice
from torch_ext.reporting.assets import asset, policy_hash
from torch_ext.reporting.findings import Findings, Run
from torch_ext.reporting.wording import amount, code

MOST_PLACES = 3  # named for one advice


def to_html(findings: Findings) -> str:
    """Return the page."""
    plan = findings.plan
    advice = find_advice(findings)
    style, script = asset("page.css"), asset("page.js")
    return string.Template(asset("page.html")).substitute(
        title=html.escape(findings.title or "A program"),
        version=html.escape(__version__),
        style=style,
        style_hash=policy_hash(style),
        script=script,
        script_hash=policy_hash(script),
        data=_embedded(_data(findings)),
        facts=wording.facts(findings),
        unit=_unit(findings),
        before=_figure(findings, plan.original_peak_bytes),
        before_note="the order as written",
        after=_figure(findings, plan.peak_bytes),
        after_note=_change(findings),
        bound=_figure(findings, plan.lower_bound_bytes),
        bound_note=_status(findings),
        lead=wording.lead(findings),
        bottleneck=wording.bottleneck(findings),
        proof=wording.proof(findings),
        limit=wording.limit(findings, advice),
        advice=_advice(findings, advice),
        bars=_bars(findings),
        moved=wording.moved(findings),
    )


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _unit(findings: Findings) -> str:
    """Of all figures that stand without one: one page has one unit."""
    return amounts.unit_for(findings.plan.original_peak_bytes)


def _figure(findings: Findings, size_bytes: int) -> str:
    return amounts.in_unit(size_bytes, _unit(findings))


def _change(findings: Findings) -> str:
    plan = findings.plan
    if plan.peak_bytes == plan.original_peak_bytes:
        return "no change"
    share = 100 * (1 - plan.peak_bytes / plan.original_peak_bytes)
    return f"{share:.1f}&nbsp;% less"


def _status(findings: Findings) -> str:
    plan = findings.plan
    if plan.status == "optimal":
        return "reached: proven optimal"
    if plan.lower_bound_bytes == 0:
        return "nothing is proven"
    return f"{amount(plan.peak_bytes - plan.lower_bound_bytes)} below: not proven optimal"


# --- what the script draws ------------------------------------------------------------------------


class _Strings:
    """Each string once."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def _data(findings: Findings) -> dict[str, Any]:
    graph, strings = findings.program, _Strings()
    index = {op.name: i for i, op in enumerate(graph.ops)}
    maker = {buffer: index[op.name] for buffer, op in findings.maker.items()}

    def run_data(run: Run, program: Program) -> dict[str, Any]:
        scratch = {op.name: op.workspace_bytes for op in program.ops}
        return {
            "order": [index[op] for op in run.order],
            "hill": [entry.hill_bytes for entry in run.timeline],
            "scratch": [scratch.get(op.name, 0) for op in graph.ops],
            "peak": run.peak_step,
            "first": [span.first for span in run.life_spans],
            "last": [span.last for span in run.life_spans],
        }

    def shape(dimensions: Sequence[int], dtype: str) -> int:
        if not dtype:
            return -1
        return strings(" \N{MULTIPLICATION SIGN} ".join(map(str, dimensions)) or "scalar")

    return {
        "unit": [_unit(findings), amounts.UNITS[_unit(findings)]],
        "bound": findings.plan.lower_bound_bytes,
        "ops": {
            "name": [op.name for op in graph.ops],
            "module": [strings(op.module_path) for op in graph.ops],
            "source": [strings(op.source) for op in graph.ops],
        },
        "buffers": {
            "name": [buffer.name for buffer in graph.buffers],
            "bytes": [buffer.bytes for buffer in graph.buffers],
            "shape": [shape(buffer.shape, buffer.dtype) for buffer in graph.buffers],
            "dtype": [strings(b.dtype) for b in graph.buffers],
            "op": [maker.get(buffer.name, -1) for buffer in graph.buffers],
            "kept": [int(buffer.kept) for buffer in graph.buffers],
        },
        "before": run_data(findings.before, findings.graph),
        "after": run_data(findings.after, findings.edited),
        "diff": [[block.kind, block.old, block.new, block.ops] for block in findings.diff],
        "regions": _regions(findings, index),
        "arena": _arena(findings, index),
        "strings": list(strings.index),
        "prefixes": _prefixes(op.source for op in graph.ops),
    }


def _arena(findings: Findings, index: dict[str, int]) -> dict[str, Any]:
    """Blocks by columns; `block` is a buffer, or below 0 the scratch memory of op -1 - block."""
    buffers = {buffer.name: i for i, buffer in enumerate(findings.program.buffers)}
    placed = findings.arena
    return {
        "height": max((block.offset + block.bytes for block in placed), default=0),
        "block": [
            -1 - index[block.name] if block.is_scratch else buffers[block.name] for block in placed
        ],
        "begin": [block.begin for block in placed],
        "end": [block.end for block in placed],
        "offset": [block.offset for block in placed],
        "bytes": [block.bytes for block in placed],
    }


def _prefixes(sources: Iterable[str]) -> list[str]:
    """What the page leaves out at the front of source lines."""
    marker = "-packages/"
    installed, own = set(), set()
    for source in sources:
        folder = source.rpartition("/")[0]
        if marker in source:
            installed.add(source[: source.rindex(marker) + len(marker)])
        elif folder:
            own.add(folder)
    common = os.path.commonpath(own) if own and len({f[:1] == "/" for f in own}) == 1 else ""
    return [*sorted(installed), *([common.rstrip("/") + "/"] if common else [])]


def _regions(findings: Findings, index: dict[str, int]) -> dict[str, Any]:
    """The tree; neighbours that are single ops are one node, "run"."""
    tree = findings.regions

    def hill_bytes(run: Run, op: str) -> int:
        step = run.step_of.get(op)  # none, if the edited program does without it
        return 0 if step is None else run.timeline[step].hill_bytes

    hills = [[hill_bytes(run, op) for op in tree.ops] for run in (findings.before, findings.after)]
    nodes: list[dict[str, Any]] = []
    place: dict[int, int] = {}
    for i, node in enumerate(tree.nodes):
        parent = place.get(node.parent, -1)
        kind = "run" if node.kind == "op" else node.kind
        last = nodes[-1] if nodes else None
        if last and kind == "run" and last["kind"] == "run" and last["parent"] == parent:
            last["count"] += 1
        else:
            place_of = {"parent": parent, "begin": node.begin, "count": node.end - node.begin}
            nodes.append({"kind": kind, **place_of})
        place[i] = len(nodes) - 1
    for each in nodes:
        ops = slice(each["begin"], each["begin"] + each["count"])
        each["before"], each["after"] = (max(hill[ops]) for hill in hills)
    _tell_methods(findings, nodes)
    return {"order": [index[op] for op in tree.ops], "nodes": nodes}


def _tell_methods(findings: Findings, nodes: list[dict[str, Any]]) -> None:
    """Add what the plan says of its regions: to the children of a series root, or to the root."""
    top = [node for node in nodes if node["parent"] == 0]
    if nodes and (nodes[0]["kind"] != "series" or not top):
        top = nodes[:1]
    planned = findings.planned_region_of
    for node in top:
        ops = findings.regions.ops[node["begin"] : node["begin"] + node["count"]]
        told = {(region.method, region.proof) for op in ops if (region := planned.get(op))}
        if len(told) == 1:
            ((node["method"], node["proof"]),) = told


# --- what is there without the script -------------------------------------------------------------


def _advice(findings: Findings, advice: Sequence[Advice]) -> str:
    if not advice:
        return '<p class="note">Nothing was found that would lower this peak.</p>'
    items = []
    for each in advice:
        places = ", ".join(
            f"{code(op)}{wording.place(findings, op)}" for op in each.where[:MOST_PLACES]
        )
        more = len(each.where) - MOST_PLACES
        where = places + (f" and {more} more" if more > 0 else "")
        how = "less, measured" if each.is_measured else "less, estimated"
        items.append(
            f'<li><p class="saves">{amount(each.saves_bytes)}<small>{how}</small></p>'
            f"<div><p><strong>{html.escape(each.title)}.</strong> {html.escape(each.text)}</p>"
            f"{f'<p>{where}</p>' if where else ''}</div></li>"
        )
    note = (
        '<p class="note">This graph shows each of these. For an estimate the graph was changed '
        "accordingly and planned again; nothing was run. Savings do not add up.</p>"
        if any(not each.is_measured for each in advice)
        else ""
    )
    return f'{note}<ul class="advice">{"".join(items)}</ul>'


def _bars(findings: Findings) -> str:
    counted_rows: list[tuple[str, str, str, int | None]] = []
    for name, run in (("before", findings.before), ("after", findings.after)):
        if run.peak_step < 0:
            continue
        op = findings.ops[run.timeline[run.peak_step].op]
        hill_bytes = run.timeline[run.peak_step].hill_bytes
        counted_rows += [
            (
                f"of-{name}",
                f"Buffers at the peak, {name}",
                "activations and results",
                hill_bytes - op.workspace_bytes,
            ),
            (
                f"of-{name}",
                f"Scratch memory at the peak, {name}",
                "taken by an operation while it runs, and given back",
                op.workspace_bytes,
            ),
        ]
    beside_rows: list[tuple[str, str, str, int | None]] = [
        (
            "beside",
            "Parameters and buffers of the model",
            "there before the first operation and after the last, in any order",
            findings.measured("parameter_bytes"),
        ),
        ("beside", "Inputs", "held by the caller", findings.measured("input_bytes")),
        *_optimizer_rows(findings),
    ]
    most = max((b for *_, b in counted_rows + beside_rows if b is not None), default=0)
    meaning = "Python and the libraries, resident before the model was loaded"
    # Not in `most`: beside it nothing else could be seen.
    beside_rows.append(("beside", "Process", meaning, findings.process_bytes))
    rows = _bar_group("Counted in every peak on this page", counted_rows, most)
    rows += _bar_group("Beside it: no order changes these", beside_rows, most)
    return (
        '<table class="bars"><caption class="visually-hidden">What is counted</caption>'
        f"{rows}</table>"
    )


def _optimizer_rows(findings: Findings) -> list[tuple[str, str, str, int | None]]:
    state_bytes = findings.measured("state_bytes")
    if state_bytes is None:
        return []
    return [("beside", "State of the optimizer", "kept from step to step", state_bytes)]


def _bar_group(title: str, rows: Sequence[tuple[str, str, str, int | None]], most: int) -> str:
    lines = []
    for kind, name, meaning, size_bytes in rows:
        share = (size_bytes or 0) / max(most, 1)
        if share > 1:
            kind, meaning, share = "beyond", f"{meaning}; longer than drawn", 1
        width = 1000 * share
        rect = f'<rect width="{width:.1f}" height="10"/>' if size_bytes else ""
        value = "not measured" if size_bytes is None else amount(size_bytes)
        lines.append(
            f'<tr><th scope="row">{name}<small>{meaning}</small></th><td class="{kind}">'
            f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{rect}</svg>'
            f'</td><td class="amount">{value}</td></tr>'
        )
    head = f'<tr><th scope="rowgroup" colspan="3">{title}</th></tr>'
    return f"<tbody>{head}{''.join(lines)}</tbody>"

"""The sentences of the page, as HTML: what was found, and why it is so."""

import html
from collections.abc import Iterable, Sequence

from torch_ext import amounts
from torch_ext.program.plan import Reason, joined
from torch_ext.program.program import Buffer
from torch_ext.reporting.advice import Advice
from torch_ext.reporting.findings import Findings

_PROOFS = {
    "closure": (
        "In any order, when {op} runs, all it depends on has run and nothing that depends on it "
        "has. The cheapest of all such states takes {bound}, and this order takes no more."
    ),
    "results": (
        "All results are alive together at the end of any order. They take {bound}, and this "
        "order takes no more."
    ),
    "neighbour": (
        "Next to one operation some neighbour of it has to run, and the cheapest choice takes "
        "{bound}. This order takes no more."
    ),
    "series-parallel": (
        "Where the peak is reached, the graph is made of series and parallel regions only. For "
        "these the best order is known, and this is one: {bound}."
    ),
    "precedence": (
        "An order below {bound} would have to keep to precedences that contradict each other."
    ),
    "search": "All orders below {bound} were ruled out by an exhausted search.",
}


def amount(size_bytes: int) -> str:
    """Return the amount with its unit, which stays on the same line."""
    return amounts.amount(size_bytes).replace(" ", "&nbsp;")


def code(text: str) -> str:
    """Return text of the program's, whatever it holds, as code."""
    return f"<code>{html.escape(text)}</code>"


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 op", "1,200 ops"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def place(findings: Findings, op: str) -> str:
    """Return where in the program an op comes from; empty if nobody knows."""
    label = findings.ops[op]
    source = html.escape(label.source.rpartition("/")[2])
    known = [code(label.module_path)] if label.module_path else []
    if source:
        known.append(f'<span title="{html.escape(label.source)}">{source}</span>')
    return f" ({', '.join(known)})" if known else ""


def facts(findings: Findings) -> str:
    """Return the line under the title."""
    plan = findings.plan
    known = [counted(plan.ops, "operation"), counted(plan.buffers, "buffer")]
    if findings.inputs:
        known.append("input " + ", ".join(html.escape(text) for text in findings.inputs))
    threads = findings.measured("threads")
    if threads is not None:
        known.append(counted(threads, "thread"))
    return " &middot; ".join(known)


def lead(findings: Findings) -> str:
    """Return what was gained, and whether it was measured."""
    plan = findings.plan
    saved_bytes = plan.original_peak_bytes - plan.peak_bytes
    if plan.ops == 0:
        return f"Nothing was planned: {html.escape(joined(findings.reasons))}."
    if saved_bytes == 0:
        sentence = "Another order of the operations gains nothing here."
    else:
        overwrites, hoists, slices, repeats = (
            len(getattr(plan, name, ())) for name in ("overwrites", "hoists", "slices", "repeats")
        )
        edits = []
        if plan.moved_ops:
            edits.append(f"in another order, {plan.moved_ops:,} of them moved,")
        if overwrites:
            edits.append(f"{overwrites:,} of them writing over what nobody needs any more,")
        if hoists:
            edits.append(f"{hoists:,} of their copies made beforehand,")
        if slices:
            stretches = "stretch" if slices == 1 else "stretches"
            edits.append(f"{slices:,} {stretches} of them part by part,")
        if repeats:
            edits.append(f"{repeats:,} of them run once more,")
        sentence = (
            f"The same {counted(len(findings.graph.ops), 'operation')} {' and '.join(edits)} take "
            f"{amount(saved_bytes)} less at the peak."
        )
    budget = {
        None: "",
        True: " The memory budget is met.",
        False: " The memory budget is not met.",
    }[plan.budget_met]
    return sentence + _measured(findings) + budget


def _measured(findings: Findings) -> str:
    before = findings.measured("measured_original_peak_bytes")
    after = findings.measured("measured_peak_bytes")
    if before is None:
        return " Nothing was measured; the numbers are of the plan."
    if after is None:
        return f" The allocator measured {amount(before)} before; nothing was changed yet."
    same = {
        None: "",
        True: " The outputs are the same, bit for bit.",
        False: " The outputs differ.",
    }[findings.identical]
    if before == after:
        return f" The allocator measured {amount(before)}."
    return f" The allocator measured {amount(before)} before and {amount(after)} after.{same}"


def bottleneck(findings: Findings) -> str:
    """Return which op sets the limit, and what it needs."""
    found = findings.plan.bottleneck
    if found is None:
        return "None is known."
    buffers = sorted((findings.buffers[name] for name in found.buffers), key=lambda b: -b.bytes)
    sets_bound = found.bytes >= findings.plan.lower_bound_bytes
    sentence = (
        f"{'' if sets_bound else 'No single operation. The one that comes nearest is '}"
        f"{code(found.op)}{place(findings, found.op)}{'' if sets_bound else ', which'} cannot run "
        f"with less than {amount(found.bytes)}."
    )
    if buffers:
        together = sum(buffer.bytes for buffer in buffers)
        largest = ", ".join(_made_by(findings, buffer) for buffer in buffers[:3])
        sentence += (
            f" {counted(len(buffers), 'buffer')} of {amount(together)} must be alive together"
            f"{'' if len(buffers) <= 3 else ', the largest'}: {largest}."
        )
    op = next(op for op in findings.edited.ops if op.name == found.op)
    scratch_bytes = op.workspace_bytes
    if scratch_bytes:
        sentence += f" It takes {amount(scratch_bytes)} of scratch memory besides."
    peak_op = findings.after.order[findings.after.peak_step]
    if sets_bound and findings.plan.status == "optimal" and peak_op != found.op:
        sentence += f" {code(peak_op)}, where the peak is reached first, comes to the same."
    return sentence


def _made_by(findings: Findings, buffer: Buffer) -> str:
    """An amount, and the op that made it: buffers have names that nobody gave them."""
    maker = findings.maker.get(buffer.name)
    return f"{amount(buffer.bytes)} of {code(maker.name) if maker else 'the caller'}"


def proof(findings: Findings) -> str:
    """Return the argument that no order is lower, or how much is open."""
    plan = findings.plan
    if plan.status == "optimal":
        op = code(plan.bottleneck.op) if plan.bottleneck else ""
        text = _PROOFS.get(plan.proof, "No order takes less than {bound}.")
        return text.format(op=op, bound=amount(plan.lower_bound_bytes))
    if plan.lower_bound_bytes == 0:
        return "Nothing is proven."
    gap_bytes = plan.peak_bytes - plan.lower_bound_bytes
    return (
        f"Not proven. No order can go below {amount(plan.lower_bound_bytes)}; whether one exists "
        f"in the {amount(gap_bytes)} between that and the planned peak is open."
    )


def limit(findings: Findings, advice: Sequence[Advice]) -> str:
    """Return why the peak is no lower, and what could lower it."""
    plan = findings.plan
    if plan.budget_met and plan.status != "optimal":
        return "Planning stopped as soon as the memory budget was met."
    why = _sentences(findings.reasons)
    if plan.status != "optimal" and plan.lower_bound_bytes == 0 and why:
        return why.lstrip()
    if plan.status != "optimal":
        stopped = " The clock stopped planning on this machine." if plan.clock_stopped else ""
        return f"A larger time budget may find a lower order or close the gap.{stopped}{why}"
    if any(not each.is_measured for each in advice):
        change = ". A change of the program could: see below."
    elif advice:
        change = ". A call with gradients takes more than all that is shown here: see below."
    else:
        change = ", nor would any change of the program that was looked for."
    # The bottleneck is told already.
    rest = _sentences(reason for reason in findings.reasons if reason.kind != "optimal")
    return f"Order can give no more{change}{rest}"


def _sentences(reasons: Iterable[Reason]) -> str:
    """Each with a space before it."""
    texts = [html.escape(reason.text) for reason in reasons]
    return "".join(f" {text[:1].upper()}{text[1:]}." for text in texts)


def moved(findings: Findings) -> str:
    """Return the sentence above the two orders."""
    plan = findings.plan
    if plan.moved_ops == 0:
        return "Nothing: the order is the original one."
    with_memory = len(findings.memory_graph.ops)
    moved_ops = sum(block.ops for block in findings.diff if block.kind == "to")
    rest = counted(with_memory - moved_ops, "operation")
    left_out = plan.ops - with_memory
    return (
        f"{counted(moved_ops, 'operation')} moved; the other {rest} keep their sequence. "
        "The columns are the steps before and after."
        + (f" Left out: {counted(left_out, 'operation')} without memory." if left_out else "")
    )

"""From a probed FX graph to a program: the adaptor of torch.fx.

An op of the program is an op of the probe, named after its node; a buffer is a storage that an op
makes. What the caller holds anyway (inputs, attributes) takes no part in the peak and has none.
"""

import os
import re
from collections.abc import Iterator, Sequence

import torch
from torch import fx

import torch_ext
from torch_ext import _sched
from torch_ext.fx.arrival import Arrival
from torch_ext.fx.copyable import Copyable
from torch_ext.fx.effects import (
    changes_metadata,
    draws_random_numbers,
    has_side_effect,
    is_collective,
    is_stateful,
    statistics_of,
    undeclared,
    without_statistics,
    written_arguments,
)
from torch_ext.fx.overwritable import Overwritable
from torch_ext.fx.probe import Op, Probe, buffer_name, tensors_of

TORCH_FOLDER, OUR_FOLDER = (
    os.path.join(os.path.dirname(file), "") for file in (torch.__file__, torch_ext.__file__)
)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def program_of(
    probe: Probe,
    overwritable: Sequence[Overwritable] = (),
    copyable: Sequence[Copyable] = (),
) -> _sched.Program:
    """Return the program, without labels."""
    program = _sched.Program()
    buffer_of = buffers_of(probe)
    home = {node: index for index, op in enumerate(probe.ops) for node in op.nodes}
    for op in probe.ops:
        for (storage, size_bytes), look in zip(op.made.items(), _looks(probe, op), strict=True):
            shape, dtype = look
            kept = storage in probe.results
            program.add_buffer(
                buffer_name(storage), size_bytes, kept=kept, shape=shape, dtype=dtype
            )
    for index, op in enumerate(probe.ops):
        used = [node for one in op.nodes for node in one.all_input_nodes]
        read = {storage for held in op.storages.values() for storage in held} - probe.outside
        held = {storage for node in op.nodes for storage in probe.values[node]}
        program.add_op(
            op.name,
            _kind(op.node),
            inputs=[node.name for node in op.node.all_input_nodes],
            outputs=[node.name for node in op.nodes],
            makers=[home[node] for node in used if home.get(node, index) != index],
            reads=[buffer_of[storage] for storage in sorted(read)],
            writes=[buffer_of[storage] for storage in op.made],
            aliases=[buffer_of[storage] for storage in sorted(read & held)],
            mutates=[buffer_of[storage] for storage in sorted(read & written_storages(op))],
            workspace_bytes=op.workspace_bytes,
            nanoseconds=op.nanoseconds,
            effects=_effects(probe, op),
        )
    for use in overwritable:
        program.add_overwritable(use.op, buffer_of[use.result], buffer_of[use.argument])
    for copy in copyable:
        read = set(probe.values[copy.argument]) - probe.outside
        program.add_copyable(
            copy.op,
            copy.argument.name,
            makers=[home[copy.argument]] if copy.argument in home else [],
            reads=[buffer_of[storage] for storage in sorted(read)],
            is_read_beside=copy.is_read_beside,
            size_bytes=copy.size_bytes,
            dtype=copy.dtype,
        )
    touched_again = [_touched_again(probe, op) for op in probe.ops]
    for by_statistics in (False, True):
        for earlier, later, storage in _conflicts(probe, by_statistics):
            program.add_conflict(
                earlier,
                later,
                by_statistics=by_statistics,
                is_inside=storage not in probe.outside,
                is_left_alone=storage not in touched_again[earlier],
            )
    for earlier, later, is_left_alone in _passing_arrivals(probe):
        program.add_conflict(
            earlier, later, by_statistics=False, is_inside=False, is_left_alone=is_left_alone
        )
    return program


def buffers_of(probe: Probe) -> dict[int, int]:
    """The place of each storage among the buffers of the program."""
    made = (storage for op in probe.ops for storage in op.made)
    return {storage: place for place, storage in enumerate(made)}


def labelled_program_of(
    probe: Probe,
    overwritable: Sequence[Overwritable] = (),
    copyable: Sequence[Copyable] = (),
) -> _sched.Program:
    """Return the program with the names of the user's program, for reports."""
    program = program_of(probe, overwritable, copyable)
    for index, op in enumerate(probe.ops):
        program.label(index, _source(op.node), _module_path(op.node))
    return program


def order_edges(probe: Probe, without: Sequence[str] = ()) -> dict[str, list[str]]:
    """For each op, the earlier ops that must come before it: data flow and hazards.

    `without`: rules to do without, by the names of csrc/program/hazards.h, to show that a test
    finds what a rule prevents.
    """
    names = [op.name for op in probe.ops]
    after = program_of(probe).after(list(without))
    return {name: [names[u] for u in before] for name, before in zip(names, after, strict=True)}


def written_storages(op: Op, *, by_statistics: bool | None = None) -> set[int]:
    """Which storages the op writes to, besides those that it makes.

    `by_statistics`: only running statistics, or only what is none.
    """
    nodes: list[fx.Node] = []
    for argument, is_statistic in written_arguments(op.node):
        if by_statistics in (None, is_statistic):
            fx.node.map_arg(argument, nodes.append)
    return {storage for node in nodes for storage in op.storages[node]}


# --- effects --------------------------------------------------------------------------------------


def _effects(probe: Probe, op: Op) -> _sched.Effects:
    unknown = "touches memory that cannot be looked into" if op.is_hidden else ""
    if op.moves:
        unknown = "gives a tensor the memory of another"
    return _sched.Effects(
        undeclared=undeclared(op.node) or unknown,
        is_stateful=is_stateful(op.node),
        changes_metadata=changes_metadata(op.node),
        draws_random_numbers=op.draws or draws_random_numbers(op.node),
        has_side_effect=has_side_effect(op.node),
        is_collective=is_collective(op.node),
        writes_outside=not probe.outside.isdisjoint(written_storages(op)),
        is_apart_again=is_apart_again(probe, op),
        runs_once=op.is_untimed,
    )


def is_apart_again(probe: Probe, op: Op) -> bool:
    """Could a second run of the op do without running statistics, and compute the same?"""
    node, statistics = op.node, statistics_of(op.node)
    written = [argument for argument, _ in written_arguments(node) if argument is not None]
    if not statistics or not all(any(one is own for own in statistics) for one in written):
        return False
    if not all(op.storages[own] <= probe.outside for own in statistics):
        return False
    looks = [probe.looks.get(used) for used in node.all_input_nodes]
    return all(look is not None and look.dtype == looks[0].dtype for look in looks)  # type: ignore[union-attr]


def _touched_again(probe: Probe, op: Op) -> set[int]:
    """The storages that a second run of the op would touch, besides those that it makes."""
    used = op.node.all_input_nodes
    if is_apart_again(probe, op):
        _, given = without_statistics(op.node)
        used = [argument for argument in given.values() if isinstance(argument, fx.Node)]
    return {storage for node in used for storage in op.storages[node]} | op.made.keys()


def _conflicts(probe: Probe, by_statistics: bool) -> Iterator[tuple[int, int, int]]:
    """Pairs that keep writes and reads of each storage in order, and the storage.

    Others follow from these.
    """
    writes_of = [written_storages(op, by_statistics=by_statistics) for op in probe.ops]
    written = set[int]().union(*writes_of)
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for index, (op, writes) in enumerate(zip(probe.ops, writes_of, strict=True)):
        touched = {s for held in op.storages.values() for s in held} | op.made.keys()
        for storage in sorted(touched & written):
            if storage in writer:
                yield writer[storage], index, storage
            if storage in writes:
                yield from ((reader, index, storage) for reader in readers.pop(storage, []))
                writer[storage] = index
            else:
                readers.setdefault(storage, []).append(index)


def _passing_arrivals(probe: Probe) -> Iterator[tuple[int, int, bool]]:
    """Pairs that let nothing pass where gradients arrive, and whether the first may run behind.

    It may not if that makes a result of the forward pass, which the caller has by then, or reads
    what the caller holds, and could write to or free: such results, and inputs. What the backward
    pass reads anyway is left alone, or torch raises.
    """
    for place, op in enumerate(probe.ops):
        if not isinstance(op.node.target, Arrival):
            continue
        before, behind = probe.ops[:place], probe.ops[place + 1 :]
        results = probe.results & {storage for one in before for storage in one.made}
        read = {storage for one in behind for held in one.storages.values() for storage in held}
        lasting = {node for node in probe.first if node.name in op.node.target.lasting}
        kept = read.union(*(probe.values[node] for node in lasting))
        held = (probe.outside | results) - kept
        for earlier, one in enumerate(before):
            values = {storage for node in one.nodes for storage in probe.values[node]}
            reads = _touched_again(probe, one) - one.made.keys()
            yield earlier, place, held.isdisjoint(reads) and results.isdisjoint(values)
        yield from ((place, place + 1 + later, False) for later in range(len(behind)))


# --- labels ---------------------------------------------------------------------------------------


def _kind(node: fx.Node) -> str:
    """The operator without its overload, "aten::relu", or what else the node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _source(node: fx.Node) -> str:
    """The line of the user's program that the node comes from, "file:line"; empty if unknown.

    That is the innermost one which is neither in torch nor here.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((OUR_FOLDER, TORCH_FOLDER))]
    return ":".join(own[-1]) if own else ""


def _module_path(node: fx.Node) -> str:
    """The path of the innermost module that the node comes from, "layer1.0"; empty if unknown."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(modules[-1][0]) if modules else ""
    # Dynamo writes paths as Python would: L['self'].layer1[0].
    return re.sub(r"^L\['\w+'\]\.?", "", path).removeprefix("_modules.")


def _looks(probe: Probe, op: Op) -> list[tuple[list[int], str]]:
    """Shape and dtype of each storage that the op makes; empty where the graph does not tell."""
    looks: dict[int, tuple[list[int], str]] = {}
    for node in op.nodes:
        typed = tensors_of(node.meta.get("val"))
        for storage, tensor in zip(probe.values[node], typed, strict=False):
            if all(isinstance(size, int) for size in tensor.shape):
                dtype = str(tensor.dtype).removeprefix("torch.")
                looks.setdefault(storage, (list(tensor.shape), dtype))
    return [looks.get(storage, ([], "")) for storage in op.made]

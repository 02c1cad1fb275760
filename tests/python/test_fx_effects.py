"""What nodes of torch.fx do beyond their data flow: each rule, and all operators at once."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._higher_order_ops.effects import with_effects
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation
from torch._higher_order_ops.while_loop import while_loop
from torch.fx.experimental.proxy_tensor import make_fx

from torch_ext._native import _jit
from torch_ext.fx.effects import (
    draws_random_numbers,
    has_side_effect,
    is_barrier,
    is_collective,
    schema_of,
    written_arguments,
)
from torch_ext.fx.writing import Writing

aten = torch.ops.aten
LIBRARY = torch.library.Library("torch_ext_hazards_test", "DEF")
for schema in (
    "unmarked(Tensor x) -> Tensor",
    "marked(Tensor(a!) x) -> Tensor(a!)",
    "shown(Tensor(a) x) -> Tensor(a)",
):
    LIBRARY.define(schema)
LIBRARY.impl("unmarked", lambda x: x.clone(), "CompositeExplicitAutograd")
custom = torch.ops.torch_ext_hazards_test
fx.node.has_side_effect(custom.shown.default)


def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node; `...` stands for a value that is not known when the graph is made."""
    graph = fx.Graph()
    given = iter(graph.placeholder(f"x{i}") for i in range(100))
    args = tuple(next(given) if a is ... else a for a in args)
    kwargs = {name: next(given) if a is ... else a for name, a in kwargs.items()}
    return graph.call_function(target, args, kwargs)


def written(node: fx.Node) -> list[Any]:
    return [argument for argument, _ in written_arguments(node)]


def is_pure(node: fx.Node) -> bool:
    claims = (is_barrier, draws_random_numbers, has_side_effect, is_collective)
    return not any(claim(node) for claim in claims) and not written(node)


# --- operators ------------------------------------------------------------------------------------


def test_ordinary_ops_are_pure():
    assert is_pure(call(aten.add.Tensor, ..., ...))
    assert is_pure(call(aten.view.default, ..., [2, 3]))
    assert is_pure(call(aten.sym_size.int, ..., 0))


def test_what_the_schema_marks_is_written():
    write = call(aten.add_.Tensor, ..., ...)
    assert written(write) == [write.args[0]]
    out = call(aten.sin.out, ..., out=...)
    assert written(out) == [out.kwargs["out"]]
    many = call(aten._foreach_add_.Scalar, [...], 1.0)
    assert written(many) == [many.args[0]]


@pytest.mark.parametrize("training", [True, ...])
def test_running_statistics_are_written_in_training(training):
    node = call(aten.native_batch_norm.default, *[...] * 5, training, 0.1, 1e-5)
    assert list(written_arguments(node)) == [(node.args[3], True), (node.args[4], True)]


def test_running_statistics_are_read_out_of_training():
    node = call(aten.native_batch_norm.default, *[...] * 5, False, 0.1, 1e-5)
    assert not written(node)


def test_gradients_and_functional_forms_of_norms_update_no_statistics():
    x, mean, variance = torch.randn(4, 3, 8), torch.zeros(3), torch.ones(3)
    functional = aten._native_batch_norm_legit_functional.default
    _, mean_now, deviation_now, *new = functional(x, None, None, mean, variance, True, 0.1, 1e-5)
    assert not torch.equal(new[0], mean)
    gradient = aten.native_batch_norm_backward.default
    rest = mean, variance, mean_now, deviation_now, True, 1e-5, [True] * 3
    gradient(x, x, torch.ones(3), *rest)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(variance, torch.ones(3))
    assert not written(call(functional, *[...] * 5, True, 0.1, 1e-5))
    assert not written(call(gradient, *[...] * 7, True, 1e-5, [True] * 3))


def test_random_ops_draw():
    assert draws_random_numbers(call(aten.rand_like.default, ...))
    assert draws_random_numbers(call(aten.normal_.default, ...))
    assert draws_random_numbers(call(aten.native_dropout.default, ..., 0.5, True))
    assert draws_random_numbers(call(aten.native_dropout.default, ..., 0.5, ...))


def test_out_of_training_nothing_is_drawn():
    assert not draws_random_numbers(call(aten.native_dropout.default, ..., 0.5, False))
    assert not draws_random_numbers(call(aten.rrelu.default, ...))
    attention = aten.scaled_dot_product_attention.default
    assert not draws_random_numbers(call(attention, ..., ..., ...))
    assert not draws_random_numbers(call(attention, ..., ..., ..., dropout_p=0.0))
    assert draws_random_numbers(call(attention, ..., ..., ..., None, 0.5))


def test_a_custom_op_is_known_by_its_alias_annotation():
    assert is_barrier(call(custom.unmarked.default, ...))
    assert not is_barrier(call(custom.marked.default, ...))


def test_prims_are_known():
    assert is_pure(call(torch.ops.prims.sin.default, ...))


def test_a_backward_pass_writes_to_what_it_is_not_given():
    assert is_barrier(call(aten._backward.default, ..., []))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.t_.default, ()),
        (aten.resize_.default, ([3],)),
        (aten.set_.source_Tensor, (...,)),
        (aten.set_data.default, (...,)),
        (torch.ops.prims.resize.default, ([3],)),
    ],
    ids=str,
)
def test_what_changes_metadata_is_a_barrier(target, args):
    assert is_barrier(call(target, ..., *args))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten._assert_async.default, (...,)),
        (aten._assert_async.msg, (..., "why")),
        (aten._assert_scalar.default, (..., "why")),
        (aten._assert_tensor_metadata.default, (...,)),
        (aten._functional_assert_async.msg, (..., "why", ...)),
        (aten._functional_assert_scalar.default, (..., "why", ...)),
        (aten.sym_constrain_range.default, (...,)),
        (aten.sym_constrain_range_for_size.default, (...,)),
        (aten._functional_sym_constrain_range.default, (..., 0, 9, ...)),
        (aten._functional_sym_constrain_range_for_size.default, (..., 0, 9, ...)),
        (aten._linalg_check_errors.default, (..., "why")),
        (aten._print.default, ("text",)),
        (custom.shown.default, (...,)),  # torch.fx was told
    ],
    ids=str,
)
def test_assertions_and_prints_are_side_effects(target, args):
    node = call(target, *args)
    assert has_side_effect(node)
    assert not is_barrier(node)


def test_collectives_meet_other_processes():
    assert is_collective(call(torch.ops._c10d_functional.all_reduce_.default, ..., "sum", "0"))
    assert is_collective(call(torch.ops._c10d_functional.wait_tensor.default, ...))
    assert not is_collective(call(aten.sum.default, ...))


# --- functions of Python --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        operator.getitem,
        operator.floordiv,
        operator.index,
        torch.sym_max,
        torch.sym_sum,
        torch._sym_sqrt,
        math.trunc,
        round,
    ],
    ids=lambda function: function.__name__,
)
def test_what_computes_sizes_is_pure(function):
    assert is_pure(call(function, ..., ...))


@pytest.mark.parametrize("function", [operator.iadd, operator.setitem])
def test_operators_in_place_write_to_their_first_argument(function):
    node = call(function, ..., ...)
    assert written(node) == [node.args[0]]
    assert not is_barrier(node)


@pytest.mark.parametrize(
    "function",
    [
        operator.delitem,
        torch.sym_constrain_range,
        torch._C._set_grad_enabled,
        torch.add,
        print,
    ],
    ids=lambda function: function.__name__,
)
def test_other_functions_are_barriers(function):
    assert is_barrier(call(function, ...))


@pytest.mark.parametrize("draws", [True, False])
def test_functions_that_say_what_they_write_are_no_barriers(draws):
    node = call(Writing("change", print, written=2, draws_random_numbers=draws), ..., ..., ...)
    assert written(node) == list(node.args[:2])
    assert not is_barrier(node)
    assert draws_random_numbers(node) == draws


def test_methods_and_modules_are_barriers():
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert is_barrier(graph.call_method("add_", (x, 1)))
    assert is_barrier(graph.call_module("layer", (x,)))


# --- higher-order ops -----------------------------------------------------------------------------


X = torch.arange(12.0).reshape(3, 4)


def higher_order_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            yield node


def traced(function: Callable[[torch.Tensor], Any]) -> fx.Node:
    return next(higher_order_nodes(make_fx(function)(X)))


def branching(branch: Callable[[torch.Tensor], torch.Tensor]) -> fx.Node:
    return traced(lambda x: torch.cond(x.sum() > 0, branch, lambda x: x.cos(), (x,)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: map_rows(lambda row: row.sin(), x),
        lambda x: scan(lambda carry, row: (carry + row, carry * row), x[0], x),
        lambda x: while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), x)),
    ],
    ids=["map", "scan", "while_loop"],
)
def test_what_runs_pure_graphs_is_pure(function):
    assert is_pure(traced(function))


def test_a_branch_counts_as_what_is_in_it():
    assert is_pure(branching(lambda x: x.sin() * 2))
    assert is_barrier(branching(torch.rand_like))
    assert is_barrier(branching(lambda x: x.sin().add_(1)))
    assert is_barrier(branching(lambda x: custom.unmarked(x)))


def test_branches_are_looked_at_however_deep():
    def nested(inner: Callable[[torch.Tensor], torch.Tensor]) -> fx.Node:
        return branching(lambda x: torch.cond(x.sum() > 1, inner, lambda x: x.cos(), (x,)))

    assert is_pure(nested(lambda x: x.sin()))
    assert is_barrier(nested(torch.rand_like))


def test_a_branch_that_asserts_is_a_barrier():
    node = branching(lambda x: x.sin())
    [branch] = [a for a in node.args[1:3] if str(a.target).startswith("true")]
    graph = getattr(node.graph.owning_module, branch.target).graph
    with graph.inserting_before():
        graph.call_function(aten._print.default, ("text",))
    assert is_barrier(node)


def test_a_branch_that_holds_a_tensor_reads_what_nobody_sees():
    node = branching(lambda x: x.sin())
    module = getattr(node.graph.owning_module, node.args[1].target)
    module.register_buffer("held", X)
    with module.graph.inserting_before():
        module.graph.get_attr("held")
    assert is_barrier(node)


def test_a_part_without_gradients_counts_as_what_is_in_it():
    class Model(torch.nn.Module):
        def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x):
            with torch.no_grad():
                y = self.inner(x)
            return x * y

    def exported(inner: Callable[[torch.Tensor], torch.Tensor]) -> fx.Node:
        with torch.enable_grad():
            program = torch.export.export(Model(inner), (X.clone().requires_grad_(),))
        node = next(higher_order_nodes(program.graph_module))
        assert node.target is torch.ops.higher_order.wrap_with_set_grad_enabled
        return node

    assert is_pure(exported(lambda x: x * 2))
    assert is_barrier(exported(torch.rand_like))


def test_an_op_given_as_argument_counts():
    out_dtype = torch.ops.higher_order.out_dtype
    assert is_pure(call(out_dtype, aten.mm.default, torch.int32, ..., ...))
    assert is_barrier(call(out_dtype, aten.normal_.default, torch.int32, ...))


def test_other_higher_order_ops_are_barriers():
    assert is_barrier(call(with_effects, ..., aten.sin.default, ...))
    assert is_barrier(call(auto_functionalized, custom.marked.default, x=...))
    assert is_barrier(call(triton_kernel_wrapper_mutation, kernel_idx=0))
    assert is_barrier(call(torch.ops.higher_order.cond, ..., ..., ..., ()))


# --- all operators --------------------------------------------------------------------------------


def overloads() -> Iterator[torch._ops.OpOverload]:
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        qualified, _, overload = name.partition(".")
        namespace, _, op = qualified.partition("::")
        yield getattr(getattr(getattr(torch.ops, namespace), op), overload or "default")


def called_with_unknowns(target: torch._ops.OpOverload) -> fx.Node:
    arguments = target._schema.arguments
    named = {argument.name: ... for argument in arguments if argument.kwarg_only}
    return call(target, *[...] * (len(arguments) - len(named)), **named)


def test_both_doors_see_the_same():
    """Of the table; operator_effects_test.cpp compares it with nodes of TorchScript."""
    compared = 0
    for target in overloads():
        node = called_with_unknowns(target)
        table = _jit.operator_effects(target._schema.name, target._schema.overload_name, {})
        values = [*node.args, *node.kwargs.values()]
        expected = [values[i] for i in (*table["writes"], *table["statistics"])]
        assert written(node) == expected, target
        assert draws_random_numbers(node) >= table["draws_random_numbers"], target
        assert is_collective(node) == table["is_collective"], target
        assert has_side_effect(node) >= table["has_side_effect"], target
        is_unknown = bool(table["undeclared"]) or table["is_stateful"] or table["changes_metadata"]
        assert is_barrier(node) == is_unknown, target
        compared += 1
    assert compared > 3000


def test_what_torch_says_of_an_operator_is_heard():
    for target in overloads():
        node = called_with_unknowns(target)
        assert schema_of(node) == target._schema
        if target._schema.is_mutable:
            assert written(node), target
        if torch.Tag.nondeterministic_seeded in target.tags:
            assert draws_random_numbers(node), target
        if torch.Tag.inplace_view in target.tags:
            assert is_barrier(node), target


def unary_operators() -> Iterator[Any]:
    """All of aten that make tensors of one tensor, without alias annotations."""
    for schema in torch._C._jit_get_all_schemas():
        first, *others = schema.arguments or [None]
        is_unary = first is not None and str(first.type) == "Tensor"
        is_unary &= all(a.has_default_value() for a in others)
        annotated = any(a.alias_info is not None for a in (*schema.arguments, *schema.returns))
        if schema.name.startswith("aten::") and is_unary and not annotated:
            yield schema


def test_what_may_return_its_argument_is_known():
    returning = set()
    for schema in unary_operators():
        packet = getattr(aten, schema.name.removeprefix("aten::"), None)
        is_for_tests = schema.name == "aten::_foobar"
        if packet is None or is_for_tests or schema.name.endswith("_from_file"):
            continue
        call = getattr(packet, schema.overload_name or "default")
        for dtype in (torch.float32, torch.float64, torch.int64, torch.bool):
            for shape in ((), (3,), (2, 2), (1, 2, 2)):
                given = torch.ones(shape, dtype=dtype)
                try:
                    result = call(given)
                except Exception:
                    continue
                found = [result] if isinstance(result, torch.Tensor) else result
                if not isinstance(found, list | tuple):
                    continue
                tensors = [t for t in found if type(t) is torch.Tensor]
                dense = [t for t in tensors if t.layout is torch.strided and not t.is_nested]
                storages = [t.untyped_storage().data_ptr() for t in dense]
                if given.untyped_storage().data_ptr() in storages:
                    returning.add((schema.name, schema.overload_name))
    hidden = {
        (name, overload)
        for name, overload in returning
        if _jit.operator_effects(name, overload, {})["hides_aliases"]
    }
    assert ("aten::dequantize", "self") in returning
    assert returning == hidden

"""The table of forms that overwrite (csrc/program/operators/overwriting.h): each keeps its word."""

import itertools
import warnings

import pytest
import torch

import torch_ext
from torch_ext import _sched

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Lines with and without a tail after the last whole vector, lines of one, more than one thread's.
SIZES = ((37,), (3, 33), (4, 1, 9), (2, 5, 3, 7), (3, 8, 1, 1), (48, 1024))
SPECIAL = (float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e-40, 5e-324, 65504.0, 1e38)
NAN_BITS = {
    torch.float32: (torch.int32, 0x7FA00123, -0x00500FF0),
    torch.float64: (torch.int64, 0x7FF4000000000123, -0x000800000000ABCD),
    torch.bfloat16: (torch.int16, 0x7FB1, -0x0041),
    torch.float16: (torch.int16, 0x7D11, -0x0123),
}
# What the schemas leave open; a list has several cases.
VALUES = {
    "dim": [-1, 0],
    "exponent": [2, 0.5, -1.0, 3.0],
    "rounding_mode": [None, "floor", "trunc"],
    "approximate": ["none", "tanh"],
    "min": -1,
    "max": 1,
    "threshold": 0.5,
    "value": 0.25,
    "other": 3,
    "alpha": 2,
    "negative_slope": 0.1,
    "weight": 0.3,
    "training": False,
    "half_to_float": False,
    "momentum": 0.1,
    "eps": 1e-5,
    "beta": 1.0,
    "scale": 1.0,
    "input_scale": 1.0,
    "lambd": 0.5,
    "is_result": False,
    "self_is_result": False,
    "min_val": -1,
    "max_val": 1,
    "cudnn_enabled": True,
}


def packet(name):
    return getattr(torch.ops.aten, name.removeprefix("aten::"))


def overload(name, overload_name):
    return getattr(packet(name), overload_name or "default")


def special(size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(size, generator=generator, dtype=torch.float64) * 3).to(dtype)
    flat = tensor.view(-1)
    places = torch.randperm(flat.numel(), generator=generator).tolist()
    for place, value in zip(places[2:], SPECIAL, strict=False):
        flat[place] = value
    bits, *nans = NAN_BITS[dtype]
    for place, value in zip(places, nans, strict=False):
        flat.view(bits)[place] = value
    return tensor


def operands(form, size, dtype, seed):
    """Tensors by name; what is broadcast comes in several sizes."""
    sizes = [size, size[-1:], (*size[:-1], 1), ()] if form.broadcasts else [size]
    for shaped_size in sizes:
        tensors = {form.argument: special(size, dtype, seed)}
        for index, name in enumerate(form.shaped):
            if name in ("mask", "condition"):
                tensors[name] = special(shaped_size, dtype, seed + index + 1) > 0
            else:
                tensors[name] = special(shaped_size, dtype, seed + index + 1)
        yield tensors


def channels(form, size, dtype):
    if form.argument != "input":
        return {}
    if len(size) < 2:
        return None
    values = torch.linspace(0.5, 2, size[1]).to(dtype)
    return {
        "weight": values,
        "bias": values - 1,
        "running_mean": values / 2,
        "running_var": values,
    }


def cases(form):
    """Tensors and other arguments of the original."""
    schema = overload(form.oper, form.overload)._schema
    names = [argument.name for argument in schema.arguments]
    for seed, (size, dtype) in enumerate(itertools.product(SIZES, DTYPES)):
        more = channels(form, size, dtype)
        if more is None:
            continue
        open_values = {**VALUES, form.dtype: [None, dtype]}
        for tensors in operands(form, size, dtype, 10 * seed):
            given = {**tensors, **more}
            others = [name for name in names if name in open_values and name not in given]
            choices = [
                open_values[name] if isinstance(open_values[name], list) else [open_values[name]]
                for name in others
            ]
            for values in itertools.product(*choices):
                fixed = dict(zip(others, values, strict=True))
                if form.overload == "Tensor" and form.argument == "self" and "mask" in form.shaped:
                    fixed["value"] = torch.tensor(0.25, dtype=dtype)
                if "input_dtype" in names:
                    fixed["input_dtype"] = dtype
                yield {
                    name: {**given, **fixed}[name] for name in names if name in {**given, **fixed}
                }


def called(function, arguments):
    schema = function._schema
    positional = [a.name for a in schema.arguments if not a.kwarg_only]
    args = []
    for name in positional:
        if name not in arguments:
            break
        args.append(arguments[name])
    kwargs = {a.name: arguments[a.name] for a in schema.arguments if a.name in arguments}
    kwargs = {name: value for name, value in kwargs.items() if name not in positional[: len(args)]}
    result = function(*args, **kwargs)
    return result[0] if isinstance(result, tuple) else result


def overwritten(form, arguments):
    """The result of the form, which is its target."""
    function = overload(form.form, form.form_overload)
    given = {**arguments, form.target: arguments[form.argument]}
    if form.adds_no:
        given[form.adds_no] = False
    for argument in function._schema.arguments:
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and argument.name != form.target:
            given[argument.name] = torch.empty(0, dtype=arguments[form.rest_like].dtype)
    names = {argument.name for argument in function._schema.arguments}
    result = called(function, {name: given[name] for name in given if name in names})
    assert result.data_ptr() == arguments[form.argument].data_ptr()
    return arguments[form.argument]


def bits(tensor):
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return flat.view(torch.uint8)


def with_steps(tensor):
    """The same values, every second element of a larger tensor."""
    if not tensor.dim():
        return tensor
    large = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    large[..., ::2] = tensor
    return large[..., ::2]


def transposed(tensor):
    return tensor if tensor.dim() < 2 else tensor.mT.contiguous().mT


def channels_last(tensor):
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def as_it_is(tensor):
    return tensor


# Of the argument, and of the other operands.
LAYOUTS = [
    (as_it_is, as_it_is),
    (channels_last, channels_last),
    *(
        (argument, other)
        for argument in (as_it_is, transposed)
        for other in (with_steps, transposed)
    ),
]


def copied(arguments, form=None, layout=LAYOUTS[0]):
    """`form`: whose argument and operands get the layout."""

    def copy(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        if form is None or name not in (form.argument, *form.shaped):
            return value.clone()
        return layout[name != form.argument](value.clone())

    return {name: copy(name, value) for name, value in arguments.items()}


def difference(form, arguments, layout):
    """Of one call of either form: empty if there is none."""
    before = copied(arguments, form, layout)
    try:
        with torch_ext.measure_peak() as original:
            expected = called(overload(form.oper, form.overload), before)
    except RuntimeError:
        return ""  # no kernel for this dtype: the form is never reached
    if (
        expected.shape != before[form.argument].shape
        or expected.dtype != before[form.argument].dtype
    ):
        return ""  # not claimed
    if layout != LAYOUTS[0] and expected.stride() != before[form.argument].stride():
        return ""
    given = copied(arguments, form, layout)
    with torch_ext.measure_peak() as memory:
        result = overwritten(form, given)
    if result.stride() != expected.stride():
        return f"other strides, {result.stride()} instead of {expected.stride()}"
    if not torch.equal(bits(result), bits(expected)):
        return "other bits"
    for name, value in given.items():
        is_other = isinstance(value, torch.Tensor) and name != form.argument
        if is_other and not torch.equal(bits(value), bits(before[name])):
            return f"{name} is written to"
    saved_bytes = original.peak_bytes - memory.peak_bytes
    if saved_bytes < expected.nbytes:
        return f"it takes memory: {memory.peak_bytes} bytes, and the original {original.peak_bytes}"
    return ""


def layouts_of(form, size):
    if not form.keeps_layout:
        return LAYOUTS[:1]
    return LAYOUTS if form.shaped and size in SIZES[1:4:2] else LAYOUTS[:2]


def fault_of(form):
    """The first fault of an entry; empty if there is none."""
    for arguments in cases(form):
        for layout in layouts_of(form, arguments[form.argument].shape):
            if found := difference(form, arguments, layout):
                shown = {
                    name: (tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else v
                    for name, v in arguments.items()
                }
                return f"{form.oper}.{form.overload} over {form.argument}, {shown}: {found}"
    return ""


FORMS = _sched.overwriting_forms()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("oper", sorted({form.oper for form in FORMS}))
def test_every_entry_keeps_the_bits_and_takes_no_memory(oper, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a result that had to be resized
            faults = [fault_of(form) for form in FORMS if form.oper == oper]
    finally:
        torch.set_num_threads(before)
    assert not any(faults), next(fault for fault in faults if fault)


@pytest.mark.parametrize("form", [form for form in FORMS if form.typed], ids=lambda f: f.oper)
def test_an_operand_may_be_the_argument_itself(form):
    for arguments in itertools.islice(cases(form), 8):
        same = {
            name: arguments[form.argument] if name in form.typed else value
            for name, value in arguments.items()
        }
        try:
            expected = called(overload(form.oper, form.overload), copied(same))
        except RuntimeError:
            continue
        clone = same[form.argument].clone()
        twins = {name: clone if v is same[form.argument] else v for name, v in same.items()}
        assert torch.equal(bits(overwritten(form, twins)), bits(expected))


def planted(**fields):
    form = _sched.OverwritingForm()
    for name, value in fields.items():
        setattr(form, name, value)
    return form


@pytest.mark.parametrize(
    ("fault", "fields"),
    [
        ("takes memory", {"oper": "aten::relu", "form": "aten::relu", "form_overload": "out"}),
        ("other bits", {"oper": "aten::gelu", "form": "aten::silu_", "target": "self"}),
        ("other bits", {"oper": "aten::floor", "form": "aten::trunc_", "target": "self"}),
    ],
)
def test_a_wrong_entry_is_noticed(fault, fields):
    form = planted(**{"argument": "self", "target": "out", **fields})
    assert fault in fault_of(form)


def test_a_wrong_entry_of_two_operands_is_noticed():
    over_other = {
        "argument": "other",
        "form_overload": "out",
        "target": "out",
        "shaped": ["self"],
        "typed": ["self"],
    }
    add = {"oper": "aten::add", "overload": "Tensor", "form": "aten::add", "broadcasts": True}
    assert fault_of(planted(**over_other, **add)) == ""
    other_function = planted(**over_other, oper="aten::maximum", form="aten::minimum")
    assert "other bits" in fault_of(other_function)


def test_all_entries_were_tried():
    for form in FORMS:
        assert next(iter(cases(form)), None) is not None, form.oper

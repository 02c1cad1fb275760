"""The table of operators that run in parts (csrc/program/operators/slicing.h): rules of indices.

Each rule is tried on calls of random sizes: parts, made as the rule says, are the whole.
"""

import os
import random

import pytest
import torch

from torch_ext import _sched

DOUBLE = torch.float64
SEEDS = 6 * int(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))


def tensor(*shape):
    return torch.rand(*shape, dtype=DOUBLE) + 0.5


def sizes(rng, rank, most=7):
    return [rng.randint(2, most) for _ in range(rank)]


def unary(rng):
    return [tensor(*sizes(rng, rng.randint(1, 4)))]


def pair(rng):
    shape = sizes(rng, 3)
    other = [size if rng.random() < 0.7 else 1 for size in shape][rng.randint(0, 2) :]
    return [tensor(*shape), tensor(*other)]


def condition(rng):
    a, b = pair(rng)
    return [a > 1, b, a]


def batch_norm(rng):
    shape = sizes(rng, 4)
    statistics = [tensor(shape[1]) for _ in range(4)]
    return [tensor(*shape), *statistics, False, 0.1, 1e-5, True]


def layer_norm(rng):
    shape = sizes(rng, 3)
    normal = shape[rng.randint(1, 2) :]
    return [tensor(*shape), normal, tensor(*normal), tensor(*normal), 1e-5, True]


def group_norm(rng):
    shape = sizes(rng, 3)
    return [tensor(*shape), shape[1], tensor(shape[1]), tensor(shape[1]), 1e-5, True]


def window(rng, spatial):
    kernel = [rng.randint(1, 3) for _ in range(spatial)]
    stride = [rng.randint(1, 3) for _ in range(spatial)]
    dilation = [rng.randint(1, 2) for _ in range(spatial)]
    padding = [rng.randint(0, k - 1) for k in kernel]
    return kernel, stride, dilation, padding


def convolution(spatial):
    def make(rng):
        kernel, stride, dilation, padding = window(rng, spatial)
        channels = 2 * rng.randint(1, 2)
        groups = rng.choice([1, 1, 2, channels])
        image = tensor(rng.randint(2, 3), channels, *(rng.randint(7, 13) for _ in kernel))
        made = rng.choice([channels, 2 * channels])
        weight = tensor(made, channels // groups, *kernel)
        bias = tensor(weight.shape[0]) if rng.random() < 0.7 else None
        return [image, weight, bias, stride, padding, dilation, groups]

    return make


def old_convolution(rng):
    image, weight, bias, stride, padding, dilation, groups = convolution(2)(rng)
    flags = [False, False, True, True]
    return [image, weight, bias, stride, padding, dilation, False, [0, 0], groups, *flags]


def max_pool(rng):
    kernel, stride, dilation, padding = window(rng, 2)
    padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    return [tensor(2, 3, 11, 12), kernel, stride, padding, dilation, rng.random() < 0.5]


def avg_pool(rng):
    kernel, stride, _, padding = window(rng, 2)
    padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    has_ceiling, counts_padding = rng.random() < 0.5, rng.random() < 0.5
    return [tensor(2, 3, 11, 12), kernel, stride, padding, has_ceiling, counts_padding, None]


def linear(rng):
    shape = sizes(rng, rng.randint(2, 3))
    out = rng.randint(2, 6)
    return [tensor(*shape), tensor(out, shape[-1]), tensor(out) if rng.random() < 0.7 else None]


def product(rng):
    batch = sizes(rng, rng.randint(0, 2))
    n, k, m = sizes(rng, 3)
    other = [size if rng.random() < 0.7 else 1 for size in batch][rng.randint(0, len(batch)) :]
    return [tensor(*batch, n, k), tensor(*other, k, m)]


def matrices(rng):
    n, k, m = sizes(rng, 3)
    return [tensor(n, k), tensor(k, m)]


def batches(rng):
    b, n, k, m = sizes(rng, 4)
    return [tensor(b, n, k), tensor(b, k, m)]


def attention(rng):
    batch, heads, queries, keys, width = sizes(rng, 5)
    mask = rng.choice([None, tensor(queries, keys), tensor(batch, 1, queries, keys)])
    causal = mask is None and rng.random() < 0.3
    arguments = [(batch, heads, size, width) for size in (queries, keys, keys)]
    return [*(tensor(*shape) for shape in arguments), mask, 0.0, causal]


def projected_attention(rng):
    batch, rows, heads, width = sizes(rng, 4)
    size = 4 * heads * width
    x = tensor(batch, rows, size)
    weights = [tensor(3 * size, size), tensor(3 * size), tensor(size, size), tensor(size)]
    return [x, x, x, size, heads, *weights, None, False]


def reduced(rng):
    rank = rng.randint(2, 4)
    dims = rng.sample(range(-rank, 0), rng.randint(1, rank - 1))
    return [tensor(*sizes(rng, rank)), dims, rng.random() < 0.5]


def viewed(rng):
    a, b, c, d = sizes(rng, 4)
    return rng.choice(
        [
            [tensor(a, b * c, d), [a, b, c, d]],
            [tensor(a, b, c, d), [a, b * c, d]],
            [tensor(a, b, c, d), [a * b, c, -1]],
            [tensor(a * b, c), [a, b, c]],
            [tensor(1, a, b), [a, 1, b]],
            [tensor(a, b, c), [-1, b, c]],
            [tensor(a, b), [b, a]],
        ]
    )


def along(rng):
    rank = rng.randint(2, 4)
    return [tensor(*sizes(rng, rank)), rng.randint(-rank, rank - 1)]


def joined(rng):
    shape = sizes(rng, 3)
    dim = rng.randint(-3, 2)
    others = list(shape)
    others[dim] += 1
    return [[tensor(*shape), tensor(*others)], dim]


def stacked(rng):
    shape = sizes(rng, 2)
    return [[tensor(*shape), tensor(*shape)], rng.randint(-3, 2)]


def squeezed(rng):
    shape = sizes(rng, 3)
    dim = rng.randint(-3, 2)
    shape[dim] = 1
    return [tensor(*shape), dim]


def permuted(rng):
    rank = rng.randint(2, 4)
    dims = rng.sample(range(rank), rank)
    return [tensor(*sizes(rng, rank)), [d - rank if rng.random() < 0.3 else d for d in dims]]


def expanded(rng):
    shape = [size if rng.random() < 0.6 else 1 for size in sizes(rng, 3)]
    larger = [size if size > 1 else rng.randint(2, 4) for size in shape]
    return [tensor(*shape), [-1 if rng.random() < 0.3 and s > 1 else s for s in larger]]


def shifted(rng):
    return [tensor(*sizes(rng, 3)), [1, 2], rng.sample([-3, 1, 2], 2)]


def padded(rng):
    return [tensor(2, 3, 4, 5), [1, 2, 0, 1], *rng.choice([["constant", 0.0], ["reflect"]])]


def image(rng):
    return tensor(*sizes(rng, 4, most=5))


def gathered(rng):
    rank = rng.randint(1, 3)
    shape, dim = sizes(rng, rank), rng.randint(-rank, rank - 1)
    wanted = list(shape)
    wanted[dim] = rng.randint(2, 9)
    return [tensor(*shape), dim, torch.randint(0, shape[dim], wanted)]


def loss_gradient(rng):
    rows, classes = sizes(rng, 2)
    target = torch.randint(0, classes, (rows,))
    target[0] = -100
    reduction = rng.randint(0, 2)
    grad = tensor(rows) if reduction == 0 else tensor(1).squeeze()
    weight = rng.choice([None, tensor(classes)])
    return [grad, tensor(rows, classes), target, weight, reduction, -100, tensor(1).squeeze()]


def softmax_gradient(rng):
    shape = sizes(rng, 3)
    return [tensor(*shape), tensor(*shape), rng.randint(-3, 2), DOUBLE]


def gradient(*numbers):
    def make(rng):
        shape = sizes(rng, 3)
        return [tensor(*shape), tensor(*shape), *numbers]

    return make


CALLS = {
    **dict.fromkeys(("_softmax", "_log_softmax"), lambda rng: [*along(rng), False]),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), softmax_gradient),
    "nll_loss_backward": loss_gradient,
    "gather": gathered,
    "convolution": lambda rng: [*(c := convolution(2)(rng))[:6], False, [0, 0], c[6]],
    "t": lambda rng: matrices(rng)[:1],
    "_unsafe_view": viewed,
    "threshold_backward": gradient(0.7),
    "leaky_relu_backward": gradient(0.1, False),
    **dict.fromkeys(
        ("gelu_backward", "sigmoid_backward", "silu_backward", "tanh_backward"), gradient()
    ),
    **dict.fromkeys(("hardsigmoid_backward", "hardswish_backward"), gradient()),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "rsub", "pow"), pair),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), pair),
    "where": condition,
    "masked_fill": lambda rng: [(m := pair(rng))[0], m[1] > 1, 7.0],
    "clamp": lambda rng: [*unary(rng), 0.7, 1.2],
    "clamp_min": lambda rng: [*unary(rng), 0.7],
    "dropout": lambda rng: [*unary(rng), 0.5, False],
    "feature_dropout": lambda rng: [tensor(*sizes(rng, 4)), 0.5, False],
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    **dict.fromkeys(("softmax", "log_softmax", "cumsum"), along),
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "_convolution": old_convolution,
    "max_pool2d": max_pool,
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool2d": lambda rng: [image(rng), [2, 2]],
    "upsample_nearest2d": lambda rng: [image(rng), [6, 7]],
    "upsample_bilinear2d": lambda rng: [image(rng), [6, 7], False],
    "linear": linear,
    "matmul": product,
    "mm": matrices,
    "bmm": batches,
    "addmm": lambda rng: [tensor((m := matrices(rng))[1].shape[1]), *m],
    "scaled_dot_product_attention": attention,
    "_native_multi_head_attention": projected_attention,
    **dict.fromkeys(("mean", "sum", "amax"), reduced),
    "transpose": lambda rng: [tensor(*sizes(rng, 3)), rng.randint(-3, 2), rng.randint(-3, 2)],
    "permute": permuted,
    "unsqueeze": along,
    "squeeze": squeezed,
    "select": lambda rng: [*along(rng), 1],
    "slice": lambda rng: [*along(rng), 1, None, 2],
    "view": viewed,
    "reshape": viewed,
    "flatten": lambda rng: [tensor(*sizes(rng, 4)), *rng.choice([(1, 2), (0, 1), (2, -1)])],
    "expand": expanded,
    "cat": joined,
    "stack": stacked,
    "embedding": lambda rng: [tensor(9, 4), torch.randint(0, 9, sizes(rng, 2))],
    "roll": shifted,
    "pad": padded,
    "constant_pad_nd": lambda rng: [tensor(2, 3, 4, 5), [1, 2, 0, 1], 0.5],
}


def operator(name, arguments):
    """The overload that takes the arguments, as torch would choose it."""
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        operator = getattr(packet, overload)
        if "out" in overload or len(operator._schema.arguments) < len(arguments):
            continue
        try:
            operator(*arguments)
        except (RuntimeError, TypeError, NotImplementedError):
            continue
        return operator
    raise AssertionError(f"no overload of {name} takes {arguments}")


def first_of(made):
    return made[0] if isinstance(made, tuple) else made


def shape_of(value):
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return list(value[0].shape)
    return None


def narrowed(value, dimension, begin, end):
    if isinstance(value, list):
        return [one.narrow(dimension, begin, end - begin) for one in value]
    return value.narrow(dimension, begin, end - begin)


def part_of(operator, arguments, slicing, dimension, begin, end):
    names = [argument.name for argument in operator._schema.arguments]
    part = [value.clone() if isinstance(value, torch.Tensor) else value for value in arguments]
    offset = 0
    for name, need in slicing.needs:
        place = names.index(name)
        size = shape_of(arguments[place])[need.dimension]
        if slicing.padding:
            first, last, padding, offset = need.padded(begin, end, size)
            paddings = names.index(slicing.padding)
            part[paddings] = list(part[paddings])
            part[paddings][slicing.padding_place] = padding
        else:
            interval = need.of(begin, end, size)
            if interval is None:
                return None
            first, last = interval
        part[place] = narrowed(part[place], need.dimension, first, last)
    if slicing.size:
        part[names.index(slicing.size)] = end - begin
    if slicing.sizes:
        place = names.index(slicing.sizes)
        part[place] = list(part[place])
        part[place][slicing.sizes_place] = end - begin
    is_view = operator._schema.name == "aten::view"
    made = part[0].reshape(part[1]) if is_view else first_of(operator(*part))
    return made.narrow(dimension, offset, end - begin)


def constants_of(operator, arguments):
    known = (bool, int, float, list)
    pairs = zip(operator._schema.arguments, arguments, strict=False)
    return {
        argument.name: value
        for argument, value in pairs
        if isinstance(value, known) and shape_of(value) is None
    }


def slicing_of(operator, arguments, result, dimension):
    names = [argument.name for argument in operator._schema.arguments]
    shapes = {n: shape_of(v) for n, v in zip(names, arguments, strict=False) if shape_of(v)}
    return _sched.slicing_of(
        operator._schema.name,
        shapes,
        constants_of(operator, arguments),
        list(result.shape),
        dimension,
    )


@pytest.mark.parametrize("name", _sched.sliceable_operators())
def test_parts_are_the_whole(name):
    """In some dimension of some call there is a rule, and it is right wherever there is one."""
    name = name.removeprefix("aten::")
    tried = 0
    for seed in range(SEEDS):
        rng = random.Random(f"{name} {seed}")
        torch.manual_seed(seed)
        arguments = CALLS.get(name, unary)(rng)
        call = operator(name, arguments)
        whole = first_of(call(*arguments))
        for dimension in range(whole.dim()):
            slicing = slicing_of(call, arguments, whole, dimension)
            if slicing is None:
                continue
            size = whole.shape[dimension]
            for length in {1, 2, 3, (size + 1) // 2} & set(range(1, size)):
                for begin in range(0, size, length):
                    end = min(begin + length, size)
                    part = part_of(call, arguments, slicing, dimension, begin, end)
                    if part is None:
                        continue
                    expected = whole.narrow(dimension, begin, end - begin)
                    torch.testing.assert_close(
                        part, expected, msg=f"seed {seed}: [{begin}, {end}) of {dimension}"
                    )
                    tried += 1
    assert tried > 0


def test_a_form_in_place_has_the_rule_of_the_other():
    shapes = {"self": [4, 5]}
    slicing = _sched.slicing_of("aten::relu_", shapes, {}, [4, 5], 0)
    assert slicing.changes_argument
    assert not _sched.slicing_of("aten::relu", shapes, {}, [4, 5], 0).changes_argument


@pytest.mark.parametrize(
    ("oper", "shapes", "constants", "result", "dimension"),
    [
        ("aten::unheard_of", {"self": [4]}, {}, [4], 0),
        ("aten::relu", {"self": [4]}, {}, [4], 1),
        ("aten::relu", {"self": [1]}, {}, [1], 0),
        ("aten::softmax", {"self": [4, 4]}, {"dim": 1}, [4, 4], 1),
        ("aten::softmax", {"self": [4, 4]}, {}, [4, 4], 1),
        ("aten::batch_norm", {"input": [4, 4]}, {"training": True}, [4, 4], 0),
        ("aten::dropout", {"input": [4, 4]}, {"train": True}, [4, 4], 0),
        ("aten::view", {"self": [4, 6]}, {"size": [6, 4]}, [6, 4], 0),
        ("aten::matmul", {"self": [4], "other": [4, 5]}, {}, [5], 0),
    ],
)
def test_what_is_not_known_has_no_rule(oper, shapes, constants, result, dimension):
    assert _sched.slicing_of(oper, shapes, constants, result, dimension) is None

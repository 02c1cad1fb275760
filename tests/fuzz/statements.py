"""The kinds of statements, in groups: what a program of the group is full of.

A kind picks what it needs from what is alive, and raises Impossible if that is not there.
"""

import dataclasses
from collections.abc import Callable

from tests.fuzz.helpers import ON_PURPOSE
from tests.fuzz.source import Statement
from tests.fuzz.writing import (
    UNARY,
    Container,
    Impossible,
    Kind,
    Shape,
    Value,
    Writer,
    simplest,
    simplest_line,
)

Groups = dict[str, list[tuple[float, Kind]]]

GROUPS: Groups = {}
GRAPH_GROUPS: Groups = {}  # what a graph can hold, and TorchScript's compiler drops


def _statement(group: str, weight: float = 1.0, groups: Groups = GROUPS) -> Callable[[Kind], Kind]:
    def register(kind: Kind) -> Kind:
        groups.setdefault(group, []).append((weight, kind))
        return kind

    return register


# --- arithmetic -----------------------------------------------------------------------------------


@_statement("arithmetic", 2)
def _unary(g: Writer) -> None:
    v = g.pick()
    g.fresh(f"torch.{g.random.choice(UNARY)}({v.name})", v.shape)


@_statement("arithmetic", 2)
def _binary(g: Writer) -> None:
    v = g.pick()
    w = v.name if g.chance(0.1) else g.pick(v.shape, ()).name
    if g.chance(0.2):
        w = g.number()
    g.fresh(f"{v.name} {g.random.choice('+-*')} {w}", v.shape)


@_statement("arithmetic")
def _reduction(g: Writer) -> None:
    v = g.matrix()
    dim = g.random.randrange(2)
    op = g.random.choice(("sum", "mean", "amax", "cumsum", "softmax", "all"))
    if op == "all":
        g.fresh(f"{v.name}.{g.random.choice(('sum', 'mean', 'max'))}()", ())
    elif op in ("cumsum", "softmax"):
        g.fresh(f"torch.{op}({v.name}, {dim})", v.shape)
    else:
        g.fresh(f"{v.name}.{op}({dim})", (v.shape[1 - dim],))


@_statement("memory", 2)
def _large(g: Writer) -> None:
    """A large value that is made small again, possibly much later."""
    v = g.matrix()
    times = min(8, 16384 // (v.shape[0] * v.shape[1]))
    if times < 2:
        raise Impossible
    g.fresh(f"torch.sin({v.name}.repeat(1, {times}))", (v.shape[0], v.shape[1] * times))


@_statement("memory")
def _small(g: Writer) -> None:
    v = g.matrix()
    g.fresh(f"{v.name}.sum(1)", (v.shape[0],))


@_statement("layers")
def _product(g: Writer) -> None:
    v = g.matrix()
    if v.shape[1] == g.columns:
        g.fresh(f"{v.name} @ self.weight", (v.shape[0], g.columns))
    else:
        g.fresh(f"({v.name} @ {v.name}.t()) * 0.1", (v.shape[0], v.shape[0]))


@_statement("layers")
def _convolution(g: Writer) -> None:
    v = g.matrix()
    g.fresh(
        f"torch.conv2d({v.name}[None, None], self.kernel, None, [1, 1], [1, 1])[0, 0]",
        v.shape,
    )


@_statement("layers")
def _linear(g: Writer) -> None:
    v = g.pick((g.rows, g.columns))
    g.fresh(f"F.layer_norm(F.linear({v.name}, self.weight), [{g.columns}])", v.shape)


# --- constants: equal ones are merged, unless somebody writes to them -----------------------------


@_statement("constants")
def _filled(g: Writer) -> None:
    g.fresh(
        f"torch.{g.random.choice(('zeros', 'ones'))}([{g.rows}, {g.columns}])", (g.rows, g.columns)
    )


@_statement("constants")
def _twice_the_same(g: Writer) -> None:
    v = g.pick()
    text = f"{v.name} * 1.5"
    for _ in range(2):
        g.define(text, Value("", v.shape, roots=g.new_root()))


@_statement("constants")
def _literal(g: Writer) -> None:
    g.fresh("torch.tensor([1.0, 2.0, 3.0])", (3,))


@_statement("constants")
def _numbers(g: Writer) -> None:
    name = g.new_name("k")
    g.emit(f"{name} = [1, 2, {g.random.choice(g.ints)}]", f"{name} = [1, 2, 3]")
    g.new_int(f"{name}[0] + len({name})")
    g.emit(f"{name}[0] = {g.random.choice(g.ints)} % 3")
    g.emit(f"{name}.append({g.random.choice(g.ints)})")
    g.new_int(f"{name}[0] + len({name}) + {name}[-1]")


# --- numbers --------------------------------------------------------------------------------------


@_statement("numbers")
def _int(g: Writer) -> None:
    choice = g.random.randrange(4)
    if choice == 0:
        g.new_int(f"({g.random.choice(g.ints)} * 3 + {g.random.choice(g.ints)}) % 7")
    elif choice == 1:
        g.new_int(f"len({g.some_list().name})")
    elif choice == 2:
        g.new_int(f"int(torch.nan_to_num({g.pick().name}.sum()).clamp(-8.0, 8.0))")
    else:
        g.new_int(f"{g.matrix().name}.{g.random.choice(('size', 'stride'))}(0)")


@_statement("numbers")
def _assign_number(g: Writer) -> None:
    if not g.locals:
        raise Impossible
    name = g.random.choice(g.locals)
    value = g.condition() if name in g.bools else f"({name} + {g.random.choice(g.ints)}) % 5"
    g.emit(f"{name} = {value}")


@_statement("numbers")
def _bool(g: Writer) -> None:
    g.new_bool(g.condition())


@_statement("numbers")
def _from_number(g: Writer) -> None:
    v = g.pick()
    g.fresh(f"{v.name} + {g.random.choice(g.ints)}", v.shape)


@_statement("numbers")
def _item(g: Writer) -> None:
    v = g.pick()
    g.fresh(f"{v.name} * float({g.pick().name}.mean())", v.shape)


@_statement("integers")
def _mask(g: Writer) -> None:
    v = g.matrix()
    g.fresh(f"{v.name} > {g.number()}", v.shape, "bool")


@_statement("integers")
def _indices(g: Writer) -> None:
    v = g.matrix()
    g.fresh(f"{v.name}.argmax({1})", (v.shape[0],), "int")


@_statement("integers")
def _use_mask(g: Writer) -> None:
    mask = g.pick(kind="bool")
    v = g.pick(mask.shape, writable=True)
    choice = g.random.randrange(5)
    if choice == 0:
        g.fresh(f"torch.where({mask.name}, {v.name}, {g.pick(mask.shape).name})", v.shape)
    elif choice == 1:
        g.emit(f"{v.name}[{mask.name}] = {g.number()}")
    elif choice == 2:
        g.emit(f"{v.name}.masked_fill_({mask.name}, {g.number()})")
    elif choice == 3:
        g.fresh(f"{v.name}[{mask.name}].sum()", ())
    else:
        g.emit(f"{mask.name}.logical_not_()")


@_statement("integers")
def _use_indices(g: Writer) -> None:
    index = g.pick(kind="int", rank=1)
    v = g.pick(rank=2, writable=True)
    rows = f"{index.name} % {v.shape[0]}"
    choice = g.random.randrange(4)
    if choice == 0:
        g.fresh(f"{v.name}.index_select(0, {rows})", (index.shape[0], v.shape[1]))
    elif choice == 1:
        g.emit(f"{v.name}.index_fill_(0, {rows}, {g.number()})")
    elif choice == 2:
        g.emit(f"{v.name}[{rows}] = {g.number()}")
    else:
        g.emit(f"{index.name}.add_(1)")


# --- writes ---------------------------------------------------------------------------------------


@_statement("in_place", 3)
def _write(g: Writer) -> None:
    v = g.pick(writable=True)
    op = g.random.choice(("add_", "sub_", "mul_", "copy_", "fill_", "clamp_", "tanh_", "zero_"))
    if op in ("add_", "sub_", "mul_"):
        text = f"{v.name}.{op}({g.operand(v)})"
    elif op == "copy_":
        text = f"{v.name}.copy_({g.fresh_text(v.shape)})"
    elif op == "fill_":
        text = f"{v.name}.fill_({g.number()})"
    elif op == "clamp_":
        text = f"{v.name}.clamp_(-0.75, 0.75)"
    else:
        text = f"{v.name}.{op}()"
    if g.chance(0.25):
        g.alias(v, text)
    else:
        g.emit(text)
    v.uses = 0


@_statement("in_place")
def _write_part(g: Writer) -> None:
    v = g.matrix(writable=True)
    r, c = v.shape
    place = g.random.choice(
        (f"[{g.random.randrange(r)}]", f"[:, {g.random.randrange(c)}]", f"[{r // 2}:]", "[:, ::2]")
    )
    value = g.random.choice((g.number(), f"{g.pick().name}.mean()"))
    g.emit(f"{v.name}{place} {g.random.choice(('=', '+=', '*='))} {value}")


@_statement("in_place")
def _write_augmented(g: Writer) -> None:
    v = g.pick(writable=True)
    if v.name.startswith("t"):
        raise Impossible  # TorchScript does not do that to an element of a tuple
    g.emit(f"{v.name} {g.random.choice(('+=', '-=', '*='))} {g.operand(v)}")


@_statement("in_place")
def _write_out(g: Writer) -> None:
    v = g.pick(writable=True)
    w = g.pick(v.shape)
    if w is not v and (g.loops > 0 or not w.roots.isdisjoint(v.roots)):
        raise Impossible
    g.emit(f"torch.{g.random.choice(('sin', 'tanh', 'neg'))}({w.name}, out={v.name})")


# --- views ----------------------------------------------------------------------------------------


@_statement("views", 3)
def _view_of_matrix(g: Writer) -> None:
    v = g.matrix()
    r, c = v.shape
    i, j = g.random.randrange(r), g.random.randrange(c)
    text, shape = g.random.choice(
        (
            (f"{v.name}[{i}]", (c,)),
            (f"{v.name}[:, {j}]", (r,)),
            (f"{v.name}[{i}:]", (r - i, c)),
            (f"{v.name}[:, {j}:]", (r, c - j)),
            (f"{v.name}.t()", (c, r)),
            (f"{v.name}.transpose(0, 1)", (c, r)),
            (f"{v.name}.narrow(0, {i}, {r - i})", (r - i, c)),
            (f"{v.name}.select(1, {j})", (r,)),
            (f"{v.name}.diagonal()", (min(r, c),)),
            (f"{v.name}.reshape({c}, {r})", (c, r)),
            (f"{v.name}.flatten()", (r * c,)),
            (f"{v.name}.unsqueeze(0).squeeze(0)", (r, c)),
        )
    )
    g.view(v, text, shape)


@_statement("views")
def _same_again(g: Writer) -> None:
    v = g.pick()
    text = g.random.choice(
        (
            v.name,
            f"{v.name}.detach()",
            f"{v.name}.data",
            f"{v.name}.contiguous()",
            f"{v.name}.float()",
            # These return what they are given; their schemas tell of something new.
            f"torch.dropout({v.name}, 0.5, False)",
            f"{v.name}.type_as({v.name})",
            f"torch.ops.torch_ext_fuzz.pass_on({v.name})",
        )
    )
    g.alias(v, text)


@_statement("views")
def _set(g: Writer) -> None:
    v = g.pick()
    g.alias(v, f"torch.empty([0]).set_({v.name})")


@_statement("views")
def _view_by_layout(g: Writer) -> None:
    v = g.pick(rank=2, contiguous=True)
    r, c = v.shape
    choice = g.random.randrange(4)
    if choice == 0:
        g.view(v, f"{v.name}.view({c}, {r})", (c, r))
    elif choice == 1:
        g.view(v, f"{v.name}.view(-1)", (r * c,))
    elif choice == 2:
        g.view(v, f"{v.name}.as_strided([{r}, {c}], [1, {r}])", (r, c))
    else:
        g.view(v, f"{v.name}.as_strided([{r}, 2], [1, 1])", (r, 2), overlaps=True)


@_statement("views")
def _expanded(g: Writer) -> None:
    v = g.pick(rank=1)
    if v.shape[0] * 3 > 16384:
        raise Impossible
    g.view(v, f"{v.name}.expand(3, {v.shape[0]})", (3, v.shape[0]), overlaps=True)


@_statement("views")
def _windows(g: Writer) -> None:
    v = g.pick(rank=1)
    if v.shape[0] < 2:
        raise Impossible
    g.view(v, f"{v.name}.unfold(0, 2, 1)", (v.shape[0] - 1, 2), overlaps=True)


@_statement("views")
def _halves(g: Writer) -> None:
    v = g.matrix()
    r, c = v.shape
    if r % 2:
        raise Impossible
    first, second = g.new_name("v"), g.new_name("v")
    text = g.random.choice((f"torch.chunk({v.name}, 2, 0)", f"{v.name}.split({r // 2})"))
    simplest = f"torch.ones([{r // 2}, {c}])"
    g.emit(f"{first}, {second} = {text}", f"{first}, {second} = {simplest}, {simplest}")
    g.tensors += [
        Value(name, (r // 2, c), "float", set(v.roots), v.writable, False, assignable=True)
        for name in (first, second)
    ]


@_statement("views")
def _list_of_views(g: Writer) -> None:
    v = g.matrix()
    name = g.new_name("l")
    g.emit(f"{name} = {v.name}.unbind(0)", f"{name} = [torch.ones([{v.shape[1]}])]")
    g.lists.append(
        Container(name, v.shape[1:], set(v.roots), v.shape[0], g.blocks[-1], v.writable, False)
    )


# --- copies that other inputs do not need: who overwrites them must know --------------------------


@_statement("copies")
def _copy_of_the_transpose(g: Writer) -> None:
    v = g.matrix()
    r, c = v.shape
    g.fresh(f"torch.{g.random.choice(UNARY)}({v.name}.t().contiguous())", (c, r))


@_statement("copies")
def _copied_before_it_dies(g: Writer) -> None:
    v = g.matrix()
    r, c = v.shape
    w = _new_name_for(g, v)
    g.fresh(f"{w}.t().contiguous()", (c, r))
    g.fresh(f"torch.{g.random.choice(UNARY)}({w})", (r, c))


@_statement("copies")
def _copied_and_returned(g: Writer) -> None:
    if len(g.blocks) > 1:
        raise Impossible
    v = g.matrix()
    r, c = v.shape
    g.kept.append(_new_name_for(g, v))
    g.fresh(f"torch.{g.random.choice(UNARY)}({g.kept[-1]}.t().contiguous())", (c, r))


def _new_name_for(g: Writer, v: Value) -> str:
    """Of new memory, which no other statement picks."""
    name = g.new_name("v")
    g.emit(f"{name} = {v.name} * {g.number()}", f"{name} = {simplest(v)}")
    return name


@_statement("copies")
def _with_its_transpose(g: Writer) -> None:
    w = _new_square(g)
    g.fresh(f"{w.name} {g.random.choice('+-*')} {w.name}.t()", w.shape)


def _new_square(g: Writer) -> Value:
    v = g.matrix()
    side = min(v.shape)
    return g.fresh(f"{v.name}[:{side}, :{side}] * 1.0", (side, side))


@_statement("metadata", 2)
def _transpose_in_place(g: Writer) -> None:
    square = [v for v in g.tensors if len(v.shape) == 2 and v.shape[0] == v.shape[1]]
    square = [v for v in square if v.name != "self.weight" and v.roots.isdisjoint(g.locked)]
    if not square:
        square = [_new_square(g)]
    v = g.random.choice(square)
    g.emit(f"{v.name}.{g.random.choice(('t_()', 'transpose_(0, 1)'))}")
    v.uses = 0


@_statement("metadata")
def _resize(g: Writer) -> None:
    v = g.matrix()
    r, c = v.shape
    w = g.fresh(f"{v.name} * 1.0", (r, c))
    g.emit(f"{w.name}.resize_([{c}, {r}])")
    w.shape = (c, r)


@_statement("metadata")
def _strides(g: Writer) -> None:
    g.new_int(f"{g.matrix().name}.stride(0)")


@_statement("empty")
def _no_elements(g: Writer) -> None:
    v = g.matrix()
    name = g.new_name("z")
    g.emit(f"{name} = {v.name}[0:0]", f"{name} = torch.ones([0, {v.shape[1]}])")
    g.emit(f"{name}.{g.random.choice(('add_(1.0)', 'zero_()', 'normal_()'))}")
    g.fresh(f"torch.cat([{name}, {v.name}, {name} * 2.0])", v.shape)
    g.fresh(f"{name}.sum()", ())


# --- containers -----------------------------------------------------------------------------------


def _list_around(g: Writer, v: Value, values: list[Value], text: str) -> None:
    name = g.new_name("l")
    g.emit(f"{name} = {text}", f"{name} = [{simplest(v)}, {simplest(v)}]")
    g.lists.append(
        Container(
            name,
            v.shape,
            set().union(*(w.roots for w in values)),
            len(values),
            g.blocks[-1],
            all(w.writable for w in values),
            all(w.contiguous for w in values),
        )
    )


@_statement("lists", 2)
def _list(g: Writer) -> None:
    v = g.pick()
    values = [v] + [g.pick(v.shape) for _ in range(g.random.randint(0, 2)) if v in g.tensors]
    _list_around(g, v, values, f"[{', '.join(w.name for w in values)}]")


@_statement("lists")
def _empty_list(g: Writer) -> None:
    name = g.new_name("l")
    g.emit(f"{name}: List[Tensor] = []")
    g.lists.append(Container(name, (g.rows, g.columns), set(), 0, g.blocks[-1]))


@_statement("lists", 2)
def _change_list(g: Writer) -> None:
    target = g.some_list(changes=True)
    here = target.block == g.blocks[-1]
    change = g.random.choice(("append", "insert", "plus", "set", "pop", "reverse", "extend"))
    if change == "reverse":
        g.emit(f"{target.name}.reverse()")
        return
    if change == "pop":
        if not here or target.length < 2:
            raise Impossible
        target.length -= 1
        g.define(
            f"{target.name}.pop({g.random.choice(('', '0'))})",
            Value("", target.shape, "float", target.roots, target.writable, target.contiguous),
        )
        return
    if change == "extend":
        if g.loops:
            raise Impossible  # might double each time
        other = g.some_list(shape=target.shape)
        g.emit(f"{target.name}.extend({other.name})")
        target.roots |= other.roots
        target.writable &= other.writable
        target.contiguous &= other.contiguous
        return
    v = g.pick(target.shape)
    if change == "set":
        if target.length == 0:
            raise Impossible
        g.emit(f"{target.name}[{g.random.randrange(target.length)}] = {v.name}")
    else:
        text = {
            "append": f"{target.name}.append({v.name})",
            "insert": f"{target.name}.insert(0, {v.name})",
            "plus": f"{target.name} += [{v.name}]",
        }[change]
        # In TorchScript += makes a new value under the name; an attribute would be assigned to.
        if change == "plus" and "." in target.name:
            raise Impossible
        g.emit(text)
        target.length += here
    target.roots |= v.roots
    target.writable &= v.writable
    target.contiguous &= v.contiguous


@_statement("lists", 2)
def _use_list(g: Writer) -> None:
    source = g.some_list()
    if source.length == 0:
        raise Impossible
    op = g.random.choice(("cat", "stack", "element", "comprehension"))
    if op == "cat" and len(source.shape) > 0:
        g.fresh(f"torch.cat({source.name}).sum()", ())
    elif op == "element":
        at = g.random.randrange(source.length)
        g.define(
            f"{source.name}[{at}]",
            Value("", source.shape, "float", source.roots, source.writable, source.contiguous),
        )
    elif op == "comprehension":
        name = g.new_name("l")
        g.emit(f"{name} = [t * {g.number()} for t in {source.name}]")
        g.lists.append(Container(name, source.shape, g.new_root(), source.length, g.blocks[-1]))
    else:
        g.fresh(f"torch.stack({source.name}).sum(0)", source.shape)


@_statement("lists")
def _list_under_another_name(g: Writer) -> None:
    source = g.some_list(changes=True)
    name = g.new_name("l")
    g.emit(f"{name} = {source.name}")
    source.frozen = True  # its length changes under both names: not followed any more
    g.lists.append(dataclasses.replace(source, name=name, block=g.blocks[-1]))
    source.frozen = True
    v = g.pick(source.shape)
    g.emit(f"{name}.append({v.name})")
    for one in (source, g.lists[-1]):
        one.roots |= v.roots
        one.writable &= v.writable
        one.contiguous &= v.contiguous


@_statement("dicts")
def _dict(g: Writer) -> None:
    v = g.pick()
    w = g.pick(v.shape) if v in g.tensors else v
    name = g.new_name("d")
    g.emit(f'{name} = {{"a": {v.name}, "b": {w.name}}}')
    g.dicts.append(
        Container(
            name,
            v.shape,
            v.roots | w.roots,
            2,
            g.blocks[-1],
            v.writable and w.writable,
            v.contiguous and w.contiguous,
        )
    )


@_statement("dicts")
def _change_dict(g: Writer) -> None:
    target = g.random.choice(g.dicts)
    if target.frozen or not target.roots.isdisjoint(g.locked):
        raise Impossible
    v = g.pick(target.shape)
    g.emit(f'{target.name}["{g.random.choice("abcd")}"] = {v.name}')
    target.roots |= v.roots
    target.writable &= v.writable
    target.contiguous &= v.contiguous


@_statement("dicts")
def _sum_of_dict(g: Writer) -> None:
    source = g.random.choice(g.dicts)
    choice = g.random.randrange(3)
    if choice == 0:
        g.new_int(f"len({source.name})")
    elif choice == 1:
        g.fresh(f"torch.stack(list({source.name}.values())).sum(0)", source.shape)
    else:
        g.new_bool(f'"{g.random.choice("abcd")}" in {source.name}')


@_statement("tuples")
def _tuple(g: Writer) -> None:
    v, w = g.pick(), g.pick()
    name = g.new_name("t")
    g.emit(f"{name} = ({v.name}, {w.name})", f"{name} = ({simplest(v)}, {simplest(w)})")
    g.tensors += [
        dataclasses.replace(
            old, name=f"{name}[{i}]", assignable=False, roots=set(old.roots), uses=0
        )
        for i, old in enumerate((v, w))
    ]


@_statement("tuples")
def _swap(g: Writer) -> None:
    v = g.pick(assignable=True)
    w = g.pick(v.shape, assignable=True)
    if v is w or {v.name, w.name} & {"self.last"}:
        raise Impossible
    g.emit(f"{v.name}, {w.name} = {w.name}, {v.name}")
    for one in (v, w):
        one.roots = v.roots | w.roots
        one.writable = v.writable and w.writable
        one.contiguous = v.contiguous and w.contiguous


@_statement("tuples")
def _optional(g: Writer) -> None:
    v = g.pick()
    name = g.new_name("o")
    g.emit(f"{name}: Optional[Tensor] = None")
    g.emit(f"if {g.condition()}:")
    g.statements[-1] = Statement(g.statements[-1].text, (Statement(f"{name} = {v.name}"),))
    old = g.fresh(g.fresh_text(v.shape), v.shape)
    with g.block(f"if {name} is not None:"):
        g.tensors.append(
            dataclasses.replace(v, name=name, assignable=False, roots=set(v.roots), uses=0)
        )
        g.assign(old, f"{old.name} + {name}", g.new_root())
        g.body(2)


# --- control flow ---------------------------------------------------------------------------------


def _shallow(g: Writer) -> None:
    if len(g.blocks) > 3 or g.budget < 2:
        raise Impossible


@_statement("control", 2)
def _if(g: Writer) -> None:
    _shallow(g)
    g.fresh(f"{g.pick().name}.mean()", ())
    with g.block(f"if {g.condition()}:"):
        g.body(3)
    if g.chance(0.5):
        with g.block("else:"):
            g.body(2)


@_statement("control")
def _if_defines(g: Writer) -> None:
    """Both branches give a name its value: perhaps new memory, perhaps that of another value."""
    _shallow(g)
    like = g.pick()
    sources = [g.pick(like.shape) if like in g.tensors else like for _ in range(2)]
    texts = [v.name if g.chance(0.6) else f"{v.name} * {g.number()}" for v in sources]
    name = g.new_name("v")
    g.emit(f"if {g.condition()}:")
    g.statements[-1] = Statement(g.statements[-1].text, (Statement(f"{name} = {texts[0]}"),))
    g.statements.append(Statement("else:", (Statement(f"{name} = {texts[1]}"),)))
    g.tensors.append(
        Value(
            name,
            like.shape,
            "float",
            sources[0].roots | sources[1].roots | g.new_root(),
            all(v.writable for v in sources),
            all(v.contiguous for v in sources),
            assignable=True,
        )
    )


def _maybe_leave(g: Writer) -> None:
    """A way out of the loop, or out of the program."""
    if g.chance(0.5):
        ways = ("break", "continue") if g.task_runs else ("break", "continue", "return")
        text = g.random.choice(ways)
        if text == "return":
            text = f"return {g.results()}"
        g.statements.append(Statement(f"if {g.condition()}:", (Statement(text),)))


@_statement("control")
def _for(g: Writer) -> None:
    _shallow(g)
    g.fresh(f"{g.pick().name}.mean()", ())
    name = g.new_name("i")
    count = g.random.choice(("3", "2", f"{g.random.choice(g.ints)} % 4"))
    with g.block(f"for {name} in range({count}):", loop=True):
        g.ints.append(name)
        g.body(2)
        _maybe_leave(g)
        g.body(2)


@_statement("control")
def _while(g: Writer) -> None:
    _shallow(g)
    g.fresh(f"{g.pick().name}.mean()", ())
    name = g.new_name("c")
    g.emit(f"{name} = 0")
    with g.block(f"while {name} < 3 and {g.condition()}:", loop=True):
        g.statements.append(Statement(f"{name} += 1"))
        g.ints.append(name)
        g.body(2)
        _maybe_leave(g)
        g.body(1)


@_statement("control")
def _for_each(g: Writer) -> None:
    _shallow(g)
    source = g.some_list(changes=True)
    name = g.new_name("e")
    source.frozen = True
    with g.block(f"for {name} in {source.name}:", loop=True):
        g.tensors.append(
            Value(name, source.shape, "float", source.roots, source.writable, source.contiguous)
        )
        g.body(2)
        _maybe_leave(g)
    source.frozen = False


@_statement("control", 0.5)
def _early_return(g: Writer) -> None:
    g.require_no_task()
    g.emit(f"if {g.condition()}:")
    g.statements[-1] = Statement(g.statements[-1].text, (Statement(f"return {g.results()}"),))


# --- what leaves a trace --------------------------------------------------------------------------


@_statement("random", 2)
def _draw(g: Writer) -> None:
    v = g.pick()
    text = g.random.choice(
        (
            f"torch.rand_like({v.name})",
            f"torch.randn({list(v.shape)})",
            f"torch.dropout({v.name}, 0.5, True)",
            f"F.dropout({v.name}, 0.5, self.training)",
            f"torch.dropout({v.name}, 0.5, flag)",
            f"torch.bernoulli(torch.sigmoid(torch.nan_to_num({v.name})))",
            f"torch.normal({v.name}, 1.0)",
            f"torch.rrelu({v.name}, 0.1, 0.3, True)",
            f"torch.empty_like({v.name}).uniform_()",
            f"{v.name} + float(torch.rand([1]).mean())",
        )
    )
    g.fresh(text, v.shape)


@_statement("random")
def _draw_in_place(g: Writer) -> None:
    v = g.pick(writable=True)
    op = g.random.choice(("normal_()", "uniform_()", "bernoulli_(0.5)", "exponential_()"))
    g.emit(f"{v.name}.{op}")
    v.uses = 0


@_statement("random")
def _draw_integers(g: Writer) -> None:
    text = g.random.choice((f"torch.randperm({g.rows})", f"torch.randint(0, 9, [{g.rows}])"))
    g.fresh(text, (g.rows,), "int")


@_statement("random", 0.5)
def _generator(g: Writer) -> None:
    v = g.pick()
    name = g.new_name("g")
    g.emit(f"{name} = torch.Generator()")
    g.emit(f"{name}.manual_seed({g.random.randrange(9)})")
    g.fresh(f"torch.rand({list(v.shape)}, generator={name})", v.shape)
    g.fresh(f"torch.empty({list(v.shape)}).normal_(generator={name})", v.shape)


@_statement("seeds")
def _seed(g: Writer) -> None:
    g.emit(f"torch.manual_seed({g.random.randrange(9)})")
    v = g.pick()
    g.fresh(f"torch.rand_like({v.name})", v.shape)


def _norm_of(g: Writer, v: Value) -> str:
    return g.random.choice(
        (
            f"self.norm({v.name})",
            f"torch.batch_norm({v.name}, None, None, self.mean, self.var, True, 0.1, 1e-5, False)",
            f"torch.batch_norm({v.name}, None, None, self.mean, self.var, flag, 0.1, 1e-5, False)",
            f"torch.instance_norm({v.name}.unsqueeze(0).transpose(1, 2), None, None, "
            "self.mean, self.var, True, 0.1, 1e-5, False)[0].t()",
        )
    )


def _read_norm(g: Writer, norm: Value) -> None:
    """TorchScript drops a norm that nobody reads, and its statistics, in some calls only."""
    norm.contiguous = False
    if len(g.blocks) > 1:
        g.emit(f"self.b.add_({norm.name}.mean())")
    else:
        g.kept.append(g.new_name("v"))
        g.emit(f"{g.kept[-1]} = {norm.name}.mean()", f"{g.kept[-1]} = torch.ones([])")


@_statement("statistics", 2)
def _norm(g: Writer) -> None:
    v = g.pick((g.rows, g.columns))
    _read_norm(g, g.fresh(_norm_of(g, v), v.shape))


@_statement("statistics")
def _norm_in_a_branch(g: Writer) -> None:
    _shallow(g)
    v = g.pick((g.rows, g.columns))
    norm = g.define(f"{v.name} * 1.0", Value("", v.shape, roots=g.new_root()))
    with g.block(f"if {g.condition()}:"):
        g.assign(norm, _norm_of(g, v), g.new_root())
        g.emit(f"{norm.name}.mul_(0.5)")
    _read_norm(g, norm)


@_statement("statistics", 2)
def _read_statistics(g: Writer) -> None:
    text = g.random.choice(
        ("self.mean * 2.0", "self.var.sum()", "self.norm.running_mean * 1.0", "self.mean.clone()")
    )
    g.fresh(text, () if "sum" in text else (g.columns,))


@_statement("attributes")
def _set_last(g: Writer) -> None:
    v = g.pick((g.rows, g.columns), writable=True, contiguous=not g.metadata)
    last = g.tensors[2]
    g.assign(last, v.name, v.roots)
    last.uses = 1


@_statement("attributes")
def _read_attribute(g: Writer) -> None:
    text = g.random.choice(("self.last", "self.p", "self.b"))
    v = next(v for v in g.tensors if v.name == text)
    if g.chance(0.5):
        g.alias(v, text)
    else:
        g.fresh(f"{text}.sum()", ())


@_statement("attributes")
def _count(g: Writer) -> None:
    g.emit(f"self.count = (self.count + {g.random.choice(g.ints)}) % 11")
    if g.chance(0.5):
        g.new_int("self.count")


@_statement("prints", 2)
def _print(g: Writer) -> None:
    choice = g.random.randrange(4)
    if choice == 0:
        g.emit(f'print("here", {g.names})')
    elif choice == 1:
        g.emit(f"print({g.random.choice(g.ints)})")
    elif choice == 2:
        g.emit(f'print(f"{{{g.random.choice(g.ints)}}} and {{{g.random.choice(g.bools)}}}")')
    else:
        g.emit(f"print({g.pick().name}.sum())")


@_statement("raises")
def _assert(g: Writer) -> None:
    g.require_no_task()
    limit = g.random.choice(("4.0", "100.0", "1000.0"))
    condition = g.random.choice((f"bool({g.pick().name}.sum() < {limit})", "n < 4", "n < 9"))
    g.emit(f'assert {condition}, "{ON_PURPOSE} {g.names}"')


@_statement("raises")
def _raise(g: Writer) -> None:
    g.require_no_task()
    error = g.random.choice(("ValueError", "RuntimeError"))
    condition = f"bool({g.pick().name}.sum() > {g.random.choice(('5.0', '100.0'))})"
    g.emit(f"if {condition}:")
    g.statements[-1] = Statement(
        g.statements[-1].text, (Statement(f'raise {error}("{ON_PURPOSE} {g.names}")'),)
    )


@_statement("raises")
def _checked(g: Writer) -> None:
    g.require_no_task()
    v = g.pick()
    g.fresh(f"checked({v.name}, {g.random.choice(('5.0', '100.0'))})", v.shape)


@_statement("visible", 2, GRAPH_GROUPS)
def _show(g: Writer) -> None:
    v = g.pick()
    if g.chance(0.5):
        g.alias(v, f"torch.ops.torch_ext_fuzz.show({v.name})")
    else:
        g.emit(f"torch.ops.torch_ext_fuzz.show({v.name})")


@_statement("visible", 2, GRAPH_GROUPS)
def _assert_tensor(g: Writer) -> None:
    limit = g.random.choice(("4.0", "100.0", "1000.0"))
    g.emit(f'torch._assert_async({g.pick().name}.sum() < {limit}, "{ON_PURPOSE} {g.names}")')


@_statement("branches", 2, GRAPH_GROUPS)
def _branch(g: Writer) -> None:
    v = g.pick(writable=True)
    first, second = g.random.choices(("halved_copy", "raised_at_random", "bumped_copy"), k=2)
    condition = f"{v.name}.sum() > {g.number()}"
    g.fresh(f"torch.ops.higher_order.cond({condition}, {first}, {second}, ({v.name},))[0]", v.shape)


@_statement("branches", 1, GRAPH_GROUPS)
def _map(g: Writer) -> None:
    v = g.matrix()
    g.fresh(f"torch.ops.higher_order.map_impl(halved_copy, [{v.name}], [])[0]", v.shape)


# --- calls ----------------------------------------------------------------------------------------


@_statement("calls")
def _bumped(g: Writer) -> None:
    v = g.pick(writable=True)
    g.alias(v, f"bumped({v.name})")


@_statement("calls")
def _first_large(g: Writer) -> None:
    v = g.pick()
    w = g.pick(v.shape, writable=True) if v in g.tensors else v
    if not v.writable or not w.writable:
        raise Impossible
    g.define(
        f"first_large({v.name}, {w.name})",
        Value("", v.shape, "float", v.roots | w.roots, True, v.contiguous and w.contiguous),
    )


@_statement("calls")
def _counting(g: Writer) -> None:
    v = g.pick()
    g.fresh(f"self.counting({v.name})", v.shape)


@_statement("not_inlined")
def _step(g: Writer) -> None:
    if g.autocasts:
        raise Impossible  # torch refuses such calls there
    v = g.pick(writable=True)
    g.alias(v, f"self.step({v.name})")
    if g.chance(0.3):
        g.new_int("self.counting.calls")


@_statement("not_inlined", 0.5)
def _outside(g: Writer) -> None:
    v = g.pick(writable=True)
    g.fresh(f"outside({v.name})", v.shape)


@_statement("not_inlined")
def _box(g: Writer) -> None:
    v = g.pick(writable=True)
    name = g.new_name("box")
    g.emit(f"{name} = Box({v.name})")
    g.alias(v, f"{name}.get()")
    g.emit(f"{name}.bump()")
    if v in g.tensors:
        w = g.pick(v.shape)
        g.emit(f"{name}.put({w.name})")
        g.alias(w, f"{name}.get()")
    g.new_int(f"{name}.reads")


@_statement("custom", 2)
def _custom(g: Writer) -> None:
    op = g.random.choice(("halve", "bump_", "sneak", "draw"))
    v = g.pick(writable=op in ("bump_", "sneak"))
    text = f"torch.ops.torch_ext_fuzz.{op}({v.name})"
    if op == "bump_":
        g.alias(v, text)
    else:
        g.fresh(text, v.shape)


def _wait(g: Writer, future: str, shape: Shape) -> None:
    result = Value(g.new_name("v"), shape, roots=g.new_root(), contiguous=False, assignable=True)
    wait = Statement(f"{result.name} = torch.jit.wait({future})", simplest=simplest_line(result))
    if g.chance(0.5):
        g.statements.append(wait)
    else:
        write = Statement(f"{result.name}.mul_(0.5)")
        g.statements.append(Statement(f"if {g.condition()}:", (wait, write)))
        g.statements.append(Statement("else:", (wait,)))
    g.tensors.append(result)


@_statement("tasks")
def _task_that_reads(g: Writer) -> None:
    """Nobody writes beside it to what it reads."""
    if g.loops:
        raise Impossible
    g.require_no_task()
    v = g.pick()
    future = g.new_name("f")
    g.emit(f"{future} = torch.jit.fork(waves, {v.name})")
    g.task_runs, g.locked = True, set(v.roots)
    g.body(2)
    g.task_runs, g.locked = False, set()
    _wait(g, future, v.shape)
    if v.writable:
        g.emit(f"{v.name}.mul_(0.5)")


@_statement("tasks")
def _task_that_writes(g: Writer) -> None:
    """Nobody touches beside it what it writes."""
    if g.loops:
        raise Impossible
    g.require_no_task()
    v = g.pick()
    future, private = g.new_name("f"), g.new_name("v")
    value = Value(private, v.shape, roots=g.new_root(), assignable=True)
    g.emit(f"{private} = {v.name} * 1.0", simplest_line(value))
    g.emit(f"{future} = torch.jit.fork(damped, {private})")
    g.task_runs = True
    g.body(2)
    g.task_runs = False
    _wait(g, future, ())
    g.tensors.append(value)


@_statement("contexts", 0.5)
def _no_grad(g: Writer) -> None:
    _shallow(g)
    with g.block("with torch.no_grad():"):
        g.body(3)


@_statement("contexts")
def _autocast(g: Writer) -> None:
    """Regions may be inside each other; each has something to round."""
    _shallow(g)
    v = g.pick((g.rows, g.columns))
    with g.autocast(enabled=g.chance(0.7)):
        g.fresh(f"{v.name} @ self.weight", (g.rows, g.columns))
        g.body(3)

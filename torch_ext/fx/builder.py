"""New nodes in a graph of torch.fx, with types where the nodes around them have types."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def fake_mode_of(nodes: Iterable[fx.Node]) -> FakeTensorMode | None:
    """In which the graph was captured; some graphs were captured in several, or in none."""
    values = (node.meta.get("val") for node in nodes)
    return next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)


class Builder:
    """Adds calls to a graph, at its insertion point."""

    def __init__(self, graph: fx.Graph, fake_mode: FakeTensorMode | None) -> None:
        self.graph = graph
        self.fake_mode = fake_mode
        self.types: dict[Any, Any] = {}  # of equal calls: a stretch has many

    def call(
        self,
        target: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """Return the new node, which comes from where `like` does."""
        made = self.graph.call_function(target, tuple(args), dict(kwargs or {}))
        if like is not None:
            made.meta = {key: value for key, value in like.meta.items() if key != "val"}
        if self.fake_mode is not None:
            value = self._type(target, args, kwargs or {})
            if value is not None:
                made.meta["val"] = value
        return made

    def _type(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        nodes: list[fx.Node] = []
        fx.node.map_arg((args, kwargs), nodes.append)
        values = [node.meta.get("val") for node in nodes]
        if not all(self._is_known(value) for value in values):
            return None
        looks = [_look(value) for value in values]
        plain = fx.node.map_arg((args, kwargs), lambda node: f"%{nodes.index(node)}")
        key = target, repr(plain), repr(looks)
        if key not in self.types:
            assert self.fake_mode is not None
            called = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
            with self.fake_mode:
                self.types[key] = target(*called[0], **called[1])
        return self.types[key]

    def _is_known(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(self._is_known, value))
        return isinstance(value, FakeTensor) and value.fake_mode is self.fake_mode


def _look(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_look, value))
    return tuple(value.shape), value.stride(), value.dtype

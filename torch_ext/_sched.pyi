from typing import Any

built_for_torch: str

class GraphBuilder:
    def __init__(self) -> None: ...
    def add_buffer(
        self, name: str, size_bytes: int, *, input: bool = ..., kept: bool = ...
    ) -> None: ...
    def add_op(
        self,
        name: str,
        *,
        reads: list[str] = ...,
        writes: list[str] = ...,
        workspace_bytes: int = ...,
        after: list[str] = ...,
    ) -> None: ...
    def to_text(self) -> str: ...

def parse_text(text: str, file: str) -> GraphBuilder: ...
def plan(
    builder: GraphBuilder,
    time_budget: float,
    memory_budget: int | None,
    scope: str,
    without: list[str],
) -> dict[str, Any]: ...
def simulate(builder: GraphBuilder, order: list[str]) -> list[dict[str, Any]]: ...
def region_tree(builder: GraphBuilder) -> tuple[list[str], list[dict[str, Any]]]: ...

from typing import Any

built_for_torch: str

class MemoryMeter:
    def __init__(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def live_bytes(self) -> int: ...

def optimize(
    module: Any,
    examples: list[tuple[Any, ...]],
    time_budget: float,
    memory_budget: int | None,
    scope: str,
    verify: bool,
) -> tuple[Any, bool, bool, dict[str, Any]]: ...
def analyze(
    module: Any, examples: list[tuple[Any, ...]], time_budget: float, scope: str
) -> tuple[dict[str, Any], str, str]: ...
def shuffle(module: Any, seed: int, without: list[str]) -> Any: ...
def compare(
    a: Any, b: Any, examples: list[tuple[Any, ...]]
) -> tuple[str, list[int], list[int]]: ...

"""A function of Python as an op of a graph: it says what no schema says of it."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Writing:
    """Writes to its first arguments, `written` of them; makes nothing, and keeps nothing of them.

    Of the memory that a graph holds it touches what it is given, and nothing else.
    """

    name: str
    function: Callable[..., None]
    written: int
    draws_random_numbers: bool

    @property
    def __name__(self) -> str:
        """What torch.fx calls a node after."""
        return self.name

    def __call__(self, *arguments: object) -> None:
        """Call the function."""
        self.function(*arguments)

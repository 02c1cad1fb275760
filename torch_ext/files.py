"""Reading models and writing results so that nothing is ever half-written."""

import contextlib
import os
import pathlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class UnreadableInputError(Exception):
    """An input file that cannot be used; the message names the file and the remedy."""


class UnwritableOutputError(Exception):
    """An output that cannot be written; the message names the file."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary file beside `path` to write to; it replaces `path` if the block succeeds.

    Raises UnwritableOutputError if it cannot be written; `path` is then as it was.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UnwritableOutputError(f"{path}: cannot write: {error.strerror}") from None
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner can read; give it the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise UnwritableOutputError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_model(path: pathlib.Path) -> "tuple[torch.jit.ScriptModule, dict[str, bytes]]":
    """Load a TorchScript file and its extra files. Raises UnreadableInputError.

    A TorchScript file is a program: load only files whose source you trust.
    """
    import torch

    if not path.is_file():
        raise UnreadableInputError(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise UnreadableInputError(
            f"{path}: not a TorchScript file, or a truncated one; save it with torch.jit.save"
        ) from None
    if not any("/code/" in name for name in names):
        raise UnreadableInputError(
            f"{path}: holds no TorchScript code (weights only?); save the traced or scripted "
            "module with torch.jit.save"
        )
    extra = {name.split("/extra/", 1)[1]: b"" for name in names if "/extra/" in name}
    try:
        with without_jit_warnings():
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                path, map_location="cpu", _extra_files=extra
            )
            return module, extra
    except (RuntimeError, ValueError, EOFError) as error:
        raise UnreadableInputError(f"{path}: torch cannot load it: {first_line(error)}") from None


def save_model(
    module: "torch.jit.ScriptModule", path: pathlib.Path, extra_files: dict[str, bytes]
) -> None:
    """Save a TorchScript file, whole or not at all. Raises UnwritableOutputError."""
    import torch

    # Through a Python file: torch's own writer ends the process when the disk is full.
    with replacing(path) as temporary, without_jit_warnings(), temporary.open("wb") as file:
        torch.jit.save(module, file, _extra_files=extra_files)


def first_line(error: BaseException) -> str:
    """The sentence of an error message, without the stack that torch puts behind it."""
    return next(iter(_lines(error)), type(error).__name__)


def innermost_error(error: BaseException) -> str:
    """The sentence of the error in a program that torch ran: the last one that it tells."""
    told = [line for line in _lines(error) if re.match(r"[A-Za-z.]*(Error|Exception): ", line)]
    return told[-1] if told else first_line(error)


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


@contextlib.contextmanager
def without_jit_warnings() -> Iterator[None]:
    """Without what torch says about TorchScript to whoever uses it."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=kind)
        yield

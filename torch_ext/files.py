"""Reading models and writing results so that nothing is ever half-written."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import os
import re
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, Self

from torch_ext.arguments import FilePath, file_path, text

if TYPE_CHECKING:
    import torch

_PERMISSIONS = 0o777
_DESCRIPTORS = re.compile(r"/proc/(?P<process>\d+)(/task/\d+)?/fd")

_unfinished: set[str] = set()  # temporary files that are being written


class UnreadableInputError(Exception):
    """An input file that cannot be used; the message names the file and the remedy."""


class UnwritableOutputError(Exception):
    """An output that cannot be written; the message names the file."""


class UnusableOutputError(UnwritableOutputError, ValueError):
    """An output that should not be asked for; the message names the file."""


# --- outputs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a result goes: to a file, which is replaced, or into what is there, as a pipe."""

    name: str  # as the caller wrote it
    target: str | int  # where links lead, or an open descriptor, which is what /dev/stdout means
    status: os.stat_result | None  # of what is there

    @classmethod
    def at(cls, path: FilePath, what: str = "path") -> Self:
        """Look at a path. Raises ValueError, or UnwritableOutputError if it cannot be looked at."""
        name = file_path(path, what)
        with _naming(name):
            try:
                status = os.stat(name)
            except (FileNotFoundError, NotADirectoryError):
                return cls(name, _followed(name), None)
            target = _followed(name)
            if isinstance(target, str) and not stat.S_ISREG(status.st_mode):
                target = name  # links in /proc lead to what has no path
            return cls(name, target, status)

    @property
    def is_replaced(self) -> bool:
        """Is it a file, or will it be one?"""
        is_file = self.status is None or stat.S_ISREG(self.status.st_mode)
        return is_file and isinstance(self.target, str)

    def require_writable(self) -> None:
        """Raise UnwritableOutputError, as far as that can be told before something is written."""
        mode = 0 if self.status is None else self.status.st_mode
        if stat.S_ISDIR(mode):
            raise UnusableOutputError(f"{self.name}: cannot write: it is a folder")
        if os.path.basename(str(self.target)) in ("", ".", ".."):
            raise UnusableOutputError(f"{self.name}: cannot write: it names a folder")
        if stat.S_ISBLK(mode):
            raise UnusableOutputError(f"{self.name}: cannot write: it is a disk")
        with _naming(self.name):
            obstacle = self._obstacle(mode)
        if obstacle:
            raise UnwritableOutputError(f"{self.name}: cannot write: {obstacle}")

    def _obstacle(self, mode: int) -> str:
        if isinstance(self.target, int):
            flags = fcntl.fcntl(self.target, fcntl.F_GETFL)
            return "it is open for reading only" if flags & os.O_ACCMODE == os.O_RDONLY else ""
        if not self.is_replaced:
            if stat.S_ISSOCK(mode):
                return "it is a socket"
            return "" if os.access(self.target, os.W_OK) else "no permission"
        folder = os.path.dirname(self.target)
        if not os.path.isdir(folder):
            return f"there is no folder {folder}"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"no permission for {folder}"
        if _is_mounted(self.target):
            return "it is mounted there, so it cannot be replaced"
        return "it belongs to somebody else" if self._is_protected(os.stat(folder)) else ""

    def _is_protected(self, folder: os.stat_result) -> bool:
        """In a folder like /tmp nobody else may replace it."""
        if self.status is None or not folder.st_mode & stat.S_ISVTX:
            return False
        return os.geteuid() not in (0, self.status.st_uid, folder.st_uid)

    def is_same(self, other: Self) -> bool:
        """Are they one file, by whatever paths? Both must be writable."""
        if self.status is not None and other.status is not None:
            return os.path.samestat(self.status, other.status)
        if self.status is not None or other.status is not None:
            return False
        folder, name = os.path.split(str(self.target))
        other_folder, other_name = os.path.split(str(other.target))
        with _naming(self.name):
            return (
                name.casefold() == other_name.casefold()
                and os.path.samefile(folder, other_folder)
                and (name == other_name or _ignores_case(folder))
            )

    def overwrites(self, path: FilePath) -> bool:
        """Would it take the place of this file, which is an input?"""
        try:
            status = os.stat(path)
        except OSError:
            return False  # reading it will tell
        is_file = stat.S_ISREG(status.st_mode)
        return is_file and self.status is not None and os.path.samestat(self.status, status)


def check_outputs(outputs: Mapping[str, FilePath | None], source: FilePath, force: bool) -> None:
    """Complain before the work, not after it: about outputs by their options, None if not given.

    Each needs a place of its own, and only with `force` may one be the input `source`. Raises
    ValueError or UnwritableOutputError.
    """
    found = {
        option: Output.at(path, option) for option, path in outputs.items() if path is not None
    }
    for output in found.values():
        output.require_writable()
    for (option, output), (other_option, other) in itertools.combinations(found.items(), 2):
        if (output.is_replaced or other.is_replaced) and output.is_same(other):
            raise UnusableOutputError(
                f"{other.name}: {option} and {other_option} are one file; give each its own"
            )
    for option, output in found.items():
        if not force and output.overwrites(source):
            raise UnusableOutputError(
                f"{output.name}: {option} would overwrite the input {source}; give another path, "
                "or --force"
            )


@contextlib.contextmanager
def writing(path: FilePath) -> Iterator[BinaryIO]:
    """Give a file to write to, which is at `path` if the block succeeds.

    A file that was there is replaced, and has the same permissions then; if the block fails it is
    as it was. What is no file, as a pipe or a device, is written to at once. Raises ValueError for
    what can be no path of a file, and UnwritableOutputError.
    """
    output = Output.at(path)
    output.require_writable()
    opened = _replacing(output) if output.is_replaced else _opened(output.target)
    with _naming(output.name), opened as file:
        yield file


@contextlib.contextmanager
def _replacing(output: Output) -> Iterator[BinaryIO]:
    before = output.status
    mode = 0o666 if before is None else before.st_mode & _PERMISSIONS
    target = str(output.target)
    # Its own short name: that of the file may be as long as names can be.
    temporary = os.path.join(os.path.dirname(target), f".torch_ext-{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    _unfinished.add(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if before is not None:
                _keep(before, descriptor)
        os.replace(temporary, target)
    finally:
        _discard(temporary)


def _keep(before: os.stat_result, descriptor: int) -> None:
    """Owner and permissions, where that is allowed."""
    with contextlib.suppress(OSError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, before.st_mode & _PERMISSIONS)


@contextlib.contextmanager
def _opened(target: str | int) -> Iterator[BinaryIO]:
    if isinstance(target, int):
        descriptor = os.dup(target)
    else:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:  # else it would wait, perhaps for ever
                raise OSError(error.errno, "nobody reads from it; start its reader first") from None
            raise
        os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        yield file


def discard_unfinished() -> None:
    """Remove what other threads have not written to its end; for a process that ends now."""
    for temporary in tuple(_unfinished):
        _discard(temporary)


def _discard(temporary: str) -> None:
    with contextlib.suppress(OSError):  # there is none any more if it has become the file
        os.unlink(temporary)
    _unfinished.discard(temporary)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which output the system complains."""
    try:
        yield
    except OSError as error:
        raise UnwritableOutputError(f"{name}: cannot write: {error.strerror or error}") from None


def _followed(path: str) -> str | int:
    """The path without links, or the open descriptor of this process that it stands for."""
    while True:
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        descriptors = _DESCRIPTORS.fullmatch(folder)
        if descriptors and int(descriptors["process"]) == os.getpid() and name.isdigit():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))


def _is_mounted(path: str) -> bool:
    """Is a file of its own mounted there, as containers do it? os.path.ismount compares devices,
    of which one file system may have several.
    """
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
            points = [line.split()[4] for line in mounts]
    except OSError:
        return False
    escaped = re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", path)
    return escaped in points


def _ignores_case(folder: str) -> bool:
    """Does its file system take names for one that differ in case only?"""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="x") as probe:
        name = os.path.basename(probe.name)
        return os.path.exists(os.path.join(folder, name.swapcase()))


def write_text(path: FilePath, content: str) -> None:
    """Write a text file, whole or not at all, as `writing` does and with its errors."""
    with writing(path) as file:
        file.write(content.encode("utf-8", "backslashreplace"))


def save_model(
    module: "torch.jit.ScriptModule", path: FilePath, extra_files: dict[str, bytes]
) -> None:
    """Save a TorchScript file, whole or not at all, as `writing` does and with its errors."""
    import torch

    # Through a Python file: torch's own writer ends the process when the disk is full.
    with writing(path) as file, without_jit_warnings():
        torch.jit.save(module, file, _extra_files=extra_files)


# --- inputs ---------------------------------------------------------------------------------------


def load_model(path: FilePath) -> "tuple[torch.jit.ScriptModule, dict[str, bytes]]":
    """Load a TorchScript file and its extra files. Raises UnreadableInputError or ValueError.

    A TorchScript file is a program: load only files whose source you trust.
    """
    import torch

    path = text(file_path(path, "the path of a model"), "the path of a model")
    if not os.path.isfile(path):
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

"""Where results are written to: files whole or not at all, links and pipes as they are."""

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import zipfile

import pytest
import torch
from models import traced_wide, wide_input
from torch import nn

import torch_ext
from torch_ext import files
from torch_ext.files import (
    Output,
    UnwritableOutputError,
    check_outputs,
    save_model,
    write_text,
    writing,
)


@pytest.fixture(scope="module")
def report():
    return torch_ext.analyze(traced_wide(), (wide_input(),))


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(3, 4), torch.tensor([0, 1, 0])
    with torch.enable_grad():
        return torch_ext.training_step(
            model, nn.functional.cross_entropy, optimizer, batch, runtime="torchscript"
        )


@pytest.fixture(params=["text", "model", "page", "step"])
def write(request):
    """All that writes files: a function of a path."""
    if request.param == "text":
        return lambda path: write_text(path, "text\n")
    if request.param == "model":
        module = traced_wide()
        return lambda path: save_model(module, path, {})
    if request.param == "page":
        return request.getfixturevalue("report").save_html
    return request.getfixturevalue("step").save


@contextlib.contextmanager
def reading(pipe):
    """What comes out of a named pipe, once the block has ended."""
    found = []
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # there before the writer comes
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 2**20)  # room for all that is written
    yield found
    with open(descriptor, "rb") as file:
        found.append(file.read())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- pipes, sockets, devices, descriptors --------------------------------------------------------


def test_a_pipe_is_written_to_and_stays_one(write, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with reading(pipe) as found:
        write(pipe)
    [content] = found
    is_model = zipfile.is_zipfile(io.BytesIO(content))
    assert is_model or content.rstrip().endswith((b"text", b"</html>"))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_link_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with reading(tmp_path / "pipe") as found:
        write_text(tmp_path / "link", "text")
    assert found == [b"text"]
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_that_nobody_reads(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnwritableOutputError, match="start its reader first"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_pipe_that_nobody_reads_any_more(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(UnwritableOutputError, match="cannot write: Broken pipe"):
        write_text(f"/dev/fd/{write_end}", "text")
    os.close(write_end)


def test_open_descriptors_are_written_to_where_they_are(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"before\n")
        file.flush()
        for name in ("/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd"):
            write_text(f"{name}/{file.fileno()}", f"{name}\n".replace(str(os.getpid()), "N"))
        file.write(b"after\n")
    assert path.read_text() == "before\n/dev/fd\n/proc/self/fd\n/proc/N/fd\nafter\n"


def test_descriptors_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("as it was")
    with (tmp_path / "file").open("rb") as file:
        name = f"/dev/fd/{file.fileno()}"
        with pytest.raises(UnwritableOutputError, match="open for reading only"):
            write_text(name, "text")
    with pytest.raises(UnwritableOutputError, match="Bad file descriptor"):
        write_text(name, "text")
    assert (tmp_path / "file").read_text() == "as it was"


def test_a_socket_is_refused_and_stays(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(UnwritableOutputError, match="it is a socket"):
            write(tmp_path / "socket")
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


def test_a_device_would_not_be_replaced():
    for path in ("/dev/null", "/dev/../dev/null"):
        output = Output.at(path)
        output.require_writable()
        assert not output.is_replaced


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_lead_to_is_replaced(write, exists, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "target"
    if exists:
        target.write_text("as it was")
    (tmp_path / "first").symlink_to("folder/second")
    (folder / "second").symlink_to("../third")
    (tmp_path / "third").symlink_to(target)
    write(tmp_path / "first")
    assert all(p.is_symlink() for p in (tmp_path / "first", folder / "second", tmp_path / "third"))
    assert target.is_file()
    assert not target.is_symlink()
    assert target.read_bytes() != b"as it was"
    assert names(folder) == ["second", "target"]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UnwritableOutputError, match="Too many levels"):
        write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("leads_to", ["nowhere/file", "new/", "."])
def test_links_that_lead_to_no_place_for_a_file(leads_to, tmp_path):
    (tmp_path / "link").symlink_to(leads_to)
    with pytest.raises(UnwritableOutputError, match=r"link: cannot write: .* folder"):
        write_text(tmp_path / "link", "text")
    assert names(tmp_path) == ["link"]


def test_another_name_of_a_file_keeps_what_it_has(tmp_path):
    (tmp_path / "a").write_text("as it was")
    os.link(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "b").read_text() == "as it was"


# --- permissions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o444, 0o755, 0o606, 0o000])
def test_a_file_keeps_its_permissions(write, mode, tmp_path):
    path = tmp_path / "file"
    path.write_text("as it was")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    assert path.read_bytes() != b"as it was"


def test_permissions_that_cannot_be_kept_are_no_failure(tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "file"
    path.write_text("as it was")
    path.chmod(0o666)
    monkeypatch.setattr(os, "fchmod", refuses)
    monkeypatch.setattr(os, "fchown", refuses)
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_where_only_owners_may_replace_theirs(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("as it was")
    os.chown(path, 1, 1)
    os.chown(tmp_path, 2, 2)
    monkeypatch.setattr(os, "geteuid", lambda: 3)
    tmp_path.chmod(0o777)
    Output.at(path).require_writable()
    tmp_path.chmod(0o1777)
    with pytest.raises(UnwritableOutputError, match="belongs to somebody else"):
        Output.at(path).require_writable()


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "folder", "folder/", "new/", ".", "new/..", "file/", "/"])
def test_paths_of_folders_are_value_errors(path, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("as it was")
    with pytest.raises(ValueError, match="path is empty" if path == "" else "folder"):
        write(path)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("path", [b"file", 3, None, ["file"], "a\0b", "\ud800"])
def test_what_is_no_path_is_a_value_error(path, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path") as caught:
        write(path)
    assert len(str(caught.value).splitlines()) == 1
    assert names(tmp_path) == []


class OwnPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, pathlib.Path, OwnPath])
def test_paths_of_all_kinds(kind, write, tmp_path):
    write(kind(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_size > 0


def test_a_name_as_long_as_names_can_be(write, tmp_path):
    longest = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write(tmp_path / longest)
    assert names(tmp_path) == [longest]
    with pytest.raises(UnwritableOutputError, match="File name too long"):
        write(tmp_path / f"{longest}n")
    assert names(tmp_path) == [longest]


@pytest.mark.parametrize("name", ["\u65e5\u672c.txt", "new\nline", "b\udcffd", " ", "-", "..."])
def test_odd_names(name, tmp_path):
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


# --- failures ------------------------------------------------------------------------------------


def write_half(path, then):
    with writing(path) as file:
        file.write(b"half of it")
        file.flush()
        then()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failure_in_the_middle_leaves_what_was_there(number, tmp_path):
    def fails():
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_text("as it was")
    with pytest.raises(UnwritableOutputError, match=f"file: cannot write: {os.strerror(number)}"):
        write_half(path, fails)
    with pytest.raises(ZeroDivisionError):
        write_half(path, lambda: 1 / 0)
    assert path.read_text() == "as it was"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_vanishes_in_between(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UnwritableOutputError, match="file: cannot write: No such file"):
        write_half(folder / "file", lambda: shutil.rmtree(folder))
    with pytest.raises(UnwritableOutputError, match="there is no folder"):
        write_text(folder / "file", "text")


def test_what_is_unfinished_can_be_removed(tmp_path):
    def ends():
        assert len(names(tmp_path)) == 2
        files.discard_unfinished()
        assert names(tmp_path) == ["file"]

    path = tmp_path / "file"
    path.write_text("as it was")
    with pytest.raises(UnwritableOutputError):
        write_half(path, ends)
    assert path.read_text() == "as it was"


MOUNTED = """
import os, sys
from torch_ext.files import UnwritableOutputError, write_text
try:
    write_text("on this", "text")
except UnwritableOutputError as error:
    print(error)
write_text("other", "text")
"""


def test_a_file_that_is_mounted_cannot_be_replaced(tmp_path):
    for name in ("host", "on this"):
        (tmp_path / name).write_text("as it was")
    script = 'mount --bind host \'on this\' && exec "$0" -c "$1"'
    command = ("unshare", "--mount", "--map-root-user", "sh", "-c", script, sys.executable, MOUNTED)
    root = str(pathlib.Path(torch_ext.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    try:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "unshare" in result.stderr or "mount:" in result.stderr:
        pytest.skip("mounting is not allowed here")
    assert "on this: cannot write: it is mounted there" in result.stdout, result.stderr
    assert (tmp_path / "host").read_text() == "as it was"
    assert (tmp_path / "other").read_text() == "text"


# --- several outputs, and the input --------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An input in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input"
    path.write_text("as it was")
    return path


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "other", ["out", "./out", "folder/../out", "link", "linked/out", "{}/out", "{}/linked/link"]
)
def test_two_outputs_in_one_file_are_refused(other, exists, source, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to(".")
    (tmp_path / "link").symlink_to("out")
    if exists:
        (tmp_path / "out").write_text("as it was")
    before = names(tmp_path)
    with pytest.raises(ValueError, match="-o and --csv are one file; give each its own"):
        check_outputs({"-o": "out", "--html": None, "--csv": other.format(tmp_path)}, source, False)
    check_outputs({"-o": "out", "--csv": "folder/out"}, source, False)
    assert names(tmp_path) == before


def test_two_names_of_one_file_are_refused(source, tmp_path):
    (tmp_path / "a").write_text("as it was")
    os.link("a", "b")
    with pytest.raises(ValueError, match="are one file"):
        check_outputs({"-o": "a", "--csv": "b"}, source, True)


@pytest.mark.parametrize("ignores_case", [True, False])
def test_names_that_differ_in_case(ignores_case, source, monkeypatch):
    monkeypatch.setattr(files, "_ignores_case", lambda folder: ignores_case)
    refused = pytest.raises(ValueError, match="one file")
    with refused if ignores_case else contextlib.nullcontext():
        check_outputs({"-o": "out", "--csv": "OUT"}, source, False)
    check_outputs({"-o": "out", "--csv": "OUTER"}, source, False)


def test_case_counts_where_the_file_system_says_so(tmp_path):
    (tmp_path / "a").touch()
    assert files._ignores_case(str(tmp_path)) == (tmp_path / "A").exists()
    assert names(tmp_path) == ["a"]


def test_what_is_no_file_may_be_named_twice(source, tmp_path):
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/null", "/dev/stderr"):
        check_outputs({"-o": path, "--html": path, "--csv": path}, source, False)


@pytest.mark.parametrize("path", ["input", "./input", "{}/input", "link", "name", "linked/input"])
def test_the_input_is_overwritten_only_if_asked_for(path, source, tmp_path):
    (tmp_path / "link").symlink_to("input")
    (tmp_path / "linked").symlink_to(".")
    os.link("input", "name")
    path = path.format(tmp_path)
    with pytest.raises(ValueError, match=f"{path}: -o would overwrite the input .*--force"):
        check_outputs({"-o": path}, source, False)
    with pytest.raises(ValueError, match="would overwrite"):
        check_outputs({"-o": "other", "--csv": path}, "link", False)
    check_outputs({"-o": path}, source, True)
    check_outputs({"-o": "input2"}, source, False)


def test_what_is_no_file_is_input_and_output_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        check_outputs({"-o": path}, path, False)


def test_an_input_that_is_not_there_is_told_by_who_reads_it(tmp_path):
    check_outputs({"-o": tmp_path / "out"}, tmp_path / "none", False)

"""torch_ext.measure_peak against known allocations."""

import os
import threading

import torch

import torch_ext
from torch_ext.memory.process import _container_bytes, available_bytes

MIB = 2**20


def make(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_peak_and_end_are_exact():
    with torch_ext.measure_peak() as memory:
        a, b = make(3), make(2)
        del a
        c = make(1)
    assert (memory.peak_bytes, memory.end_bytes) == (5 * MIB, 3 * MIB)
    del b, c
    assert (memory.peak_bytes, memory.end_bytes) == (5 * MIB, 3 * MIB)


def test_releasing_older_memory_gives_a_negative_end():
    with torch_ext.measure_peak():
        old = make(4)
    with torch_ext.measure_peak() as memory:
        del old
        new = make(1)
    assert (memory.peak_bytes, memory.end_bytes) == (0, -3 * MIB)
    del new


def test_blocks_nest():
    with torch_ext.measure_peak() as outer:
        a = make(2)
        with torch_ext.measure_peak() as inner:
            b = make(1)
        del b
    assert inner.peak_bytes == MIB
    assert outer.peak_bytes == 3 * MIB
    del a


def test_other_threads_count():
    with torch_ext.measure_peak() as memory:
        thread = threading.Thread(target=lambda: make(2))
        thread.start()
        thread.join()
    assert (memory.peak_bytes, memory.end_bytes) == (2 * MIB, 0)


def test_memory_that_can_still_be_had():
    found = available_bytes()
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_container_has_its_own_limit(tmp_path):
    assert _container_bytes(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    for limit, left in (("max", None), ("1000", 450), ("500", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _container_bytes(tmp_path) == left


def test_an_exception_ends_the_block():
    memory = torch_ext.measure_peak()
    try:
        with memory:
            make(1)
            raise KeyError
    except KeyError:
        pass
    make(5)
    assert memory.peak_bytes == MIB

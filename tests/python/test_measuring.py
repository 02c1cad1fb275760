"""torch_ext.measure_peak against known allocations."""

import threading

import torch

import torch_ext

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

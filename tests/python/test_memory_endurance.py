"""Many calls of changing shapes, in threads that come and go: resident memory stays flat."""

import collections
import json
import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext.memory.process import resident_bytes

SCALE = float(os.environ.get("TORCH_EXT_TEST_SCALE", "1"))  # 100: a million calls
ROUNDS = 40
CALLS = max(ROUNDS, int(10_000 * SCALE))
MOST_THREADS = 6
KINDS = tuple(range(1, 13))  # numbers of rows; more of them than plans are kept
GROWTH_BYTES = 2**23  # until heap and threads have settled; a leak of 2 KiB a call is more


class Server:
    """A module with planned addresses, called by random threads at random."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
        self.pinned = torch_ext.pin_addresses(self.module, most_plans=8)
        self.inputs = {rows: torch.randn(8 * rows, 64) for rows in KINDS}
        with torch.no_grad():
            self.expected = {rows: self.module(x) for rows, x in self.inputs.items()}
        self.wrong: list[str] = []

    def serve(self, seed: int, calls: int) -> None:
        """Some results are kept for a while, and some requests are of a wrong width."""
        rng = random.Random(seed)
        kept: collections.deque[tuple[int, torch.Tensor]] = collections.deque(maxlen=5)
        with torch.no_grad():
            for _ in range(calls):
                rows = rng.choice(KINDS)
                if rng.random() < 0.02:
                    with pytest.raises(RuntimeError):
                        self.pinned(self.inputs[rows][:, 1:])
                kept.append((rows, self.pinned(self.inputs[rows])))
                rows, result = rng.choice(kept)
                if not torch.equal(result, self.expected[rows]):
                    self.wrong.append(f"seed {seed}: {rows} rows")

    def round(self, number: int, calls: int) -> None:
        count = random.Random(number).randint(1, MOST_THREADS)
        threads = [
            threading.Thread(target=self.serve, args=(number * MOST_THREADS + i, calls // count))
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def serve_all() -> dict[str, Any]:
    server = Server()
    resident = []
    for number in range(ROUNDS):
        server.round(number, CALLS // ROUNDS)
        resident.append(resident_bytes())
    return {
        "resident": resident,
        "wrong": server.wrong,
        "served": server.pinned.statistics.served,
        "arenas": torch_ext.arena_statistics().arenas,
    }


def test_resident_memory_stays_flat():
    """In a process of its own, whose malloc has one heap: what grows would be ours."""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    found = json.loads(subprocess.check_output([sys.executable, __file__], env=environment))
    assert not found["wrong"]
    assert found["served"] > CALLS / 4
    assert found["arenas"] <= MOST_THREADS
    resident = found["resident"]
    if None not in resident:
        settled = max(resident[: ROUNDS // 2])
        assert max(resident[ROUNDS // 2 :]) <= settled + GROWTH_BYTES, resident


if __name__ == "__main__":
    print(json.dumps(serve_all()))

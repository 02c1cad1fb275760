import gc
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# They begin first, so that no process waits for another's long file at the end.
LONGEST = ("test_fuzz", "test_consumers", "test_fuzz_training", "test_plain_libtorch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, others as they are."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _old_objects_are_not_collected():
    """Each measurement collects garbage, which takes long over all that torch imports."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _two_threads_no_grad():
    torch.set_num_threads(2)
    with torch.no_grad():
        yield


@pytest.fixture
def with_gradients():
    with torch.enable_grad():
        yield

import gc
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))


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

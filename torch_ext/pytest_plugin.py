"""The marker `@pytest.mark.peak_below("512MiB")`. Imports nothing heavy until a test has it."""

from collections.abc import Generator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "peak_below(amount): fail the test if it takes more memory than that, e.g. '512MiB' "
        "(torch_ext.assert_peak_below; fixtures do not count)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Measure the call of a marked test."""
    marker = item.get_closest_marker("peak_below")
    if marker is None:
        return (yield)
    if len(marker.args) != 1 or marker.kwargs:
        pytest.fail("peak_below takes one amount, as in peak_below('512MiB')", pytrace=False)
    from torch_ext.memory.limit import assert_peak_below

    with assert_peak_below(marker.args[0]):
        return (yield)

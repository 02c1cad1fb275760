"""Fronts for people and for other tools: text, table, page, picture."""

import csv
import io
import json
import re

import pytest

from torch_ext.program.plan import SliceTrial
from torch_ext.reporting.front import Front, FrontPoint, OtherWay, points_of_trials, unbeaten

MIB = 2**20
FREE = ("order", "overwrite")


def point(peak_mib: float, extra_seconds: float, bound: float | None = None) -> FrontPoint:
    peak_bytes = int(peak_mib * MIB)
    return FrontPoint(peak_bytes, peak_bytes, extra_seconds, bound, 1.0, (*FREE, "repeat"), 3)


@pytest.fixture
def front() -> Front:
    return Front(
        points=(point(8, 0.0, 0.0), point(4, 0.25, 0.125), point(2, 1.0, 0.5)),
        others=(
            OtherWay("the loop", 10 * MIB, 1.0, ""),
            OtherWay("checkpointing of <blocks>", 6 * MIB, 1.5, "norm.running_mean"),
        ),
        call_seconds=2.0,
        floor_bytes=MIB,
        reason="no program gets below 1.00 MiB",
        threads=1,
        seconds=3.0,
    )


def test_people_see_a_table_and_what_it_does_not_say(front):
    head, *rows = str(front).splitlines()
    assert head.split()[:2] == ["way", "peak"]
    assert "4.00 MiB" in rows[1]
    assert "+12.5 %" in rows[1]
    assert "+6.2 %" in rows[1]
    assert "+50.0 %" in rows[4]
    assert rows[5].startswith("checkpointing of <blocks>: not the same results; norm.running_mean")
    assert rows[6] == front.reason
    assert len({len(row) for row in rows[:3]}) == 1


def test_tools_get_all_fields(front):
    fields = json.loads(json.dumps(front.to_dict()))
    assert fields["format"] == 1
    assert fields["points"][1]["extra_seconds"] == 0.25
    assert fields["others"][1]["difference"] == "norm.running_mean"
    rows = list(csv.DictReader(io.StringIO(front.to_csv())))
    assert [int(row["measured_peak_bytes"]) for row in rows] == [n * MIB for n in (8, 4, 2, 10, 6)]
    assert rows[1]["way"] == "order, overwrite, repeat"
    assert rows[1]["extra_seconds_bound"] == "0.125"
    assert rows[3]["peak_bytes"] == rows[3]["edits"] == ""


def test_the_page_shows_every_point_and_loads_nothing(front, tmp_path):
    front.save_html(tmp_path / "front.html", "a <model>")
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<h1>a &lt;model&gt;</h1>" in page
    assert page.count('<circle class="found"') == 3
    assert page.count('<circle class="other"') == 2
    assert "checkpointing of &lt;blocks&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    found, proven = _heights(page, "found"), _heights(page, "proven")
    assert all(a <= b for a, b in zip(found, proven, strict=True))  # down is more on a screen
    assert found[0] == proven[0]


def _heights(page: str, kind: str) -> list[float]:
    (line,) = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', page)
    return [float(place.split(",")[1]) for place in line.split()]


def test_a_notebook_gets_the_picture_with_its_style(front):
    shown = front._repr_html_()
    assert shown.startswith("<style>")
    assert "<svg" in shown
    assert "<table>" in shown


def test_matplotlib_draws_it(front):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = front.plot(figure.subplots())
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["found", "proven least", "the loop", "checkpointing of <blocks>"]
    assert list(axes.get_lines()[0].get_ydata()) == [0.0, 12.5, 50.0]


def test_a_front_without_bounds_and_with_one_point_is_drawn(front, tmp_path):
    alone = Front((point(8, 0.0),), (), 2.0, None, "", 1, 0.0)
    alone.save_html(tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "floor" not in re.sub(
        r"<style>.*?</style>|<p class=\"note\">.*?</p>", "", page, flags=re.S
    )
    assert "-" in str(alone)


def test_what_is_beaten_in_both_is_left_out():
    points = [point(8, 0.0), point(6, 0.0), point(4, 2.0), point(3, 1.0), point(3, 1.5)]
    assert unbeaten(points) == (points[1], points[3])


def test_slices_may_be_faster():
    (found,) = points_of_trials([SliceTrial(MIB, MIB, 2, 0.5, 1.0)], FREE)
    assert (found.extra_seconds, found.time_ratio) == (-0.5, 0.5)
    assert found.levers == (*FREE, "slice")
    assert unbeaten([point(8, 0.0), found]) == (found,)

"""A front as a picture and a table in HTML, which loads nothing."""

import dataclasses
import html
import math
import string
from collections.abc import Sequence

from torch_ext._version import __version__
from torch_ext.reporting.assets import asset, policy_hash

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 16, 48  # margins
_TICKS = 5  # about so many
Place = tuple[float, float]  # MiB and per cent of extra time


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is shown of a front."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # those of `found` first, each with its name first
    found: Sequence[Place]  # from the highest peak to the lowest
    proven: Sequence[Place]  # what no program gets under
    others: Sequence[tuple[str, Place]]  # what people do without
    floor_mib: float | None
    notes: Sequence[str]


def page_of_front(front: Drawing, title: str = "") -> str:
    """Return the page."""
    style = asset("page.css") + asset("front.css")
    return string.Template(asset("front.html")).substitute(
        title=html.escape(title or "Memory against time"),
        version=html.escape(__version__),
        style=style,
        style_hash=policy_hash(style),
        figure=figure_of_front(front),
    )


def front_in_notebook(front: Drawing) -> str:
    """Return the figure with its style."""
    return f"<style>{asset('front.css')}</style>{figure_of_front(front)}"


def figure_of_front(front: Drawing) -> str:
    """Return the picture, the table below it, and what is to be said of both."""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in front.notes)
    return f'<figure class="front">{_picture(front)}{_table(front)}</figure>{notes}'


def _table(front: Drawing) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in front.columns)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(way)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for way, *cells in front.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


class _Axes:
    """From MiB and per cent to places in the picture. Both axes hold all that is drawn."""

    def __init__(self, places: list[Place]) -> None:
        self.most_mib = max((x for x, _ in places), default=1.0) * 1.05 or 1.0
        self.least = min(0.0, *(y for _, y in places))
        self.most = max(1.0, *(y for _, y in places)) * 1.05

    def __call__(self, place: Place) -> Place:
        x, y = place
        height = _HEIGHT - _TOP - _BOTTOM
        return (
            round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * x / self.most_mib, 1),
            round(_TOP + height * (self.most - y) / (self.most - self.least), 1),
        )

    def drawn(self) -> str:
        """Lines and numbers."""
        parts = []
        for value in _ticks(0.0, self.most_mib):
            x, y = self((value, self.least))
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{y}"/>')
            parts.append(f'<text class="tick x" x="{x}" y="{y + 16}">{value:g}</text>')
        for value in _ticks(self.least, self.most):
            x, y = self((0.0, value))
            parts.append(f'<line class="grid" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick y" x="{x - 8}" y="{y + 4}">{value:g}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="tick x" x="{middle}" y="{_HEIGHT - 8}">peak memory, MiB</text>')
        parts.append(f'<text class="tick" x="4" y="{_TOP - 4}">extra time, %</text>')
        return "".join(parts)


def _ticks(least: float, most: float) -> list[float]:
    """Round numbers between both."""
    rough = (most - least) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(least / step), math.floor(most / step)
    return [round(step * count, 10) for count in range(first, last + 1)]


def _picture(front: Drawing) -> str:
    axes = _Axes([*front.found, *front.proven, *(place for _, place in front.others)])
    parts = [axes.drawn()]
    for kind, curve in (("proven", front.proven), ("found", front.found)):
        corners = " ".join(f"{x},{y}" for x, y in map(axes, curve))
        parts.append(f'<polyline class="{kind}" points="{corners}"/>')
    for place, (_, *cells) in zip(front.found, front.rows, strict=False):
        x, y = axes(place)
        told = html.escape(f"{cells[0]}, {cells[2]}")
        parts.append(
            f'<circle class="found" cx="{x}" cy="{y}" r="4"><title>{told}</title></circle>'
        )
    if front.floor_mib is not None:
        x, y = axes((front.floor_mib, axes.least))
        parts.append(f'<line class="floor" x1="{x}" x2="{x}" y1="{_TOP}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{x + 4}" y="{_TOP + 12}">floor</text>')
    for name, place in front.others:
        x, y = axes(place)
        anchor = "end" if x > _WIDTH * 0.7 else "start"
        beside = x - 8 if anchor == "end" else x + 8
        parts.append(f'<circle class="other" cx="{x}" cy="{y}" r="4"/>')
        parts.append(
            f'<text class="tick" text-anchor="{anchor}" x="{beside}" y="{y + 4}">'
            f"{html.escape(name)}</text>"
        )
    told = "Peak memory against extra time: the table below has the figures"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{told}">'
        f"{''.join(parts)}</svg>"
    )

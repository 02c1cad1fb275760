"""The page in a real browser: pointed at, clicked, typed at, sorted, printed, read."""

import dataclasses
import os
import pathlib
import re
import shutil

import pytest
from reports import HOSTILE, findings, placed, random_graph, wide

from torch_ext.program.program import Op, Program
from torch_ext.reporting import to_html

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -r requirements-dev.txt"
)
BROWSERS = "chromium-headless-shell chromium chromium-browser google-chrome-stable google-chrome"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        found = next(filter(None, map(shutil.which, BROWSERS.split())), None)
        own = pathlib.Path(tools.chromium.executable_path)
        if found is None and not own.exists():
            pytest.skip(
                "no Chromium is installed: apt-get install chromium-headless-shell, or "
                "playwright install chromium"
            )
        # A browser refuses to run as root in its sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = tools.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens findings as a page; afterwards nothing may be in the console, nothing was loaded."""
    contexts, said, requests = [], [], []

    def open_findings(found, **options):
        path = tmp_path / "report.html"
        path.write_text(to_html(found), encoding="utf-8")
        options.setdefault("viewport", {"width": 1200, "height": 900})
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_findings
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in requests), requests


@pytest.fixture
def page(open_page):
    return open_page(findings(wide()))


def chart_x(page, step, steps):
    """Where a step (from 0) is, on the screen."""
    box = page.locator("#chart").bounding_box()
    left, right = 52, 8
    return box["x"] + left + (step + 0.5) * (box["width"] - left - right) / steps


def card(page, name):
    return page.locator(f"#inspector .card.{name}")


def numbers(texts):
    return [float(text.replace(",", "")) for text in texts]


# --- chart ---------------------------------------------------------------------------------------


def test_it_starts_at_the_peak(page):
    assert card(page, "before").locator(".what").inner_text().split() == ["grow.3", "39.50", "MiB"]
    assert "step 4 of 9" in card(page, "before").inner_text()


def test_pointing_shows_op_module_source_and_what_is_alive(page):
    chart = page.locator("#chart").bounding_box()
    page.mouse.move(chart_x(page, 1, 9), chart["y"] + 100)
    before, after = card(page, "before"), card(page, "after")
    assert "grow.1" in before.inner_text()
    assert "heads.1.grow" in before.inner_text()
    assert "model.py:11" in before.inner_text()
    assert "shrink.3" in after.inner_text()
    sizes = numbers(before.locator(".alive .size").all_inner_texts())
    assert sizes == [9.0, 8.0, 1.0, 0.5]  # the last is scratch memory
    assert page.locator("#chart").get_attribute("aria-valuenow") == "4"
    page.mouse.move(5, 5)
    assert "grow.3" in before.inner_text()


def test_a_click_stays(page):
    chart = page.locator("#chart").bounding_box()
    page.mouse.click(chart_x(page, 6, 9), chart["y"] + 100)
    page.mouse.move(5, 5)
    assert "step 7 of 9" in card(page, "before").inner_text()
    page.get_by_role("button", name="Peak after").click()
    assert card(page, "after").locator(".what").inner_text().split() == ["grow.3", "12.50", "MiB"]
    page.get_by_role("button", name="Peak before").click()
    assert "step 4 of 9" in card(page, "before").inner_text()


def test_a_tap_stays(open_page):
    page = open_page(findings(wide()), viewport={"width": 390, "height": 800}, has_touch=True)
    page.locator("#chart").scroll_into_view_if_needed()
    chart = page.locator("#chart").bounding_box()
    page.touchscreen.tap(chart_x(page, 7, 9), chart["y"] + 100)
    assert "step 8 of 9" in card(page, "before").inner_text()


def test_the_keyboard_walks_and_tells(page):
    page.locator("#chart").focus()
    slider = page.get_by_role("slider")
    for key, step in (("ArrowRight", 5), ("ArrowLeft", 4), ("End", 9), ("PageUp", 9), ("Home", 1)):
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuenow") == str(step)
        assert f"step {step} of 9" in card(page, "after").inner_text()
    told = slider.get_attribute("aria-valuetext")
    assert told == "step 1 of 9; before: grow.0, 9.50 MiB; after: grow.3, 12.50 MiB"


def test_the_curves_reach_their_peaks_and_the_bound_is_a_line(page):
    def y(selector, attribute):
        return float(page.locator(selector).first.get_attribute(attribute))

    top = y(".dot.before", "cy")
    assert top < y(".dot.after", "cy") == pytest.approx(y(".bound", "y1"), abs=0.1)
    heights = re.findall(r"V([\d.]+)", page.locator(".curve.before").get_attribute("d"))
    assert min(map(float, heights)) == pytest.approx(top, abs=0.1)


def test_steps_can_be_walked_without_a_keyboard(page):
    for name, step in (("Next step", 5), ("Previous step", 4), ("Previous step", 3)):
        page.get_by_role("button", name=name).click()
        assert f"step {step} of 9" in card(page, "before").inner_text()


def test_small_programs_have_a_small_unit(open_page):
    graph = wide()
    buffers = [dataclasses.replace(buffer, bytes=buffer.bytes >> 20) for buffer in graph.buffers]
    ops = [dataclasses.replace(op, workspace_bytes=0) for op in graph.ops]
    page = open_page(findings(Program(tuple(ops), tuple(buffers))))
    assert card(page, "before").locator(".what").inner_text().split() == ["grow.3", "39", "B"]
    assert page.locator(".figures .figure").all_inner_texts() == ["39 B", "12 B", "12 B"]
    assert "12\N{NO-BREAK SPACE}B" in page.locator(".reasons").inner_text()
    assert [float(text) for text in column(page, 2)] == [11, 10, 9, 8, 1]


# --- addresses ------------------------------------------------------------------------------------


def test_each_block_of_the_arena_is_drawn_and_told(open_page):
    page = open_page(placed(findings(wide())))
    blocks = page.locator("#arena rect")
    assert blocks.count() == 4 + 4 + 4  # large and small buffers, scratch memory; no result
    assert page.locator("#arena rect.scratch").count() == 4
    told = page.locator("#arena-block")
    blocks.nth(0).hover()
    assert re.match(r"grow\.0, 8 . 512 . 512, 8\.00 MiB at .*, heads\.0\.grow, ", told.inner_text())
    page.locator("#arena rect.scratch").nth(1).hover()
    assert told.inner_text().startswith("scratch memory of grow.1, 0.50 MiB at ")


def test_blocks_that_live_at_one_step_do_not_overlap(open_page):
    page = open_page(placed(findings(random_graph(3, 60))))
    boxes = page.locator("#arena rect").evaluate_all(
        "all => all.map(r => ['x', 'y', 'width', 'height'].map(a => +r.getAttribute(a)))"
    )
    assert len(boxes) > 20
    for i, (x, y, width, height) in enumerate(boxes):
        assert 0 <= y <= y + height <= 1000.001
        for other_x, other_y, other_width, other_height in boxes[:i]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y + 1e-6 or other_y + other_height <= y + 1e-6


def test_without_an_arena_there_is_no_picture(page):
    assert page.locator("#arena").is_hidden()


# --- tables --------------------------------------------------------------------------------------


def column(page, index, table="before"):
    return page.locator(f".buffers.{table} tbody td:nth-child({index})").all_inner_texts()


def test_the_buffers_at_the_peak_can_be_sorted(page):
    assert numbers(column(page, 2)) == [11, 10, 9, 8, 1]
    table = page.locator(".buffers.before")
    head = table.get_by_role("columnheader", name="MiB")
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(column(page, 2)) == [1, 8, 9, 10, 11]
    table.get_by_role("button", name="Made by").press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert column(page, 5) == ["the caller", "grow.0", "grow.1", "grow.2", "grow.3"]
    assert numbers(column(page, 2, "after")) == [11, 1]


def test_the_table_says_all_there_is_to_know(page):
    row = page.locator(".buffers.before tbody tr").first
    told = [cell.strip() for cell in row.locator("td").all_inner_texts()]
    assert told == [
        "big3",
        "11.00",
        "11 \N{MULTIPLICATION SIGN} 512 \N{MULTIPLICATION SIGN} 512",
        "float32",
        "grow.3",
        "heads.3.grow",
        "model.py:13",
        "4\N{EN DASH}8",
    ]
    assert row.get_by_title("/home/me/net/model.py:13").count() == 1


def test_whoever_prints_gets_all_rows(open_page):
    page = open_page(findings(wide(40)))
    rows = page.locator(".buffers.before tbody tr")
    assert rows.count() == 12
    page.pdf()
    assert rows.count() == 41


def test_long_tables_are_cut_until_asked(open_page):
    page = open_page(findings(wide(40)))
    rows = page.locator(".buffers.before tbody tr")
    assert rows.count() == 12
    page.get_by_role("button", name="Show all 41").click()
    assert rows.count() == 41
    assert page.get_by_role("button", name="Show all 41").is_hidden()


# --- what moved, regions -------------------------------------------------------------------------


def open_all(page, within):
    while page.locator(f"{within} details:not([open]) > summary:visible").count():
        page.locator(f"{within} details:not([open]) > summary:visible").first.click()
        unbuilt = page.locator(f"{within} details[open]:not([data-built])")
        playwright.expect(unbuilt).to_have_count(0)  # the content is made a moment later


@pytest.mark.parametrize("seed", range(2))
def test_all_moved_ops_are_shown_at_both_places(open_page, seed):
    found = findings(random_graph(seed, 60, branches=3))
    page = open_page(found)
    open_all(page, "#moved")
    for kind, run in (("from", found.before), ("to", found.after)):
        rows = page.locator(f"#moved .row.{kind} > code")
        playwright.expect(rows).to_have_count(found.plan.moved_ops)
        names = rows.all_inner_texts()
        assert names == [op for op in run.order if op in set(names)]
    same = page.locator("#moved .row.same > code")
    playwright.expect(same).to_have_count(found.plan.ops - found.plan.moved_ops)


def test_what_did_not_move_is_folded(open_page):
    graph = wide(12)
    page = open_page(findings(graph))
    assert (
        page.locator("#moved .row.same .fold").count()
        + page.locator("#moved .row.from .fold").count()
        > 0
    )
    summary = page.locator("#moved summary").first
    summary.focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#moved details[open] .inside .row").nth(3)).to_be_visible()


def test_the_region_tree_opens_down_to_the_ops(page):
    lines = page.locator("#regions summary").all_inner_texts()
    assert [line.split()[0] for line in lines] == ["series", "parallel", "single"]
    assert "39.50" in lines[1]
    assert "12.50" in lines[1]
    open_all(page, "#regions")
    playwright.expect(page.locator("#regions")).to_contain_text("grow.0, shrink.0")


# --- every reader --------------------------------------------------------------------------------


def test_names_of_the_program_stay_text(open_page):
    page = open_page(findings(wide(module_path=HOSTILE), title=HOSTILE))
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert HOSTILE in card(page, "before").inner_text()
    assert f"{HOSTILE}.3.grow" in column(page, 6)


def test_the_sentences_are_there_without_scripts(open_page):
    page = open_page(findings(wide()), java_script_enabled=False)
    told = page.locator("main").inner_text()
    assert "grow.3 (heads.3.grow, model.py:13) cannot run with less than 12.50" in told
    assert "No order" in told or "In any order" in told
    assert "Scratch memory at the peak, before" in told


def test_headings_landmarks_and_names(page):
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "model.pt: peak memory"
    assert page.locator("h1").count() == page.locator("main").count() == 1
    for section in page.locator("section").all():
        name = section.get_attribute("aria-labelledby")
        assert section.get_attribute("aria-label") or page.locator(f"#{name}").count() == 1
    assert page.locator("th:not([scope])").count() == 0
    for button in page.get_by_role("button").all():
        assert button.inner_text().strip()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the chart"


LUMINANCE = """(selector) => {
  const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => {
    const [r, g, b] = channels(text).map((c) => {
      const share = c / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  const behind = []; // colours, the nearest first
  for (let e = element; e; e = e.parentElement) {
    behind.push(getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number));
  }
  const mixed = behind.reverse().reduce((ground, [r, g, b, share = 1]) =>
    [r, g, b].map((c, i) => c * share + ground[i] * (1 - share)), [255, 255, 255]);
  const ground = light(mixed.join(" "));
  const ink = light(getComputedStyle(element).color);
  return (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(open_page, scheme):
    page = open_page(findings(wide()), color_scheme=scheme)
    moved = (".diff .from .way", ".diff .to .way", ".diff .to .sign", ".diff .to .place")
    for selector in ("h1", ".note", ".figures .after .figure", ".alive .size", *moved):
        assert page.evaluate(LUMINANCE, selector) >= 4.5, selector
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_nothing_sticks_out(open_page, width):
    page = open_page(findings(wide()), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 320, "height": 800})
    narrow = re.compile(r"^0 0 (2\d\d|31\d) ")
    playwright.expect(page.locator("#chart svg")).to_have_attribute("viewBox", narrow)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_it_prints_dark_on_white(open_page):
    page = open_page(findings(wide()), color_scheme="dark")
    page.emulate_media(media="print")
    style = "getComputedStyle(document.documentElement)"
    assert page.evaluate(f"{style}.backgroundColor") == "rgb(255, 255, 255)"
    assert page.get_by_role("button", name="Peak before").is_hidden()
    assert len(page.pdf()) > 10_000


# --- sizes ---------------------------------------------------------------------------------------


def test_5000_ops_open_quickly(open_page):
    page = open_page(findings(random_graph(1, 5000, branches=4), time_budget=0.5))
    assert page.evaluate("performance.getEntriesByType('navigation')[0].domComplete") < 5000
    assert page.locator("*").count() < 5000
    page.locator("#chart").focus()
    page.keyboard.press("End")
    assert "step 5,000 of 5,000" in card(page, "before").inner_text()
    page.get_by_role("button", name="Show the rest").click()
    assert page.get_by_role("button", name="Show the rest").count() == 0


def test_a_program_without_ops(open_page):
    page = open_page(findings(Program((), ())))
    assert "Nothing was planned" in page.locator("main").inner_text()
    assert page.locator("#memory").is_hidden()


def test_a_program_that_makes_nothing(open_page):
    page = open_page(findings(Program((Op("view.0", "aten::view"),), ()), title=""))
    assert page.locator("h1").inner_text() == "A program"
    assert "0 buffers of 0 B while view.0 runs at step 1" in page.locator("main").inner_text()
    assert page.locator("#regions-title").is_hidden()


def test_one_op(open_page):
    graph = wide(1)
    page = open_page(findings(Program(graph.ops[:1], graph.buffers[:2])))
    assert "step 1 of 1" in card(page, "before").inner_text()
    assert "Nothing: the order is the original one." in page.locator("main").inner_text()

"""Pages as a browser shows them, on a desktop and on a telephone; skipped where there is no Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import toast
from tests.scenes import demo_model, kept
from tests.unit.bench.made_up import accuracy, filled
from tests.unit.evaluation.answers import answers_of
from tests.unit.visualize.test_color_scales import VIEW, text_view
from toast_cli.bench import suite
from toast_cli.bench.tables.render import write_experiment_page
from toast_cli.evaluation.answer_files import write_answer_files
from toast_cli.evaluation.answer_report import render_answer_report
from toast_cli.visualize.texts.text_page import render_text_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SIZES = {"desktop": (1200, 800), "telephone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A comparison of three runs, one of them with a very long name, and a text."""
    home = tmp_path_factory.mktemp("pages")
    runs = [kept(demo_model(), home / "steered"), kept(demo_model("linear"), home / ("linear-" * 12))]
    said = toast("compare", *runs, runs[0], "--images", "1", "--out", home / "comparison")
    assert said.code == 0, said.err
    wide = ["<b>" + "wide " * 20, "x" * 80, "猫"]
    answers = answers_of(wide, [0, 1, 2] * 9, [1, 1, 0] * 9, [0.9] * 27, ["folder/" + "long" * 30 + ".jpg"] * 27)
    write_answer_files(answers, home / "answers")
    page = render_answer_report(answers, home / "answers", "y" * 90, [("accuracy, test", "33.33% of 27")])
    (home / "answers/report.html").write_text(page, "utf-8")
    (home / "prompt.html").write_text(
        render_text_page([VIEW, text_view("x" * 60, [0.9, 0.1, 0], [0, 0.1, 0.9])]), "utf-8"
    )
    results = filled(
        suite.load_suite("demo")[1], home, lambda dataset, row, seed: accuracy(40 + 3 * len(row) + seed, seconds=9.0)
    )
    for number, run in enumerate(results.iterate_runs()):
        (home / run["run"]).mkdir(parents=True)
        rows = f"class,support,recall\n{'b' * 40},9,0.{number % 7}\na,5,0.5\n"
        (home / run["run"] / "per_class.csv").write_text(rows)
    return {
        "bench": write_experiment_page(results, home),
        "answers": home / "answers/report.html",
        "comparison": home / "comparison/report.html",
        "text": home / "prompt.html",
    }


def read_column(tab: Any, table: str, column: int) -> list[str]:
    """The cells of a column of the first such table, from top to bottom."""
    script = "(rows, column) => rows.map((row) => row.cells[column].innerText.split('\\n')[0])"
    rows = tab.locator(table).first.locator("tbody > tr:not(.group, .paper)")
    return list(rows.evaluate_all(script, column))


@pytest.mark.parametrize("size", SIZES)
def test_tables_sort_by_column_and_show_details(size: str, browser: Any, pages: dict[str, Path]) -> None:
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height}, has_touch=size == "telephone")
    troubles: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(pages["comparison"].as_uri())
    runs = "table.sortable >> nth=0"
    before = tab.inner_text(runs).split()
    trained = [float(cell.replace(",", "")) for cell in read_column(tab, "table.sortable", 2)]
    heading = tab.locator(f"{runs} >> th:nth-child(3) button")
    heading.focus()
    tab.keyboard.press("Enter")
    assert tab.get_attribute(f"{runs} >> th:nth-child(3)", "aria-sort") == "descending"
    largest = [float(cell.replace(",", "")) for cell in read_column(tab, "table.sortable", 2)]
    assert largest == sorted(trained, reverse=True)
    heading.click()
    smallest = [float(cell.replace(",", "")) for cell in read_column(tab, "table.sortable", 2)]
    assert smallest == sorted(trained) != largest and sorted(before) == sorted(tab.inner_text(runs).split())
    assert tab.is_hidden("#cell-details")
    cell = tab.locator(f"{runs} >> tbody td:nth-child(2) >> nth=0")
    cell.tap() if size == "telephone" else cell.hover()
    tab.wait_for_selector("#cell-details", state="visible")
    assert "[" in tab.inner_text("#cell-details")
    tab.keyboard.press("Escape")
    assert tab.is_hidden("#cell-details")
    assert tab.is_hidden("details table")
    tab.locator("summary").press("Enter")
    assert tab.is_visible("details table")
    classes = read_column(tab, "details table", 0)
    tab.locator("details th:nth-child(1) button").click()
    assert read_column(tab, "details table", 0) == sorted(classes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert troubles == [] and [url for url in asked if not url.startswith("data:")] == [pages["comparison"].as_uri()]
    tab.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_page_of_a_suite_sorts_within_groups_and_has_details_by_class(
    size: str, browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height})
    troubles: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(pages["bench"].as_uri())
    table = tab.locator("table.sortable").first
    columns = table.locator("thead tr:last-child th").count()
    column = next(place for place in range(1, columns) if len(set(read_column(tab, "table.sortable", place))) > 1)
    before = read_column(tab, "table.sortable", column)
    table.locator("thead tr:last-child th").nth(column).locator("button").click()
    after = read_column(tab, "table.sortable", column)
    values = table.locator("tbody > tr:not(.group, .paper)").evaluate_all(
        "(rows, column) => rows.map((row) => Number(row.cells[column].dataset.value))", column
    )
    assert values == sorted(values, reverse=True) and sorted(after) == sorted(before) and len(set(values)) > 1
    table.locator("td[tabindex]").first.focus()
    assert "test split" in tab.inner_text("#cell-details")
    tab.locator("summary").first.press("Enter")
    classes = tab.locator("details[open] table")
    assert classes.locator("tbody tr").count() == 2
    classes.locator("td[tabindex]").first.hover()
    assert "By seed: " in tab.inner_text("#cell-details")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert troubles == [] and [url for url in asked if not url.startswith("data:")] == [pages["bench"].as_uri()]
    tab.screenshot(path=Path(os.environ.get("TOAST_SHOTS", tmp_path)) / f"bench-{size}.png", full_page=True)
    tab.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["answers", "comparison", "text"])
def test_a_page_shows_all_of_itself_and_asks_for_nothing(
    which: str, size: str, browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height})
    troubles: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(pages[which].as_uri())
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[which].as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing to be scrolled sideways"
    images = tab.evaluate("[...document.images].map(image => [image.alt, image.complete && image.naturalWidth > 0])")
    assert all(alt and shown for alt, shown in images) and bool(images) is (which != "text")
    if which != "text":
        cut = "[...document.querySelectorAll('.wide')].some(part => part.scrollWidth > part.clientWidth)"
        assert not tab.evaluate(cut), "nor anything inside"
    if which == "text":
        assert tab.evaluate("[...document.querySelectorAll('[role=img]')].every(part => part.ariaLabel)")
    tab.screenshot(path=Path(os.environ.get("TOAST_SHOTS", tmp_path)) / f"{which}-{size}.png", full_page=True)
    with Image.open(Path(os.environ.get("TOAST_SHOTS", tmp_path)) / f"{which}-{size}.png") as picture:
        assert picture.width == width and len(np.unique(np.asarray(picture.convert("L")))) > 50
    tab.close()

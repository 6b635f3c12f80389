"""Names that people type, in everything that toast prints and writes: they look as typed and start no markup.

Public reports of the kind: telperion/nine-or-null #14, rueckstiess/mtools #639 and pymc-labs/pymc-marketing #387
(dollars read as formulas), ultralytics/yolov5 #6522 and open-mmlab/mmpretrain #1627 (letters that the font lacks).
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from tests.cli.conftest import toast, toast_from_the_shell
from tests.layouts import put
from tests.unit.bench.made_up import accuracy, filled
from toast_cli.attention.predicted_classes import SegmentationMap
from toast_cli.bench.scheduler.database import check_database_file, make_sqlite_url, open_storage
from toast_cli.bench.suite import Suite
from toast_cli.bench.tables.render import write_experiment_page, write_tables
from toast_cli.cli.output import console
from toast_cli.cli.output.run_summary import build_results_table
from toast_cli.data.images.transforms import CropWindow
from toast_cli.data.text.documents import TextDocumentOptions, open_documents
from toast_cli.export import verification_worker
from toast_cli.storage.adapter import AdapterConfig
from toast_cli.storage.model_card import format_adapter_card
from toast_cli.utils.files import append_json_line, write_json, write_text
from toast_cli.utils.formatting import format_csv
from toast_cli.utils.names import (
    MAX_FILE_NAME_BYTES,
    escape_control_characters,
    escape_markdown,
    make_names_unique,
    quote_argument,
    to_file_name,
)
from toast_cli.visualize import figure_output
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_figure
from toast_cli.visualize.figure_output import render_figure
from toast_cli.visualize.save_figures import strip_folders

ROOT = Path(__file__).parent.parent.parent
NAMES = {
    "sums of money": "$5_$10",
    "a formula": "$x^2$",
    "half a formula": "a_$^{",
    "markup of rich": "[red]x[/red]",
    "an end of markup": "[/]",
    "an emoji's name": ":smile:",
    "html": "<b>&amp;</b>",
    "a script": "<script>alert(1)</script>",
    "markdown": "*a* _b_ `c` [d](e) | ~f~",
    "a heading": "# title #",
    "a rule": "---",
    "a list": "1. one",
    "a fence": "```",
    "latex": r"\input{x} % {",
    "a spreadsheet formula": "=1+1",
    "a minus": "-1+1",
    "chinese": "猫",
    "right to left": "שלום عربي",
    "long": "x" * 300,
    "long and wide": "猫" * 300,
    "quotes": "q\"'\\",
    "a colour": "a\x1b[31mb",
    "line breaks": "a\nb\tc",
    "zero": "a\x00b",
    "bytes": "caf\udce9",
    "turned around": "a\u202eb",
    "no character": "\uffff",
    "reserved": "CON",
    "blank": " ",
}
"""Names by what is odd about them."""
SHORT_NAMES = {kind: name for kind, name in NAMES.items() if len(name) < 50}
ANY_NAME = st.text(st.characters(), min_size=1, max_size=40)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw_with_names(names: list[str]) -> Figure:
    """Draw a picture with names in the title, in headings and in a legend."""
    segments = SegmentationMap(np.arange(64).reshape(8, 8) % len(names), tuple(names))
    window = CropWindow(0, 0, 40, 30)
    panels = [FigurePanel(name, window) for name in names[:2]] + [FigurePanel("pixels", window, segments=segments)]
    return draw_figure([FigureRow(Image.new("RGB", (40, 30)), tuple(panels))], " · ".join(names))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_show_names_as_they_were_typed(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(0, len(NAMES), 8):
            names = list(NAMES.values())[start : start + 8]
            content = render_figure(draw_with_names(names), kind, text_as_paths=False)
            if kind == "svg":
                shown = " ".join(text for text in ElementTree.fromstring(content).itertext())
                assert all(escape_control_characters(name) in shown for name in names if name in "$5_$10 $x^2$ <b> CON")


def test_every_picture_of_toast_is_written_by_one_function() -> None:
    files = [*(ROOT / "toast_cli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    assert [file.name for file in files if "savefig" in file.read_text(encoding="utf-8")] == ["figure_output.py"]
    assert [file.name for file in files if "csv.writer" in file.read_text(encoding="utf-8")] == ["formatting.py"]


def test_powers_of_ten_remain_formulas() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1e5], [0, 1])
    axes.set_xscale("log")
    axes.set_yticks([0, 1], ["$a_", "$b_$"])
    shown = list(ElementTree.fromstring(render_figure(figure, "svg", text_as_paths=False)).itertext())
    assert "$b_$" in shown and not [text for text in shown if "mathdefault" in text]


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said about fonts yet."""
    monkeypatch.setattr(figure_output, "_reported", set())
    figure_output._list_font_files.cache_clear()


def draw_title(title: str) -> bytes:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, title, fontsize=20)
    return render_figure(figure, "png")


@pytest.mark.usefixtures("unreported")
def test_letters_that_no_font_has_are_reported_once_in_words_of_toast(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_title("plain")
        assert not caplog.messages
        for _ in range(2):  # U+10FFFD is for private use
            draw_title("a\U0010fffdb, \x1b[31m plain")
    (said,) = caplog.messages
    assert said.startswith("No installed font has all letters of 'a\U0010fffdb'") and "fonts-noto-cjk" in said


def make_font(path: Path, family: str, letters: str) -> None:
    """Write a font whose letters are filled squares."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"g{ord(letter)}" for letter in letters)]
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): f"g{ord(letter)}" for letter in letters})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=900, usWeightClass=400)
    font.setupPost()
    font.save(path)


@pytest.mark.usefixtures("unreported")
def test_a_font_of_the_machine_draws_what_the_default_font_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"One Test Sans": "\U000f0001", "Two Test Sans": "\U000f0002"}  # letters for private use
    for family, letters in files.items():
        make_font(tmp_path / f"{family}.ttf", family, letters)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (both,) = {"".join(files.values())}
    before = draw_title(both)
    assert caplog.messages
    caplog.clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, tmp_path.iterdir())))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    figure_output._list_font_files.cache_clear()
    assert sorted(figure_output.choose_fallback_families(frozenset("a" + both))[0]) == sorted(files)
    assert draw_title(both) != before and not caplog.messages
    figure_output._list_font_files.cache_clear()


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    """A finished suite with odd names everywhere."""
    names = [name for name in NAMES.values() if name.strip() and "\udce9" not in name and "\uffff" not in name]
    columns = dict.fromkeys(names[:3], "M")
    rows = {name: {"run": "linear", "group": names[-number], "paper": [name] * 3} for number, name in enumerate(names)}
    table = {"title": " ".join(names[:6]), "columns": columns, "rows": rows}
    curves = {"title": "$a_$", "images": {"M": 10, "N": 20}, "steps_on": "M", "rows": {"$c_$ <b>": "linear"}}
    suite = {"backbone": "vit_demo", "datasets": {"M": "demo", "N": "demo"}, "rows": {"linear": {"method": "linear"}}}
    suite |= {"seeds": [0, 1], "tables": {"CON": table, "a/b:c": table}, "curves": {"AUX": curves}}
    parsed = Suite.model_validate_json(json.dumps(suite), strict=True)
    return filled(parsed, tmp_path, lambda *_: accuracy(50, seconds=1.0))


def test_tables_and_pages_of_a_suite_hold_names_as_text(experiment: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = write_tables(experiment, tmp_path)
        page = write_experiment_page(experiment, tmp_path).read_text(encoding="utf-8")
    written = {path.name for path in folder.iterdir()}
    assert {"_CON.md", "a-b-c.tex", "_AUX.png", "_AUX.csv", "runs.csv"} <= written
    assert "<script>alert" not in page and "<b>&amp;</b>" not in page
    markdown = (folder / "_CON.md").read_text(encoding="utf-8")
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    assert "<script>" not in html and "<code>" not in html and "<h1>" not in html and "$5_$10" in html
    for line in csv.reader(io.StringIO((folder / "_CON.csv").read_text(encoding="utf-8"))):
        assert not [cell for cell in line if cell.startswith(("=", "@", "+", "\t"))]
    latex = (folder / "_CON.tex").read_text(encoding="utf-8")
    assert r"\input" not in latex and "\x1b" not in latex and r"\$5\_\$10" in latex


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_tables_in_a_terminal_show_names_as_text(encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    table = build_results_table("$5 [red] :smile:", {"test": {
        "mean_iou": 0.5, "images": 1, "pixel_accuracy": 0.5, "iou": dict.fromkeys(SHORT_NAMES.values(), 0.5),
    }})  # fmt: skip
    console.SafeConsole(file=file, width=200).print(table)
    file.seek(0)
    shown = file.read()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", shown)
    for name in SHORT_NAMES.values():
        if name.isprintable():
            assert name.encode(encoding, "backslashreplace").decode(encoding) in shown
    assert "[red] :smile:" in shown and "a\\x1b[31mb" in shown and "caf\\udce9" in shown and "a\\nb" in shown
    assert len({len(line) for line in shown.splitlines()[1:] if line.isascii()}) <= 1  # columns are aligned


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    console.print_json(NAMES)
    stream.seek(0)
    shown = stream.read()
    assert json.loads(shown) == NAMES and "\x1b" not in shown and ("猫" in shown) == (encoding == "utf-8")


def test_files_hold_names_in_utf_8_and_give_them_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", NAMES)
    append_json_line(tmp_path / "a.jsonl", NAMES)
    for name in ("a.json", "a.jsonl"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert json.loads(text) == NAMES and "猫" in text
    write_text(tmp_path / f"{'x' * 250}.txt", NAMES["bytes"])
    assert (tmp_path / f"{'x' * 250}.txt").read_text(encoding="utf-8") == "caf\\udce9"


def test_files_are_read_and_written_in_a_stated_encoding() -> None:
    for file in [*(ROOT / "toast_cli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text"):
                    assert "encoding" in given, f"{file}:{node.lineno}"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_model_card_holds_names_as_text(name: str) -> None:
    recipe = {part: {"name": name} for part in ("method", "backbone", "dataset", "task")} | {"seed": 0}
    config = AdapterConfig(recipe, (name,), None, "0" * 64, 1)
    card = format_adapter_card(config, {"validation": None, "selected_epoch": 1, "test": {name: 0.5}})
    html = MarkdownIt("commonmark").render(card)
    assert html.count("<h1>") == 1 and html.count("<ul>") == 1 and html.count("<code>") == 2
    assert "<b>" not in html and "<em>" not in html and "<script>" not in html and "<hr" not in html
    assert asdict(config)["classes"] == (name,)


def read_markdown(text: str) -> str:
    """Return the text that a reader of the list item sees; fail if there is anything but text."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"- {text}\n")
    (inline,) = [token for token in tokens if token.type == "inline"] or [None]
    if inline is None:
        return ""
    assert [token.type for token in tokens] == [
        *("bullet_list_open", "list_item_open", "paragraph_open"), "inline",
        *("paragraph_close", "list_item_close", "bullet_list_close"),
    ]  # fmt: skip
    assert {token.type for token in inline.children or ()} <= {"text", "text_special"}
    return "".join(token.content for token in inline.children or ())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=ANY_NAME | st.text("#-+*_`~|<>[]()!$&1.= \\\n", min_size=1, max_size=8) | st.sampled_from([*NAMES.values()])
)
def test_markdown_shows_any_name(name: str) -> None:
    shown = escape_control_characters(name).replace("\n", "\\n").replace("\t", " ")
    assert read_markdown(escape_markdown(name)) == shown.strip()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=ANY_NAME | st.sampled_from([*NAMES.values(), "com1.txt", "LPT¹", "nul .x", "a. .", "é" * 200]))
def test_file_names_are_accepted_by_every_system(name: str) -> None:
    file = to_file_name(name)
    assert file and not re.search(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]', file) and file[-1] not in ". "
    assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)", file.partition(".")[0].strip(), re.IGNORECASE)
    assert len(file.encode()) <= MAX_FILE_NAME_BYTES and to_file_name(file) == file


def test_ordinary_file_names_stay_and_odd_ones_stay_distinct() -> None:
    assert [*map(to_file_name, ("a b", "猫.v2", "test-0", "console"))] == ["a b", "猫.v2", "test-0", "console"]
    long = [to_file_name("é" * 200 + end) for end in "ab"]
    assert long[0] != long[1]
    assert make_names_unique(["a", "A", "a", "b"]) == ["a", "A-2", "a-3", "b"]


def test_commands_to_copy_quote_paths() -> None:
    assert [*map(quote_argument, ("runs/a", "a b", "$x", "a\nb"))] == ["runs/a", "'a b'", "'$x'", "'a\\nb'"]


def test_a_path_is_shortened_to_its_last_part() -> None:
    assert strip_folders("folder:/home/a:b/c d") == "folder:c d"


def test_csv_keeps_names_and_computes_nothing() -> None:
    rows = [[name] for name in NAMES.values()]
    read = [row[0] for row in csv.reader(io.StringIO(format_csv(rows), newline=""))]
    assert [cell.removeprefix("'") for cell in read] == list(NAMES.values())
    assert read[list(NAMES).index("a spreadsheet formula")] == "'=1+1"


def test_a_ledger_opens_in_a_folder_whose_name_looks_like_a_url(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "a?b=c %41 #d @e [f]" / "ledger.db"
    file.parent.mkdir()
    open_storage(make_sqlite_url(file))
    assert file.is_file()
    file.write_bytes(b"damaged" * 100)
    with pytest.raises(Exception, match="ledger"):
        check_database_file(make_sqlite_url(file))


def test_documents_are_read_from_a_folder_whose_name_looks_like_a_pattern(here: Path) -> None:
    folder = here / "a [1] *"
    folder.mkdir()
    lines = "".join(json.dumps({"text": f"document {number} " * 20}) + "\n" for number in range(10))
    (folder / "b [2].jsonl").write_text(lines, encoding="utf-8")
    opened = open_documents(TextDocumentOptions(name="text", path="a [1] */b [2].jsonl"), None)
    assert sum(len(split) for split in opened.splits.values()) == 10


def test_a_file_name_that_is_not_utf_8_reaches_the_report(here: Path) -> None:
    for number, name in enumerate(("[red]", "=1", "$5_$10")):
        for each in range(4):
            put(here / "data" / name / f"\udce9\x1b[31m{each}.png", 10 * number + each)
    (here / "data" / "=1" / "\udce9\x1b[31m9.png").write_bytes(b"no image")
    done = toast("data", "check", "folder:data", "--out", "report.json")
    assert done.code == 1 and "\x1b" not in done.out and "[31m9.png" in done.out
    assert "9.png" in (here / "report.json").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_a_pipe_in_ascii_breaks_nothing(here: Path) -> None:
    for number, name in enumerate(("猫", "café")):
        for each in range(4):
            put(here / "data ×" / name / f"é{each}.png", 10 * number + each)
    done = toast_from_the_shell("data", "check", "folder:data ×", "--json", PYTHONIOENCODING="ascii")
    assert done.code == 0 and done.out.isascii() and "猫" in json.dumps(json.loads(done.out), ensure_ascii=False)
    done = toast_from_the_shell("data", "check", "folder:none ×", PYTHONIOENCODING="ascii")
    done.fails(1, "none \\xd7")


ODD_LETTERS = st.characters(exclude_categories=["C"], exclude_characters="/") | st.sampled_from(
    "\u200b\u200d\u202e\x07\xad"
)
CLASS_NAMES = st.text(ODD_LETTERS, min_size=1, max_size=40).filter(
    lambda name: name.strip() == name and not name.startswith(".") and len(name.encode()) < 200
)


def make_classes(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        for each in range(5):
            put(folder / name / f"{each}.png", 10 * number + each)


@pytest.mark.nightly
def test_any_class_name_can_be_checked(tmp_path: Path) -> None:
    outcomes: list[int] = []

    @settings(
        max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(names=st.lists(CLASS_NAMES, min_size=2, max_size=3, unique_by=str.casefold))
    def check(names: list[str]) -> None:
        number = sum(1 for _ in tmp_path.iterdir())
        make_classes(tmp_path / str(number), names)
        done = toast("data", "check", f"folder:{tmp_path / str(number)}", "--json")
        outcomes.append(done.code)
        if done.code == 0:
            assert set(json.loads(done.out)["splits"]["train"]["images_of_class"]) == {
                normalize("NFC", name) for name in names
            }
        else:
            done.fails(1)
            assert done.error is not None and done.error.startswith("data.")

    check()
    assert outcomes.count(0) >= 0.8 * len(outcomes), "names that folders can have are refused"


@pytest.mark.nightly
def test_any_class_name_goes_through_the_whole_chain(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)
    small = ["--backbone", "vit_demo", "--method", "linear", "training.epochs=1", "training.batch_size=8"]

    @settings(
        max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(names=st.lists(CLASS_NAMES, min_size=2, max_size=3, unique_by=str.casefold), run=CLASS_NAMES)
    def chain(names: list[str], run: str) -> None:
        place = here / str(sum(1 for _ in here.iterdir()))
        make_classes(place / "data", names)
        folder = place / run
        done = toast("tune", *small, "--dataset", f"folder:{place / 'data'}", f"--output-dir={folder}")
        if done.code:
            done.fails(1)
            assert not folder.exists()
            return
        for words in (["eval"], ["visualize-attention", "--test-image", "0"], ["export", "--format", "hf"]):
            done = toast(*words, "--run", folder)
            assert done.code == 0 and "Warning" not in done.err, done.err
        exported = next((folder / "export").glob("*hf"))
        labels = json.loads((exported / "config.json").read_text(encoding="utf-8"))["id2label"]
        assert set(labels.values()) == set(names)

    chain()

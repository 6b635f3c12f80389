"""Files that are not UTF-8 text: named only where their bytes leave no doubt, and never converted wrongly."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from toast_cli.data.text.formats.messages import MessagesOptions, open_messages
from toast_cli.utils.errors import ToastError

TEXTS = {
    "gbk": "今天天气很好，我们去公园散步吧。你觉得怎么样？",
    "cp1251": "Сегодня хорошая погода, пойдём гулять в парк.",
    "shift_jis": "今日は天気がいいので、公園へ散歩に行きましょう。",
    "cp1252": "Schüler öffnen größere Fenster.",
}
SURE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


def read(path: Path) -> ToastError:
    with pytest.raises(ToastError) as refused:
        open_messages(MessagesOptions(path=str(path)), None)
    return refused.value


def write(path: Path, text: str, encoding: str) -> Path:
    path.write_bytes((json.dumps({"prompt": text, "completion": text}, ensure_ascii=False) + "\n").encode(encoding))
    return path


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_of_bytes_is_never_asserted(encoding: str, tmp_path: Path) -> None:
    error = read(write(tmp_path / "a.jsonl", f"\n{TEXTS[encoding]}", encoding))
    assert "its encoding is not known" in error.why and "Line 1" in error.why and "0x" in error.why
    assert "iconv -f ENCODING -t UTF-8" in error.what_to_do and "WINDOWS-1252" not in str(error)


@pytest.mark.parametrize("encoding", SURE)
@pytest.mark.parametrize("text", ["Name a bird.", TEXTS["gbk"]])
def test_encodings_with_null_bytes_are_named_and_the_command_converts(encoding: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", text, encoding)
    error = read(path)
    named = error.what_to_do.partition("iconv -f ")[2].split()[0]
    assert f"the file is in {named}" in error.why
    assert text in path.read_bytes().decode(named)


def make_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>" * 20)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", make_zip(), "a ZIP archive (perhaps an Excel workbook"),
        ("a.jsonl", make_zip(), "a ZIP archive"),
        ("a.csv", make_zip(), "a ZIP archive"),
        ("a.csv.gz", gzip.compress(make_zip(), mtime=0), "a ZIP archive"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip"),
        ("a.json", b"%PDF-1.7\nabc", "a PDF document"),
        ("a.json", b"PAR1\x15\x04\x15", "a Parquet file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_files_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = read(tmp_path / name)
    assert words in error.why and "iconv" not in error.what_to_do and error.what_to_do


def test_files_of_zstandard_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    line = json.dumps({"prompt": "a", "completion": "b"}).encode()
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(line + b"\n" + line)
    data = open_messages(MessagesOptions(path=str(tmp_path / "a.jsonl.zst"), val_fraction=0, test_fraction=0), None)
    assert len(data.splits["train"]) == 2
    (tmp_path / "b.jsonl.zst").write_bytes(line)
    assert read(tmp_path / "b.jsonl.zst").code == "data.unreadable-file"


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonl.zst", ".json.bz2", ".csv.xz", ".xlsx"])
def test_a_missing_file_is_not_looked_up_on_the_hub(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toast_cli.data.hub._find_hub_error", lambda name: pytest.fail(f"looked up {name}"))
    with pytest.raises(ToastError) as refused:
        open_messages(MessagesOptions(path=f"no-such-file{suffix}"), None)
    assert refused.value.code == "data.missing-file"

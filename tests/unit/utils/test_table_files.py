"""Tables in every format: the same rows come back, and columns that differ are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest

from toast_cli.utils import table_files
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.table_files import Column, Row, read_table, write_table

COLUMNS = (Column("path"), Column("probability", "number"), Column("=p_[ü]", "number"), Column("error"))
ROWS = [
    ["=SUM(A1).jpg", 0.25, 1.0, None],
    ["a, \"b\" 'c'.png", None, -1e-9, None],
    ["new\nline ü [x].png", 1e-12, None, "-it is empty"],
    ["'quoted.png", 3.0, 0.5, None],
]


@pytest.mark.parametrize("suffix", sorted(table_files.FORMATS))
def test_rows_come_back_as_they_were_written(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "ROWS_AT_A_TIME", 3)
    path = tmp_path / f"table{suffix}"
    write_table(path, COLUMNS, iter(ROWS))
    assert [list(row) for row in read_table(path, COLUMNS)] == ROWS
    with pytest.raises(ToastError, match="columns") as refused:
        list(read_table(path, COLUMNS[:-1]))
    assert refused.value.code == "data.unreadable-table"


READERS = {
    ".csv": pandas.read_csv,
    ".json": pandas.read_json,
    ".jsonl": lambda path: pandas.read_json(path, lines=True),
    ".parquet": pandas.read_parquet,
}


@pytest.mark.parametrize("suffix", sorted(table_files.FORMATS))
def test_pandas_reads_the_same_table_from_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    write_table(path, COLUMNS[:2] + COLUMNS[3:], iter([["a.jpg", 0.25, None], ["b.jpg", None, "broken"]]))
    frame = READERS[suffix](path)
    assert list(frame.columns) == ["path", "probability", "error"]
    assert frame["probability"].isna().tolist() == [False, True] == frame["error"].notna().tolist()
    assert frame["probability"].sum() == 0.25


@pytest.mark.parametrize("suffix", sorted(table_files.FORMATS))
def test_a_table_is_written_a_few_rows_at_a_time(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "ROWS_AT_A_TIME", 10)
    alive = 0

    class Text(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0

    def rows() -> Iterator[Row]:
        nonlocal alive, most
        for number in range(500):
            alive += 1
            most = max(most, alive)
            yield [Text(f"{number}.jpg"), 0.5, 0.5, None]

    write_table(tmp_path / f"table{suffix}", COLUMNS, rows())
    assert most < 50


def test_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    for name in ("table", "table.xlsx"):
        with pytest.raises(UsageError) as refused:
            write_table(tmp_path / name, COLUMNS, [])
        assert refused.value.code == "cli.invalid-value"

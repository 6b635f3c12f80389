from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toast_cli.data.base import DataSet
from toast_cli.data.streams.hugging_face import HuggingFaceOptions, open_hf
from toast_cli.utils.errors import ToastError

datasets = pytest.importorskip("datasets")

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360606000000004000166d5bcfa"
    "0000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def saved(folder: Path, labels: dict[str, list[Any]], label: Any = None, **columns: Any) -> Path:
    """A data set as the library's own `save_to_disk` writes it."""
    features = datasets.Features({"image": datasets.Image(), "label": label or datasets.Value("string"), **columns})
    splits = {}
    for part, values in labels.items():
        images = [{"bytes": PNG, "path": None}] * len(values)
        splits[part] = datasets.Dataset.from_dict(
            {"image": images, "label": values, **dict.fromkeys(columns, images)}, features=features
        )
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def opened(path: Path | str, **options: object) -> DataSet:
    return open_hf(HuggingFaceOptions(path=str(path), **options), None)  # type: ignore[arg-type]


def test_labels_of_a_plain_column_become_classes(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "set", {"train": ["b", "a", "b"], "test": ["a"], "validation": ["b"]}))
    assert data.classes == ("a", "b")
    assert data.splits["train"].labels == (1, 0, 1)
    assert data.splits["val"].labels == (1,)
    assert data.splits["test"].load(0).image.size == (1, 1)


def test_a_test_split_without_labels_is_left_out_and_said(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["a", "b"])
    data = opened(saved(tmp_path / "set", {"train": [0, 1, 0, 1], "test": [-1, -1]}, kind))
    assert "test" not in data.splits
    assert any(note.startswith("test: not read, 2 of 2 images") for note in data.notes)


def test_columns_are_named_where_several_fit(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", {"train": ["a", "b"]}, other=datasets.Image())
    with pytest.raises(ToastError) as refused:
        opened(folder)
    assert refused.value.code == "data.ambiguous-column"
    assert "2" in str(refused.value)
    assert len(opened(folder, image_column="other").splits["train"]) == 2
    with pytest.raises(ToastError) as refused:
        opened(folder, image_column="other", label_column="nothing")
    assert refused.value.code == "data.missing-column"
    assert "'nothing'" in str(refused.value)


def test_a_train_image_without_label_is_counted(tmp_path: Path) -> None:
    with pytest.raises(ToastError) as refused:
        opened(saved(tmp_path / "set", {"train": ["a", None, "b"]}))
    assert refused.value.code == "data.unlabelled-images"
    assert "1 of 3 images" in str(refused.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToastError) as refused:
        opened("nobody/nothing-here")
    assert refused.value.code == "data.cannot-open"
    assert "nobody/nothing-here" in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToastError) as refused:
        opened(tmp_path / "empty")
    assert refused.value.code == "data.cannot-open"


def test_a_script_in_a_folder_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ToastError):
        opened(folder)
    assert not (tmp_path / "ran").exists()

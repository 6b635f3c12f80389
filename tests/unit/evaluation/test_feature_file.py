"""Features of images in a file: the numbers, their order, broken images, continuation, and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import toast_cli
from tests.layouts import put
from tests.peak import forget_peak, peak
from tests.scenes import demo_model, kept
from tests.unit.evaluation.predicting import Interruption
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.prediction.feature_file import FeatureFile
from toast_cli.evaluation.prediction.predict import PredictionRequest, PredictionResult, predict_images
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError

SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose two passes have other features."""
    return kept(demo_model("toast"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(7):
        put(Path("photos", f"{number} ü.jpg"), number)
    Path("photos/0 broken.jpg").write_bytes(b"")
    return Path("photos")


def predict(
    model: Path, *sources: str | Path, out: str | None = None, reporter: Reporter | None = None, **how: Any
) -> PredictionResult:
    chosen = {"batch_size": 3, **how, "features": Path(how.get("features", "features.safetensors"))}
    request = PredictionRequest(RunRequest(model, device="cpu"), tuple(map(str, sources)), **chosen)
    return predict_images(request, None if out is None else Path(out), reporter or Reporter())


def read(path: str) -> tuple[list[str], np.ndarray]:
    if path.endswith(".parquet"):
        table = pyarrow.parquet.read_table(path)
        return table.column("path").to_pylist(), np.array(table.column("features").to_pylist(), np.float32)
    tensors = load_file(path)
    return json.loads(tensors["paths"].tobytes()), tensors["features"]


@SUFFIXES
@pytest.mark.parametrize("which", ["last", "first"])
def test_features_are_those_of_the_python_api(suffix: str, which: Any, model: Path, photos: Path) -> None:
    result = predict(model, photos, features=f"f{suffix}", features_of=which)
    paths, features = read(f"f{suffix}")
    assert paths == [str(path) for path in sorted(photos.glob("? ü.jpg"))]
    loaded = toast_cli.load(model)
    np.testing.assert_allclose(features, loaded.features(paths, which).numpy(), rtol=1e-4, atol=1e-5)
    other = loaded.features(paths, "first" if which == "last" else "last").numpy()
    assert np.abs(features - other).max() > 0.01
    assert result.vectors == 7 and list(result.summary.broken) == ["photos/0 broken.jpg"]
    assert sorted(path.name for path in Path().iterdir()) == [f"f{suffix}", "photos"]


@SUFFIXES
def test_interrupted_features_are_continued_to_what_they_would_have_been(
    suffix: str, model: Path, photos: Path
) -> None:
    predict(model, photos, features=f"whole{suffix}")
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, features=f"cut{suffix}", reporter=Interruption(2))
    with pytest.raises(UsageError) as refused:
        predict(model, photos, features=f"cut{suffix}")
    assert refused.value.code == "resume.unfinished-table"
    vectors, lines = Path(f"cut{suffix}.part"), Path(f"cut{suffix}.part.jsonl")
    lines.write_bytes(lines.read_bytes()[:-3])  # a path that was cut, whose vector is there
    result = predict(model, photos, features=f"cut{suffix}", resume=True)
    assert result.read == 8 - 4
    (paths, features), (expected_paths, expected) = read(f"cut{suffix}"), read(f"whole{suffix}")
    assert paths == expected_paths
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)  # other batches round otherwise
    assert not vectors.exists() and not lines.exists()

    put(photos / "0 broken.jpg", 50)
    assert predict(model, photos, features=f"cut{suffix}", resume=True).read == 1
    predict(model, photos, features=f"new{suffix}")
    (paths, features), (expected_paths, expected) = read(f"cut{suffix}"), read(f"new{suffix}")
    assert paths == expected_paths and len(paths) == 8
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_table_and_features_come_from_one_command_and_are_continued_apart(model: Path, photos: Path) -> None:
    predict(model, photos, out="alone.csv")
    alone = Path("alone.csv").read_bytes()
    Path("features.safetensors").unlink()
    predict(model, photos, out="both.csv", features_of="first")
    assert Path("both.csv").read_bytes() == alone
    _, first = read("features.safetensors")
    Path("features.safetensors").unlink()
    assert predict(model, photos, out="both.csv", features_of="first", resume=True).read == 8  # for the features
    assert Path("both.csv").read_bytes() == alone
    np.testing.assert_array_equal(read("features.safetensors")[1], first)


def test_features_of_another_model_or_pass_are_not_continued(model: Path, photos: Path, tmp_path: Path) -> None:
    predict(model, photos)
    content, other = Path("features.safetensors").read_bytes(), kept(demo_model("linear", seed=1), tmp_path / "other")
    before = sorted(Path().rglob("*"))
    for changed, how, code in (
        (other, {}, "resume.other-model"),
        (model, {"features_of": "first"}, "resume.other-settings"),
    ):
        with pytest.raises(UsageError) as refused:
            predict(changed, photos, resume=True, out="table.csv", **how)
        assert refused.value.code == code
    assert Path("features.safetensors").read_bytes() == content and sorted(Path().rglob("*")) == before
    Path("features.safetensors").write_bytes(content[:50])
    with pytest.raises(ToastError) as damaged:
        predict(model, photos, resume=True)
    assert damaged.value.code == "resume.damaged-table"


@SUFFIXES
def test_memory_does_not_grow_with_the_number_of_vectors(suffix: str, tmp_path: Path) -> None:
    width, count = 1024, 40_000  # 156 MiB

    def write(name: str, total: int) -> None:
        file = FeatureFile(tmp_path / f"{name}{suffix}", "model", "last", width, tmp_path)
        file.begin(resume=False)
        vector = np.ones(width, np.float32)
        for start in range(0, total, 500):
            file.append((f"{index}.jpg", vector * index) for index in range(start, start + 500))
        assert file.finish({f"{index}.jpg": total - index for index in range(total)}) == total

    write("warm", 5_000)
    forget_peak()
    before = peak()
    write("many", count)
    used = peak() - before
    assert used < count * width * 4 / 2, f"{used / 2**20:.0f} MiB"
    paths, features = read_ends(tmp_path / f"many{suffix}")
    assert paths == (f"{count - 1}.jpg", "0.jpg") and features == (count - 1, 0)


def read_ends(path: Path) -> tuple[tuple[str, str], tuple[float, float]]:
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            parts = [file.read_row_group(place) for place in (0, file.num_row_groups - 1)]
        first, last = parts[0].slice(0, 1).to_pylist()[0], parts[1].slice(len(parts[1]) - 1).to_pylist()[0]
        return (first["path"], last["path"]), (first["features"][5], last["features"][5])
    with safe_open(path, "np") as file:
        names = json.loads(file.get_tensor("paths").tobytes())
        stored = file.get_slice("features")
        return (names[0], names[-1]), (float(stored[0, 5]), float(stored[len(names) - 1, 5]))

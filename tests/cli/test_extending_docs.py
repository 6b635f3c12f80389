"""The pages of docs/how-to/extend: every page's plugin is installed as its files stand there, and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import ROOT, TINY_DEMO, toast, toast_from_the_shell
from tests.cli.test_processes import TORCHRUN, two_processes
from tests.unit.bench.made_up import filled
from toast_cli import registry, steer
from toast_cli.backbones.conformance import check_backbone
from toast_cli.bench.suite import Suite
from toast_cli.bench.tables.build import build_tables
from toast_cli.plugin import Backbone
from toast_cli.steering.folding import FoldedSteering
from toast_cli.training.plan import method_costs, throughput
from toast_cli.utils.errors import ToastError

PAGES = ROOT / "docs/how-to/extend"
PLUGINS = ("data-source", "conversation-format", "backbone", "method", "metric", "task", "export-format")
DEMO = ["--device", "cpu", "--dataset", "demo", *TINY_DEMO, "training.epochs=1", "training.warmup_epochs=0"]


def files_of(page: str) -> dict[str, str]:
    """Return the text of every block of a page that has a file name as its title."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL))


def read_project(page: str) -> tuple[str, dict[str, str]]:
    """Return the name of a page's package, and its lines of entry points by group."""
    text = files_of(page)["pyproject.toml"]
    (name,) = re.findall(r'^name = "(.+)"$', text, re.MULTILINE)
    return name, dict(re.findall(r'\[project\.entry-points\."(.+)"\]\n((?:\w+ = ".+"\n)+)', text))


def write_files(page: str, folder: Path) -> None:
    for name, text in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it: the modules of all pages, and the metadata with their entry points."""
    folder = tmp_path_factory.mktemp("site")
    for page in PLUGINS:
        write_files(page, folder)
        name, groups = read_project(page)
        metadata = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {name}\nVersion: 0.1.0\n")
        lines = (f"[{group}]\n" + points.replace('"', "") for group, points in groups.items())
        (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugins are installed, in this process and in those that it starts."""

    def forget() -> None:
        registry._read_entry_points.cache_clear()
        registry.list_entries.cache_clear()

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("installed")
def test_the_data_source_is_checked_and_the_method_tunes_on_it(here: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    np.savez(here / "scenes.npz", images=images, labels=np.arange(20) % 2)
    assert toast("data", "check", "array:scenes.npz", "--data-dir", here).code == 0
    said = toast(
        *("tune", "--backbone", "vit_demo_3", "--method", "norms", "--dataset", "array:scenes.npz", "--data-dir", here),
        *("--output-dir", here / "run", "--device", "cpu", "method.biases=false", "dataset.val_fraction=0.2"),
        *("training.epochs=1", "training.warmup_epochs=0", "training.batch_size=8"),
    )
    assert said.code == 0, said.err
    assert "validation: 20% of train held out per class (4 images)" in said.err
    assert json.loads((here / "run/results.json").read_text())["samples"] == {"train": 16, "val": 4}
    assert "name: norms\n  biases: false" in (here / "run/recipe.yaml").read_text()
    toast("tune", "--dataset", "array:none.npz", "--backbone", "vit_demo").fails(2, "There is no file")


@pytest.mark.usefixtures("installed")
def test_the_format_of_conversations_is_detected(here: Path) -> None:
    entries: list[Any] = [{"topic": f"Name bird {number}.", "replies": ["Wren.", "Owl."]} for number in range(40)]
    (here / "forum.json").write_text(json.dumps([*entries, {"topic": "Why?", "replies": []}]))
    said = toast("data", "check", "messages:forum.json", "--data-dir", here)
    printed = " ".join(said.out.split())
    assert "Format of forum.json: forum (40 entries)." in printed, said.err
    assert "the replies after the first of 40 entries" in printed and "no answer to learn" in printed


@pytest.mark.usefixtures("installed")
def test_the_method_leaves_the_users_own_model_as_it_is() -> None:
    import timm

    mine = timm.create_model("test_vit", num_classes=0).eval()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    steered = steer(mine, classes=2, method="norms")
    with torch.no_grad():
        for weight in steered.model.get_trained_parameters().values():
            weight.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


@pytest.mark.usefixtures("installed")
def test_the_method_is_planned_below_those_of_toast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_costs, "METHOD_VARIANTS", {"linear": method_costs.METHOD_VARIANTS["linear"]})
    monkeypatch.setattr(throughput, "MAX_TIMED_STEPS", 1)
    said = toast("plan", "--backbone", "vit_demo_3", "--memory", "1GB", "--device", "cpu", "--json", *TINY_DEMO)
    assert [way["way"] for way in json.loads(said.out)["ways"]] == ["linear", "norms"], said.err


@pytest.mark.usefixtures("installed")
def test_the_backbone_tunes_and_its_attention_and_the_metrics_are_measured(here: Path) -> None:
    said = toast("tune", "--backbone", "example:deep", "--method", "toast", "--output-dir", here / "run", *DEMO)
    assert said.code == 0, said.err
    assert "calibration error, test" in said.out
    assert 0 <= json.loads((here / "run/results.json").read_text())["test"]["calibration"] <= 1
    said = toast("eval", "--attention", "--curve-images", "0", "--run", here / "run", "--json")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)["numbers"]
    assert 0 <= numbers["pass_two"]["bright"]["mean"] <= 1 and "auc" in numbers["pass_two"]
    assert numbers["even"]["bright"]["mean"] == pytest.approx(numbers["even"]["share_inside"]["mean"], abs=1e-5)
    toast("tune", "--backbone", "example_tiny", "--weights", here / "no.safetensors", *DEMO).fails(
        1, "Cannot load weights from", error="weights.cannot-load"
    )


@pytest.mark.usefixtures("installed")
def test_a_column_of_a_suite_shows_a_registered_metric(tmp_path: Path) -> None:
    columns = {"Accuracy": "birds", "Calibration": "metric:calibration"}
    table = {"title": "t", "columns": columns, "rows": {"TOAST": {"run": "toast"}}}
    settings = {"backbone": "vit_demo", "datasets": {"birds": "demo"}, "rows": {"toast": {"method": "toast"}}}
    suite = Suite.model_validate({**settings, "seeds": (0, 1), "tables": {"main": table}})
    metrics = {"accuracy": 0.5, "loss": 1.0}
    made = filled(
        suite, tmp_path, lambda *job: {"validation": metrics, "test": {**metrics, "calibration": job[-1] / 10}}
    )
    (built,) = build_tables(made)
    assert str(built.lines[0].cells[1]) == "5.0 ± 7.1" and built.columns[1].unit == "calibration error, %"
    with pytest.raises(ValueError, match="unknown content 'metric:bright'"):
        wrong = {**table, "columns": {"Bright": "metric:bright"}}
        Suite.model_validate({**settings, "seeds": (0,), "tables": {"main": wrong}})


@pytest.mark.usefixtures("installed")
def test_the_task_tunes_and_reports_its_own_metrics(here: Path) -> None:
    said = toast(
        *("tune", "--backbone", "vit_demo_3", "--method", "linear", "--output-dir", here / "run", *DEMO),
        "task.name=ordinal",
    )
    assert said.code == 0, said.err
    assert "mean absolute error, test" in said.out and "calibration" not in said.out


@pytest.mark.nightly
@pytest.mark.usefixtures("installed")
def test_the_format_writes_a_graph_and_its_classes(toast_run: Path, here: Path) -> None:
    said = toast("export", "--format", "server", "--run", toast_run, "--out", here / "graph.pt2")
    assert said.code == 0, said.err
    assert "loaded with torch.export.load in another process" in said.out
    assert len((here / "graph.txt").read_text().splitlines()) == 5


@pytest.mark.usefixtures("installed", "quickly")
def test_a_format_that_is_no_graph_gets_a_folded_model_and_no_maps(
    toast_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("toast_server")
    written: list[object] = []

    def write(loaded: Any, wanted: Any, path: Path) -> None:
        written.append(loaded.model.adapted.steering)
        module.write_graph(loaded, wanted, path)

    monkeypatch.setattr(module, "FORMAT", replace(module.FORMAT, graph=False, write=write))
    command = ("export", "--format", "server", "--run", toast_run, "--out", here / "graph.pt2")
    toast(*command, "--maps").fails(2, "Use --format onnx, openvino or torch-export.", error="export.not-a-graph")
    assert toast(*command, "--fold").code == 0
    assert [type(steering) for steering in written] == [FoldedSteering]


@pytest.mark.usefixtures("installed")
def test_a_backbone_that_breaks_the_contract_is_refused() -> None:
    def broken(**changes: object) -> Backbone:
        card = registry.load_backbone_card("example_tiny")
        backbone: Backbone = card.build(card.options(name="example_tiny"))
        check_backbone(backbone, "example_tiny", "toast-example")
        for name, value in changes.items():
            setattr(backbone, name, value)
        return backbone

    def bound(name: str, function: object) -> Backbone:
        backbone = broken()
        original = getattr(backbone, name)
        setattr(backbone, name, lambda *arguments, **named: function(original, *arguments, **named))  # type: ignore[operator]
        return backbone

    cases = {
        "without signals, its features differ": bound("stock", lambda original, inputs: original(inputs) + 1),
        "a signal does not change the output of level 0": bound(
            "level", lambda original, index, state, signal=None, trace=None: original(index, state, None, trace)
        ),
        "records no map": bound(
            "level", lambda original, index, state, signal=None, trace=None: original(index, state)
        ),
        "'grid' (3 x 4)": bound("grid", lambda original, inputs: (3, 4)),
        "declares 8 channels in": broken(levels=[type(broken().levels[0])(8, 32)] * 2),
        "'head_width' is 7": broken(head_width=7),
    }
    for words, backbone in cases.items():
        with pytest.raises(ToastError) as refused:
            check_backbone(backbone, "example_tiny", "toast-example")
        assert refused.value.code == "backbone.breaks-contract" and words in refused.value.what, refused.value.what
        assert refused.value.what.startswith("Plugin toast-example: the backbone 'example_tiny'")


@pytest.mark.usefixtures("installed")
def test_a_fault_of_a_plugin_names_the_plugin(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, norms = import_module("toast_array"), import_module("toast_norms")
    np.savez(here / "scenes.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    source = ("--dataset", "array:scenes.npz", "--data-dir", here)
    command = ("tune", "--backbone", "vit_demo_3", "--method", "norms", *source, "--dry-run")
    with monkeypatch.context() as patched:
        patched.setattr(array, "make_train_val_splits", None)
        said = toast(*command)
    assert (said.code, said.error) == (1, "plugin.fault")
    assert "The plugin toast-array failed: TypeError" in said.err and "to the authors of toast-array" in said.err
    with monkeypatch.context() as patched:
        patched.setattr(norms, "METHOD", replace(norms.METHOD, build=lambda options, backbone: []))
        said = toast(*command)
    said.fails(1, "Plugin toast-norms: 'build' of the method 'norms' returned a list", error="plugin.wrong-type")


@pytest.mark.parametrize("page", PLUGINS)
def test_what_entry_points_name_imports_no_torch(page: str, site: Path) -> None:
    modules = set(re.findall(r'"(\w+):', "".join(read_project(page)[1].values())))
    program = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def test_the_backbone_of_the_page_is_that_of_the_repository() -> None:
    for name, text in files_of("backbone").items():
        assert (ROOT / "plugins/example" / name).read_text(encoding="utf-8") == text, name


def test_the_lines_of_the_index_are_those_of_the_method() -> None:
    files, index = files_of("method"), (PAGES / "index.md").read_text(encoding="utf-8")
    assert files["pyproject.toml"] in index


@pytest.mark.nightly
def test_pip_installs_every_page_and_doctor_finds_them_well(tmp_path: Path) -> None:
    for page in PLUGINS:
        write_files(page, tmp_path / page)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    folders = [str(tmp_path / page) for page in PLUGINS]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), *folders], check=True, timeout=300)
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    said = toast_from_the_shell("doctor", PYTHONPATH=path)
    assert said.code == 0, said.out
    for line in ("toast.methods norms (toast-norms): ok", "toast.metrics bright (toast-more-metrics): ok"):
        assert line in said.out


@pytest.mark.nightly
@pytest.mark.usefixtures("installed")
def test_two_processes_measure_a_registered_metric_as_one_does(here: Path) -> None:
    command = ("tune", "--backbone", "vit_demo_3", "--method", "linear", *DEMO, "dataset.test_images=17")
    assert toast(*command, "--output-dir", here / "one").code == 0
    said = two_processes(TORCHRUN, *command, "--output-dir", here / "two")
    assert said.code == 0, said.err
    one, two = (json.loads((here / run / "results.json").read_text())["test"] for run in ("one", "two"))
    assert two["calibration"] == pytest.approx(one["calibration"], abs=1e-5)

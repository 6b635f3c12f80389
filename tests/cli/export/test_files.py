"""Exported files: adapters, whole models, starts, and what they need besides. Checkpoints that come in."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.cli.conftest import TINY_DEMO, MakePictures, toast
from tests.cli.export.conftest import logits, top_down_parts
from tests.language import instructions, make_model, write_json
from toast_cli import registry
from toast_cli.export import export_run
from toast_cli.export.base import ExportRequest
from toast_cli.storage.load_model import load_model
from toast_cli.utils.errors import ToastError


@pytest.mark.usefixtures("quickly")
def test_a_folded_file_loads_as_any_other_and_is_for_inference_alone(here: Path, run: Path) -> None:
    target = here / "folded.safetensors"
    assert toast("export", "--run", run, "--what", "full", "--fold", "--out", target).code == 0
    image = torch.randn(2, 3, 64, 64)
    assert torch.allclose(logits(target, image), logits(run, image), atol=1e-5)
    with safe_open(target, "pt") as file:
        assert not any(".feedback." in name for name in file.keys())  # noqa: SIM118
    toast("export", "--run", target, "--fold", "--out", here / "twice.safetensors").fails(
        2, error="method.no-feedback-path"
    )


def test_import_says_what_became_of_every_tensor(here: Path) -> None:
    torch.save({"model": top_down_parts(), "epoch": 3}, here / "theirs.pth")
    said = toast("import", "theirs.pth", "--backbone", "vit_demo_3", "--output-dir", "start")
    assert said.code == 0, said.err
    assert "Tensors: 8 (0 backbone, 8 selection and feedback, 0 head," in said.out
    assert "backbone.value_bias=twice" in said.out and "not read: epoch" in said.out
    tuned = toast(
        "tune", "backbone=vit_demo_3", *TINY_DEMO, "training.epochs=1", "--init-from", "start", "--output-dir", "run"
    )
    assert tuned.code == 0, tuned.err
    toast("import", "theirs.pth").fails(2, "--backbone", error="cli.missing-option")
    toast("import", "theirs.pth", "--backbone", "vit_t16", "--weights", "none", "--output-dir", "x").fails(
        1, error="checkpoint.wrong-tensors"
    )
    toast("import", "none.pth", "--backbone", "vit_demo").fails(2, "none.pth", error="checkpoint.missing")
    assert not (here / "x").exists()


@pytest.mark.usefixtures("quickly")
def test_a_pretuned_start_becomes_one_file_that_tuning_starts_from(here: Path, pretuned_run: Path) -> None:
    small = [*TINY_DEMO, "training.epochs=1"]
    said = toast("export", "--run", pretuned_run, "--out", "start")
    assert said.code == 0 and "Exported artifact: start.safetensors" in said.out, said.err
    report = json.loads((here / "export_report.json").read_text())["start.safetensors"]
    assert {"random.features", "real.A.0", "real.xi"} <= report["differences"].keys()
    tuned = toast("tune", *small, "--init-from", "start.safetensors", "--output-dir", "run")
    assert tuned.code == 0 and "pre-tuned on demo" in tuned.err, tuned.err
    toast("export", "--run", pretuned_run, "--format", "onnx", "--out", "x").fails(2, error="export.unsupported-part")
    toast("export", "--run", pretuned_run, "--what", "full", "--out", "x").fails(
        2, "artifact", error="cli.invalid-value"
    )
    for path in (pretuned_run, "start.safetensors"):
        toast("eval", "--run", path).fails(2, "--init-from", error="artifact.not-a-model")
    (here / "start.safetensors").write_bytes((here / "start.safetensors").read_bytes()[:-100])
    toast("tune", *small, "--init-from", "start.safetensors", "--output-dir", "y").fails(1, "damaged")


@pytest.mark.usefixtures("quickly")
def test_a_language_models_file_and_folder_need_no_other(here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    import toast_cli

    make_model(here / "model")
    ends = json.loads((here / "model" / "generation_config.json").read_text()) | {"eos_token_id": [2, 7]}
    write_json(here / "model" / "generation_config.json", ends)
    data = write_json(here / "data.json", instructions(20))
    chosen = ["--backbone", f"llama:{here / 'model'}", "--dataset", f"alpaca:{data}", "training.epochs=1"]
    assert toast("tune", *chosen, "--output-dir", "run").code == 0
    before = toast_cli.load("run").generate("Say yes.", max_new_tokens=6)
    for form in (["--what", "full", "--out", "one"], ["--format", "hf", "--out", "hf"]):
        assert toast("export", "--run", "run", *form).code == 0
    (here / "model").rename(here / "away")
    toast("generate", "--run", "run", "Say yes.").fails(1, "no model in", "--weights FOLDER")
    assert toast_cli.load("run", weights="away").generate("Say yes.", max_new_tokens=6) == before
    one = toast_cli.load("one.safetensors")
    assert one.generate("Say yes.", max_new_tokens=6) == before
    assert one.model.backbone.module.generation_config.eos_token_id == [2, 7]
    toast("generate", "--run", "one.safetensors", "--weights", "away", "Hi").fails(2, error="weights.not-needed")
    toast_cli.register()
    ids = torch.randint(6, 100, (1, 9))
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained("hf")(ids).logits, one(ids))
    with pytest.raises(ToastError, match="Use AutoModelForCausalLM"):
        AutoModelForImageClassification.from_pretrained("hf")


@pytest.mark.usefixtures("quickly")
def test_a_files_name_ends_as_its_readers_expect_and_nothing_is_overwritten_unasked(here: Path, run: Path) -> None:
    (here / "b.safetensors.old").write_text("mine")
    assert toast("export", "--run", run, "--what", "backbone", "--out", "b").code == 0
    toast("export", "--run", run, "--what", "backbone", "--out", "b").fails(2, "--force", error="disk.already-exists")
    assert toast("export", "--run", run, "--what", "backbone", "--out", "b", "--force").code == 0
    assert sorted(path.name for path in here.iterdir()) == ["b.safetensors", "b.safetensors.old", "export_report.json"]


@pytest.mark.usefixtures("quickly")
def test_weights_that_have_moved_are_missed_by_name_and_found_beside_the_run(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--what", "backbone", "--out", "w").code == 0
    tuned = toast("tune", *TINY_DEMO, "training.epochs=1", "--weights", here / "w.safetensors", "--output-dir", "r")
    assert tuned.code == 0, tuned.err
    (here / "w.safetensors").rename(here / "v.safetensors")
    toast("export", "--run", "r", "--out", "a").fails(1, "no longer at", "w.safetensors", "--weights FILE")
    assert toast("export", "--run", "r", "--weights", "v.safetensors", "--out", "a").code == 0
    (here / "v.safetensors").rename(here / "r" / "w.safetensors")
    assert toast("export", "--run", "r", "--out", "b").code == 0


FORMS = (
    ["safetensors"],
    ["safetensors", "--what", "full"],
    ["torch-export"],
    ["hf"],
)


@pytest.mark.usefixtures("quickly")
def test_no_export_tells_a_path_of_this_machine(here: Path, pictures: MakePictures, text_run: Path) -> None:
    root = pictures(cat=8, dog=8)
    words = ["--backbone", "vit_demo", "--dataset", f"folder:{root}", "--method", "linear", "training.epochs=1"]
    assert toast("tune", *words, "--output-dir", here / "run").code == 0
    for run, private in ((here / "run", root.parent), (text_run, text_run.parent)):
        for form in FORMS:
            said = toast("export", "--run", run, "--out", here / "out" / "x", "--force", "--format", *form)
            assert said.code == 0, said.err
        for file in (here / "out").rglob("*"):
            assert file.is_dir() or str(private).encode() not in file.read_bytes(), file


@pytest.mark.usefixtures("quickly")
def test_a_language_models_adapter_asks_where_its_model_is(here: Path, text_run: Path) -> None:
    assert toast("export", "--run", text_run, "--out", here / "a.safetensors").code == 0
    toast("generate", "--run", "a.safetensors", "Say yes.").fails(1, "--weights FOLDER")
    said = toast("generate", "--run", "a.safetensors", "--weights", text_run.parent / "model", "Say yes.")
    assert said.code == 0, said.err


@pytest.mark.usefixtures("quickly")
def test_a_name_that_ends_in_a_slash_is_a_folder(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", "o/").code == 0
    assert sorted(path.name for path in (here / "o").iterdir()) == ["export_report.json", "run-adapter.safetensors"]


@pytest.mark.parametrize(("names", "kept"), [(("a", "b"), 2), (("a", "a"), 1)])
def test_two_exports_at_once_lose_nothing_of_each_other(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], kept: int
) -> None:
    both, errors = threading.Barrier(2), list[ToastError]()
    form = registry.load_entry(registry.EXPORTS, "safetensors")
    proof = export_run.VerificationReport({"random.logits": 0.0}, {"random.logits": 1.0}, 1.0, 1.0, "random")
    read = export_run.read_reports

    def proved(*_: Any) -> export_run.VerificationReport:
        both.wait()
        return proof

    def read_slowly(path: Path) -> dict[str, Any]:
        found = read(path)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(export_run, "verify_export", proved)
    monkeypatch.setattr(export_run, "read_reports", read_slowly)

    def one(name: str) -> None:
        try:
            export_run.export_model(
                load_model(run), "safetensors", ExportRequest("adapter"), here / f"{name}{form.suffix}"
            )
        except ToastError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((here / "export_report.json").read_text())) == kept
    assert [error.code for error in errors] == ["disk.already-exists"] * (2 - kept)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("random", [False, True])
def test_an_adapter_brings_what_its_backbone_is_where_only_a_folder_of_the_makers_tells_it(
    here: Path, random: bool
) -> None:
    """The backbone is named by a folder, and its weights are a file apart from it, or random."""
    import toast_cli

    make_model(here / "model")
    data = write_json(here / "data.json", instructions(20))
    backbone = ["--backbone", f"llama:{here / 'model'}"]
    chosen = ["--dataset", f"alpaca:{data}", "training.epochs=1"]
    weights = ["--weights", "none"]
    if not random:
        assert toast("tune", *backbone, *chosen, "--output-dir", "first").code == 0
        assert toast("export", "--run", "first", "--what", "backbone", "--out", "w").code == 0
        weights = ["--weights", here / "w.safetensors"]
    assert toast("tune", *backbone, *chosen, *weights, "--output-dir", "run").code == 0
    assert toast("pretune", "--least-squares", *backbone, *chosen[:2], *weights, "--output-dir", "pre").code == 0
    before = toast_cli.load("run").generate("Say yes.", max_new_tokens=6)
    for run in ("run", "pre"):
        said = toast("export", "--run", run, "--out", f"of_{run}")
        assert said.code == 0, said.err
    (here / "model").rename(here / "away")
    given = None if random else "w.safetensors"
    assert toast_cli.load("of_run.safetensors", weights=given).generate("Say yes.", max_new_tokens=6) == before
    assert toast("export", "--run", "of_pre.safetensors", "--out", "again").code == 0
    assert str(here).encode() not in (here / "of_run.safetensors").read_bytes()


@pytest.mark.usefixtures("quickly")
def test_a_backbones_file_is_called_what_it_is(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--what", "backbone", "--out", "w").code == 0
    toast("eval", "--run", "w.safetensors").fails(2, "weights of a backbone, vit_demo", "--weights w.safetensors")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("named", ["model", "./model", "absolute"])
def test_the_folder_of_a_language_model_is_never_looked_for_on_a_hub(
    here: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A repository there may have the folder's name."""
    make_model(here / "model")
    data = write_json(here / "data.json", instructions(20))
    name = str(here / "model") if named == "absolute" else named
    words = ["--backbone", f"llama:{name}", "--dataset", f"alpaca:{data}", "training.epochs=1"]
    assert toast("tune", *words, "--output-dir", "run").code == 0
    assert toast("export", "--run", "run", "--out", "a").code == 0
    (here / "model").rename(here / "away")

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download._get_metadata_or_catch_error", asked)
    toast("generate", "--run", "a.safetensors", "Hi").fails(1, "no model in ./model", "--weights FOLDER")
    said = toast("generate", "--run", "a.safetensors", "--weights", "away", "Hi")
    assert said.code == 0, said.err

"""`toast export` and `toast import` as a user types them: graphs, folders, uploads, and everything that goes wrong."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TINY_DEMO, MakePictures, toast, toast_in_new_process
from tests.language import instructions, make_model, write_json
from toast_cli import registry
from toast_cli.backbone import Backbone, Preprocessing
from toast_cli.data.transforms import build_transform
from toast_cli.errors import ToastError
from toast_cli.export import checking, exporting
from toast_cli.export.base import Wanted
from toast_cli.export.hf_folder import card, processor
from toast_cli.recipe.schema import ImageOptions
from toast_cli.storage.adapter import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST on the demo."""
    run = tmp_path_factory.mktemp("finished") / "run"
    said = toast("tune", *TINY_DEMO, "--output-dir", run)
    assert said.code == 0, said.err
    return run


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST-Lite on a tiny LLaMA."""
    here = tmp_path_factory.mktemp("text")
    data = write_json(here / "data.json", instructions(20))
    chosen = ["--backbone", f"llama:{make_model(here / 'model')}", "--dataset", f"alpaca:{data}"]
    said = toast("tune", *chosen, "--method", "toast-lite", "--output-dir", here / "run", "training.epochs=1")
    assert said.code == 0, said.err
    return here / "run"


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked in this process: for tests of something else than that they are checked in another."""
    monkeypatch.setattr(checking, "in_new_process", checking.open_and_run)


def logits(run: Path, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load(run).model(image)


def test_an_onnx_file_runs_without_torch_and_proves_it_in_another_process(here: Path, run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast_in_new_process(
        "export", "--run", run, "--format", "onnx", "--maps", "--normalize", "--out", target, "--json"
    )
    assert said.code == 0, said.err
    report = json.loads((here / "export_report.json").read_text())["model.onnx"]
    assert {"random.logits", "real.logits", "real.attention_last", "random.similarity"} <= report["differences"].keys()
    assert json.loads(said.out)["largest_difference"] == max(report["differences"].values()) < 1e-4
    assert report["fold"] and report["seconds"] > 0 and report["seconds_pytorch"] > 0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    pixels = torch.rand(5, 3, 64, 64)
    found = session.run(["logits"], {"image": pixels.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), logits(run, (pixels - 0.5) / 0.25), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list(load(run).classes)
    # Folded: nothing of the feedback path is left but one matrix a level.
    assert not any(".feedback." in name for name in weights_in(target))
    assert sorted(path.name for path in here.iterdir()) == ["export_report.json", "model.onnx"]


AXES = {"image": ["batch", 3, "height", "width"], "input_ids": ["batch", "sequence"]}


def axes_of(path: Path) -> dict[str, list[Any]]:
    import onnx

    return {
        each.name: [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in onnx.load(path).graph.input
    }


@pytest.fixture(scope="module")
def convolutional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TOAST on a tiny ConvNeXt."""
    run = tmp_path_factory.mktemp("convolutional") / "run"
    chosen = ["--backbone", "convnext:test_convnext", "--weights", "none", "method.start=random"]
    said = toast("tune", *TINY_DEMO, *chosen, "training.epochs=1", "--output-dir", run)
    assert said.code == 0, said.err
    return run


@pytest.mark.usefixtures("quickly")
def test_an_onnx_file_of_a_convnext_takes_images_of_any_size(here: Path, convolutional_run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast("export", "--run", convolutional_run, "--format", "onnx", "--out", target)
    assert said.code == 0, said.err
    assert axes_of(target)["image"] == AXES["image"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for image in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 128, 96)):
        (found,) = session.run(["logits"], {"image": image.numpy()})
        assert torch.allclose(torch.from_numpy(found), logits(convolutional_run, image), atol=1e-4)


@pytest.mark.usefixtures("quickly")
def test_an_onnx_file_of_a_language_model_takes_texts_of_any_length(here: Path, text_run: Path) -> None:
    import onnxruntime

    target = here / "model.onnx"
    said = toast("export", "--run", text_run, "--format", "onnx", "--out", target)
    assert said.code == 0, said.err
    assert axes_of(target)["input_ids"] == axes_of(target)["attention_mask"] == AXES["input_ids"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for shape in ((2, 5), (3, 41)):
        ids = torch.randint(6, 100, shape)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        (found,) = session.run(["logits"], {name: each.numpy() for name, each in inputs.items()})
        assert torch.allclose(torch.from_numpy(found), logits(text_run, inputs), atol=1e-4)


def weights_in(path: Path) -> list[str]:
    import onnx

    return [tensor.name for tensor in onnx.load(path).graph.initializer]


@pytest.mark.slow
def test_a_torch_program_takes_any_batch_and_carries_its_labels(here: Path, run: Path) -> None:
    target = here / "model.pt2"
    said = toast("export", "--run", run, "--format", "torch-export", "--out", target)
    assert said.code == 0, said.err
    assert "torch.export.load" in said.out and "8 real and 3 random" in said.out and "Speed:" in said.out
    extra = {"labels": ""}
    program = torch.export.load(target, extra_files=extra).module()
    image = torch.randn(7, 3, 64, 64)
    assert torch.allclose(program(image=image)["logits"], logits(run, image), atol=1e-4)
    assert json.loads(extra["labels"]) == list(load(run).classes)


def test_a_language_models_graph_takes_any_number_of_tokens(here: Path, text_run: Path) -> None:
    target = here / "model.pt2"
    said = toast("export", "--run", text_run, "--format", "torch-export", "--out", target)
    assert said.code == 0, said.err
    ids = torch.randint(6, 100, (3, 29))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    found = torch.export.load(target).module()(input_ids=ids, attention_mask=mask)["logits"]
    expected = logits(text_run, {"input_ids": ids, "attention_mask": mask})
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-4)


def test_transformers_loads_an_exported_classifier(here: Path, run: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import toast_cli

    said = toast("export", "--run", run, "--format", "hf", "--out", here / "hf")
    assert said.code == 0, said.err
    toast_cli.register()
    model = AutoModelForImageClassification.from_pretrained(here / "hf")
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=image).logits, logits(run, image))
    assert [model.config.id2label[i] for i in range(len(load(run).classes))] == list(load(run).classes)
    assert AutoImageProcessor.from_pretrained(here / "hf").image_std == (0.25, 0.25, 0.25)
    card = (here / "hf" / "README.md").read_text()
    for words in ("toast on vit_demo", "Test: accuracy", "fingerprint", "Licence", "AutoModelForImageClassification"):
        assert words in card
    assert 'toast_cli.load("THIS_FOLDER").attention("image.jpg")' in card
    opened = toast_cli.load(here / "hf")
    with torch.no_grad():
        assert torch.equal(opened(image), logits(run, image))
    assert opened.attention(Image.new("RGB", (80, 90))).last is not None and opened.classes == load(run).classes
    config = (here / "hf" / "config.json").read_text()
    assert "auto_map" not in config
    model.save_pretrained(here / "again")
    again = AutoModelForImageClassification.from_pretrained(here / "again")
    with torch.no_grad():
        assert torch.equal(again(pixel_values=image).logits, logits(run, image))
    first, second = (model.config.id2label[i] for i in range(2))
    swapped = {**json.loads(config), "id2label": {**model.config.id2label, 0: second, 1: first}}
    (here / "again" / "config.json").write_text(json.dumps(swapped))
    with pytest.raises(ToastError, match="not in the order"):
        AutoModelForImageClassification.from_pretrained(here / "again")


@pytest.mark.parametrize(
    "how", [{}, {"resize": 96}, {"squash": True}, {"normalize": "imagenet", "resize": 80}], ids=str
)
def test_an_exported_image_processor_prepares_images_as_the_run_does(how: dict[str, Any]) -> None:
    preprocessing = Preprocessing((64, 64), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.8)
    images = ImageOptions(**how)
    from transformers import CLIPImageProcessor

    spelled = processor(preprocessing, images, whole=False)
    noise = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((180, 120))  # even margins: odd ones are rounded to the other side
    ours = build_transform(images, preprocessing, train=False)(picture)[0]
    theirs = CLIPImageProcessor(**spelled)(picture, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == ours.shape and (theirs - ours).abs().mean() < 0.02


def test_transformers_loads_an_exported_language_model_and_lets_it_write(here: Path, text_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import toast_cli

    said = toast("export", "--run", text_run, "--format", "hf", "--fold", "--out", here / "hf")
    assert said.code == 0, said.err
    toast_cli.register()
    model = AutoModelForCausalLM.from_pretrained(here / "hf")
    prompt = AutoTokenizer.from_pretrained(here / "hf")("Say yes.", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        step = logits(text_run, {"input_ids": written[:, :-1], "attention_mask": torch.ones_like(written[:, :-1])})
    assert torch.equal(step[:, prompt.shape[1] - 1 :].argmax(-1), written[:, prompt.shape[1] :])


@pytest.mark.usefixtures("quickly")
def test_a_folded_file_loads_as_any_other_and_is_for_inference_alone(here: Path, run: Path) -> None:
    target = here / "folded.safetensors"
    assert toast("export", "--run", run, "--what", "full", "--fold", "--out", target).code == 0
    image = torch.randn(2, 3, 64, 64)
    assert torch.allclose(logits(target, image), logits(run, image), atol=1e-5)
    with safe_open(target, "pt") as file:
        assert not any(".feedback." in name for name in file.keys())  # noqa: SIM118
    toast("export", "--run", target, "--fold", "--out", here / "twice.safetensors").fails(2, "nothing to fold")


def test_an_export_beyond_tolerance_fails_and_leaves_no_file(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(job: Path) -> None:
        checking.open_and_run(job)
        out = job.parent / "real.out.safetensors"
        save_file({name: tensor + 0.01 for name, tensor in load_file(out).items()}, out)

    monkeypatch.setattr(checking, "in_new_process", spoil)
    for form in ("safetensors", "hf"):
        toast("export", "--run", run, "--format", form, "--out", here / "out" / "x").fails(1, "real.logits", "0.01")
    assert list((here / "out").iterdir()) == []


def spoiling(monkeypatch: pytest.MonkeyPatch, output: str, by: float) -> None:
    """From now on an export's outputs are off by so much of their largest number."""

    def spoil(job: Path) -> None:
        checking.open_and_run(job)
        out = job.parent / "real.out.safetensors"
        tensors = load_file(out)
        tensors[output] = tensors[output] + by * tensors[output].abs().max()
        save_file(tensors, out)

    monkeypatch.setattr(checking, "in_new_process", spoil)


def test_a_map_is_held_to_its_own_unit(here: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of a hundred patches is about a hundredth: a thousandth of that is far below what logits may be off."""
    spoiling(monkeypatch, "attention_last", 1e-3)
    said = toast("export", "--run", run, "--format", "torch-export", "--maps", "--out", here / "out" / "x")
    said.fails(1, "real.attention_last")
    assert list((here / "out").iterdir()) == []


@pytest.mark.parametrize("form", [["safetensors", "--what", "full"], ["torch-export"], ["hf", "--fold"]])
def test_half_precision_is_no_leeway_for_being_wrong(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    words = ["export", "--run", run, "--dtype", "bfloat16", "--format", *form, "--out", here / "out" / "x"]
    spoiling(monkeypatch, "logits", 0.05)  # a tenth of what bfloat16 itself may cost a deep network
    toast(*words).fails(1, "real.logits")
    assert list((here / "out").iterdir()) == []
    spoiling(monkeypatch, "logits", 0.0)
    assert toast(*words).code == 0
    (report,) = (here / "out").rglob("export_report.json")
    (told,) = json.loads(report.read_text()).values()
    assert 0 < told["rounding"]["real.logits"] < 0.1 and told["differences"]["real.logits"] < 1e-5


@pytest.mark.usefixtures("quickly")
def test_what_an_export_could_not_be_compared_on_is_said(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    tensors = load_file(here / "a.safetensors")
    with safe_open(here / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["toast"])
        del config["sha256"]
    config["recipe"]["dataset"] = {"name": "folder", "path": str(here / "gone")}
    save_file(tensors, here / "b.safetensors", {"toast": json.dumps(config)})
    said = toast("export", "--run", here / "b.safetensors", "--format", "safetensors", "--out", here / "c.safetensors")
    assert said.code == 0 and "Not compared on real input" in said.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "onxx"], "onnx"),
        (["--format", "onnx", "--what", "adapter"], "full"),
        (["--format", "onnx", "--dtype", "bfloat16"], "float16"),
        (["--what", "artifact"], "adapter"),
        (["--maps"], "graphs"),
        (["--normalize"], "graphs"),
        (["--format", "hf", "--maps"], "attention(images) gives the maps"),
        (["--dtype", "int8"], "float16"),
        (["--what", "backbone", "--fold"], "--fold"),
        (["--push", "a/b/c"], "repository"),
    ],
)
def test_options_that_do_not_go_together_are_refused(here: Path, run: Path, options: list[str], words: str) -> None:
    toast("export", "--run", run, "--out", here / "out", *options).fails(2, words)
    assert not (here / "out").exists()


@pytest.mark.usefixtures("quickly")
def test_a_truncated_and_a_hostile_file_are_refused(here: Path, run: Path) -> None:
    target = here / "model.safetensors"
    assert toast("export", "--run", run, "--what", "full", "--out", target).code == 0
    whole = target.read_bytes()
    target.write_bytes(whole[:-1000])
    toast("eval", "--run", target).fails(1, "damaged")
    target.write_bytes((2**60).to_bytes(8, "little") + whole[8:])  # a header that claims to be an exabyte long
    toast("eval", "--run", target).fails(1, "damaged")
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(tensors, target, {"toast": '{"format": 1, "recipe": [[[]]]}'})
    toast("eval", "--run", target).fails(1, "damaged")


@pytest.mark.usefixtures("quickly")
def test_another_backbone_and_other_weights_are_refused_by_their_fingerprint(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    toast("export", "--run", here / "a.safetensors", "--weights", "none", "--out", here / "b").fails(
        1, "other weights", "fingerprint"
    )


@pytest.mark.usefixtures("quickly")
def test_permuted_classes_are_refused(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--out", here / "a.safetensors").code == 0
    tensors = load_file(here / "a.safetensors")
    with safe_open(here / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["toast"])
        del config["sha256"]
    config["classes"] = config["classes"][::-1]
    save_file(tensors, here / "b.safetensors", {"toast": json.dumps(config)})
    toast("eval", "--run", here / "b.safetensors").fails(1, "classes", "another order")
    toast("export", "--run", here / "b.safetensors", "--out", "c").fails(1, "classes", "another order")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Within the block the system refuses to write more than so many bytes to a file, as a full disk would."""
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("form", ["safetensors", "torch-export", "hf", "onnx"])
def test_a_full_disk_is_an_error_that_leaves_nothing(here: Path, run: Path, form: str) -> None:
    with no_file_beyond(100_000):
        said = toast("export", "--run", run, "--format", form, "--out", here / "out" / "model")
    said.fails(1, "could not be written")
    assert not any((here / "out").rglob("*"))


def test_an_import_onto_a_full_disk_leaves_no_run(here: Path) -> None:
    torch.save(top_down_parts(), here / "theirs.pth")
    with no_file_beyond(100_000):
        said = toast("import", "theirs.pth", "--backbone", "vit_demo", "--output-dir", "start")
    said.fails(1, "could not be written")
    assert not (here / "start").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/api/repos/create" in self.path:
            self.answer({"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                if (entry := json.loads(line))["key"] == "file":
                    import base64

                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            where = f"http://{self.headers['Host']}/me/mine/commit/0"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": where, "hookOutput": ""})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of an endpoint on loopback, and the files that it was given."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`online(address)`: that is where the hub is from now on."""
    from huggingface_hub import constants

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")

    return at


@pytest.mark.usefixtures("quickly")
def test_an_export_is_uploaded(
    here: Path, run: Path, hub: tuple[str, dict[str, bytes]], online: Callable[[str], None]
) -> None:
    endpoint, files = hub
    online(endpoint)
    said = toast("export", "--run", run, "--out", here / "a.safetensors", "--push", "me/mine")
    assert said.code == 0, said.err
    assert "Uploaded: " in said.out and "me/mine" in said.out
    assert files["a.safetensors"] == (here / "a.safetensors").read_bytes()


@pytest.mark.usefixtures("quickly")
def test_a_folder_for_transformers_is_uploaded_whole(
    here: Path, run: Path, hub: tuple[str, dict[str, bytes]], online: Callable[[str], None]
) -> None:
    endpoint, files = hub
    online(endpoint)
    said = toast("export", "--run", run, "--format", "hf", "--out", here / "hf", "--push", "me/mine")
    assert said.code == 0, said.err
    assert files == {path.name: path.read_bytes() for path in (here / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= files.keys()


@pytest.mark.usefixtures("quickly")
def test_an_upload_that_fails_keeps_the_export(here: Path, run: Path, online: Callable[[str], None]) -> None:
    online("http://127.0.0.1:9")
    said = toast("export", "--run", run, "--out", here / "a.safetensors", "--push", "me/mine")
    said.fails(1, "could not be uploaded")
    assert (here / "a.safetensors").is_file()


def top_down_parts() -> dict[str, torch.Tensor]:
    """Those of the demo's ViT, in the layout of the authors' code."""
    d = 128
    parts = {"prompt": torch.randn(d), "top_down_transform": torch.eye(d)}
    for level in range(3):
        parts |= {
            f"decoders.{level}.linear.weight": torch.randn(d, d),
            f"decoders.{level}.linear2.weight": torch.eye(d),
        }
    return parts


def test_import_says_what_became_of_every_tensor(here: Path) -> None:
    torch.save({"model": top_down_parts(), "epoch": 3}, here / "theirs.pth")
    said = toast("import", "theirs.pth", "--backbone", "vit_demo", "--output-dir", "start")
    assert said.code == 0, said.err
    assert "8 tensors: 0 of the backbone, 8 of selection and feedback path, 0 of the head" in said.out
    assert "backbone.value_bias=twice" in said.out and "not read: epoch" in said.out
    tuned = toast("tune", *TINY_DEMO, "training.epochs=1", "--init-from", "start", "--output-dir", "run")
    assert tuned.code == 0, tuned.err
    toast("import", "theirs.pth").fails(2, "--backbone")
    toast("import", "theirs.pth", "--backbone", "vit_t16", "--weights", "none", "--output-dir", "x").fails(1, "fit")
    toast("import", "none.pth", "--backbone", "vit_demo").fails(2, "no checkpoint")
    assert not (here / "x").exists()


@pytest.mark.usefixtures("quickly")
def test_a_pretuned_start_becomes_one_file_that_tuning_starts_from(here: Path) -> None:
    small = [*TINY_DEMO, "training.epochs=1"]
    made = toast("pretune", "--least-squares", *TINY_DEMO, "--output-dir", "pre")
    assert made.code == 0, made.err
    said = toast("export", "--run", "pre", "--out", "start")
    assert said.code == 0 and "artifact written: start.safetensors" in said.out, said.err
    report = json.loads((here / "export_report.json").read_text())["start.safetensors"]
    assert {"random.features", "real.A.0", "real.xi"} <= report["differences"].keys()
    tuned = toast("tune", *small, "--init-from", "start.safetensors", "--output-dir", "run")
    assert tuned.code == 0 and "pre-tuned on demo" in tuned.err, tuned.err
    toast("export", "--run", "pre", "--format", "onnx", "--out", "x").fails(2, "no model")
    toast("export", "--run", "pre", "--what", "full", "--out", "x").fails(2, "artifact")
    for path in ("pre", "start.safetensors"):
        toast("eval", "--run", path).fails(2, "start for tuning", "--init-from")
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
    toast("generate", "--run", "one.safetensors", "--weights", "away", "Hi").fails(2, "brings the backbone")
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
    toast("export", "--run", run, "--what", "backbone", "--out", "b").fails(2, "already exists", "--force")
    assert toast("export", "--run", run, "--what", "backbone", "--out", "b", "--force").code == 0
    assert sorted(path.name for path in here.iterdir()) == ["b.safetensors", "b.safetensors.old", "export_report.json"]


@pytest.mark.usefixtures("quickly")
def test_weights_that_have_moved_are_missed_by_name_and_found_beside_the_run(here: Path, run: Path) -> None:
    assert toast("export", "--run", run, "--what", "backbone", "--out", "w").code == 0
    tuned = toast("tune", *TINY_DEMO, "training.epochs=1", "--weights", here / "w.safetensors", "--output-dir", "r")
    assert tuned.code == 0, tuned.err
    (here / "w.safetensors").rename(here / "v.safetensors")
    toast("export", "--run", "r", "--out", "a").fails(1, "not at", "w.safetensors", "--weights FILE")
    assert toast("export", "--run", "r", "--weights", "v.safetensors", "--out", "a").code == 0
    (here / "v.safetensors").rename(here / "r" / "w.safetensors")
    assert toast("export", "--run", "r", "--out", "b").code == 0


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"classes": [["a"]] * 6}, "damaged"),
        ({"recipe": {"method": {"name": "toast-lite", "rank": 10**9}}}, "cannot be built"),
        ({"whole": True, "files": '{"../x": "y"}'}, "not built from ../x"),
        ({"files": "[" * 100_000}, "damaged"),
        ({"text": "[" * 100_000}, "damaged"),
    ],
)
def test_a_file_whose_description_is_hostile_is_refused(
    here: Path, run: Path, entries: dict[str, Any], words: str
) -> None:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    config.pop("sha256")  # whoever means harm seals what they write, or leaves the seal out
    files, text = entries.pop("files", None), entries.pop("text", None)
    recipe = config["recipe"] | entries.pop("recipe", {})
    metadata = {"toast": text or json.dumps({**config, "recipe": recipe, **entries})}
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file(tensors, here / "a.safetensors", metadata | ({"backbone": files} if files else {}))
    toast("export", "--run", "a.safetensors", "--out", "b").fails(1, words)
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


def test_numbers_of_another_kind_are_no_weights(here: Path, run: Path) -> None:
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    config = (run / "adapter" / "adapter_config.json").read_text()
    save_file({name: tensor.int() for name, tensor in tensors.items()}, here / "a.safetensors", {"toast": config})
    toast("export", "--run", "a.safetensors", "--out", "b").fails(1, "of another shape or type")


def test_changed_weights_of_a_whole_file_are_refused(here: Path) -> None:
    assert toast("tune", "--method", "linear", "--output-dir", "run", *TINY_DEMO).code == 0
    assert toast("export", "--run", "run", "--what", "full", "--out", "whole.safetensors").code == 0
    with safe_open("whole.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    tensors[name] = tensors[name].mul(1.001)
    save_file(tensors, "changed.safetensors", metadata)
    toast("eval", "--run", "changed.safetensors").fails(1, "are not those that were exported")


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


def write_zip(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "o.onnx": (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch" * 9), "is an ONNX graph"),
    "x.json": (lambda path: path.write_text('{"a": 1}'), "is JSON text"),
    "notes.txt": (lambda path: path.write_text("to whom it may concern"), "is plain text"),
    "p.png": (lambda path: Image.new("RGB", (9, 9)).save(path), "is a PNG image"),
    "g.pt2": (
        lambda path: torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path),
        "is a torch.export program",
    ),
    "z.zip": (write_zip, "is a zip archive"),
    "s.pth": (lambda path: save_file({"a": torch.ones(2)}, path), "is a safetensors file under another name"),
    "w.safetensors": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "pointer of Git LFS"),
    "e.safetensors": (lambda path: path.touch(), "is empty"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_called_what_it_is(here: Path, name: str) -> None:
    make, words = FOREIGN[name]
    make(here / name)
    toast("import", name, "--backbone", "vit_demo").fails(1, words)
    if name != "s.pth":
        for verb in ("eval", "export"):
            toast(verb, "--run", name).fails(2, words)
    assert [path.name for path in here.iterdir()] == [name]


@pytest.mark.parametrize(("names", "kept"), [(("a", "b"), 2), (("a", "a"), 1)])
def test_two_exports_at_once_lose_nothing_of_each_other(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], kept: int
) -> None:
    both, errors = threading.Barrier(2), list[ToastError]()
    form = registry.load(registry.EXPORTS, "safetensors")
    proof = exporting.Proof({"random.logits": 0.0}, {"random.logits": 1.0}, 1.0, 1.0, "random")
    read = exporting._reports

    def proved(*_: Any) -> exporting.Proof:
        both.wait()
        return proof

    def read_slowly(path: Path) -> dict[str, Any]:
        found = read(path)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(exporting, "prove", proved)
    monkeypatch.setattr(exporting, "_reports", read_slowly)

    def one(name: str) -> None:
        try:
            exporting.export(load(run), "safetensors", Wanted("adapter"), here / f"{name}{form.suffix}")
        except ToastError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((here / "export_report.json").read_text())) == kept
    assert [error.what.endswith("already exists.") for error in errors] == [True] * (2 - kept)


def test_a_card_tells_the_licence_of_published_weights_and_of_no_others(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "in_new_process", checking.open_and_run)
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)  # in place of a download
    words = ["--backbone", "vit:test_vit", "--method", "linear", "training.epochs=1"]
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), here / "own.safetensors")
    published = build_of("vit:test_vit", None)
    assert published.licence == "apache-2.0"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert build_of("vit:test_vit", str(here / "own.safetensors")).licence is None
    monkeypatch.setattr(checking, "in_new_process", checking.open_and_run)
    assert toast("tune", *TINY_DEMO, *words, "--weights", "own.safetensors", "--output-dir", "run").code == 0
    assert toast("export", "--run", "run", "--format", "hf", "--out", "hf").code == 0
    assert "license:" not in (here / "hf" / "README.md").read_text()
    assert "Licence of the backbone: not recorded" in (here / "hf" / "README.md").read_text()
    loaded = load(here / "run")
    monkeypatch.setattr(type(loaded.model.backbone), "licence", published.licence)
    told = card(loaded, Wanted("full"))
    assert "\nlicense: apache-2.0\n" in told and "Licence of the backbone: apache-2.0" in told


def build_of(name: str, weights: str | None) -> Backbone:
    made = registry.backbone_card(name)
    return made.build(made.options(name=name, weights=weights))

"""The Python API: as the README shows it, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

import toast_cli
from tests.language import make_model, make_tokenizer
from toast_cli.utils.errors import ToastError, UsageError

ROOT = Path(__file__).parent.parent.parent
TINY = "test_vit"


def picture(path: Path | None = None) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    if path is not None:
        image.save(path)
    return image


@pytest.mark.e2e
def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, toast_cli; dir(toast_cli); assert 'torch' not in sys.modules; toast_cli.load"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' in sys.modules"], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="laod"):
        toast_cli.laod  # noqa: B018


@pytest.mark.parametrize("method", ["toast", "toast-lite", "lora", "full", "vpt", "linear"])
def test_a_model_that_one_has_is_adapted_and_stays_what_it_was(method: str) -> None:
    torch.manual_seed(0)
    mine = timm.create_model(TINY, num_classes=5).eval()
    images = torch.randn(2, 3, 160, 160)
    before, tensors = mine(images), {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    steered = toast_cli.steer(mine, classes=3, method=method)
    optimizer = torch.optim.SGD([weight for weight in steered.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(steered(images), torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(mine(images), before)
    assert mine.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in mine.state_dict().items())
    if method == "toast":
        assert steered.model.adapted.steering.selection.xi.grad.abs().sum() > 0
    assert steered(images).shape == (2, 3)


def test_predictions_are_the_softmax_of_the_logits_and_maps_sum_to_one() -> None:
    steered = toast_cli.steer(timm.create_model(TINY), classes=["a", "b", "c"], method="toast-lite", rank=2)
    first, second = steered.predict([picture(), picture()])
    expected = steered.eval()(steered.prepare(picture())).softmax(-1)[0]
    assert torch.allclose(first.probabilities, expected, atol=1e-6)
    assert first.label == "abc"[int(expected.argmax())] and first.probability == second.probability
    maps = steered.attention(picture())
    assert maps.last is not None and maps.similarity is not None
    assert maps.first.sum().item() == pytest.approx(1.0, abs=1e-5) and maps.similarity.shape == maps.last.shape


def test_a_convnext_predicts_and_says_that_it_has_no_attention_to_show() -> None:
    steered = toast_cli.steer(timm.create_model("test_convnext"), classes=2)
    assert steered.predict(picture())[0].label in ("0", "1")
    with pytest.raises(UsageError, match="no attention"):
        steered.attention(picture())


def test_a_language_model_is_steered_and_writes(tmp_path: Path) -> None:
    mine = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    steered = toast_cli.steer(mine)
    ids = torch.randint(6, 100, (2, 7))
    assert steered(ids).shape == steered(input_ids=ids).shape == (2, 7, mine.config.vocab_size)
    assert isinstance(steered.generate("Say yes.", max_new_tokens=3), str)
    with pytest.raises(UsageError) as refused:
        toast_cli.steer(mine, classes=2)
    assert refused.value.code == "task.has-own-head"


@pytest.mark.e2e
def test_a_graph_of_prompts_takes_any_batch() -> None:
    model = toast_cli.steer(timm.create_model(TINY), classes=2, method="vpt", prompts=3).eval().model
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (torch.randn(2, 3, 160, 160),), dynamic_shapes={"inputs": batch})
    images = torch.randn(3, 3, 160, 160)
    assert torch.allclose(program.module()(images), model(images), atol=1e-4)


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> toast_cli.Steered:
    """A steered language model whose signals matter, that writes a few letters and never ends by itself."""
    mine = AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("writing") / "model", chat=True))
    tokenizer, config = make_tokenizer(), mine.generation_config
    # An end that is never written: without any, transformers 5.2 stops in its own lookup of what the prompt said.
    config.eos_token_id = tokenizer.eos_token_id
    config.suppress_tokens = [token for token in range(len(tokenizer)) if tokenizer.decode(token) not in "abcd "]
    steered = toast_cli.steer(mine)
    torch.manual_seed(0)
    for weight in steered.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return steered


def test_an_answer_is_sampled_searched_limited_and_stopped_as_transformers_does_it(writing: toast_cli.Steered) -> None:
    ways = [{"do_sample": True}, {"num_beams": 3}]
    for settings in ways:
        written = []
        for kept in (True, False):
            torch.manual_seed(1)
            written.append(writing.generate("Say yes.", use_cache=kept, **{"max_new_tokens": 20, **settings}))
        assert written[0] == written[1] != ""
    free = writing.generate("Say yes.", max_new_tokens=20)
    assert writing.generate("Say yes.", max_new_tokens=20, prompt_lookup_num_tokens=2) == free
    assert (
        writing.generate("Say yes.", max_new_tokens=20, stop_strings=[free[3:6]]) == free[: free.index(free[3:6]) + 3]
    )
    config = copy(writing.model.backbone.module.generation_config)
    config.max_new_tokens = 4
    assert writing.generate("Say yes.", generation_config=config) == free[:4]


def test_an_answer_is_heard_as_it_is_written(writing: toast_cli.Steered) -> None:
    heard: list[str] = []
    torch.manual_seed(0)
    whole = writing.generate("Say yes.", heard.append, max_new_tokens=30, do_sample=True)
    assert len(heard) > 1 and "".join(heard) == whole


def test_a_conversation_is_given_as_transformers_has_it(writing: toast_cli.Steered) -> None:
    asked = {"role": "user", "content": "Say yes."}
    assert writing.generate([asked], max_new_tokens=5) == writing.generate("Say yes.", max_new_tokens=5)


def test_several_prompts_are_answered_together_as_each_alone(writing: toast_cli.Steered) -> None:
    prompts = ["Say yes, and then a lot more.", "No.", [{"role": "user", "content": "Say what you think."}], "Hm"]
    alone = [writing.generate(prompt, max_new_tokens=12) for prompt in prompts]
    assert writing.generate_all(prompts, batch_size=3, max_new_tokens=12) == alone and len(set(alone)) > 1
    assert writing.generate_all([]) == []
    with pytest.raises(UsageError) as refused:
        writing.generate_all("Hm")
    assert refused.value.code == "text.not-a-list"


def test_several_prompts_may_have_tools(writing: toast_cli.Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_template", "stanford")  # which has no tools
    assert len(writing.generate_all(["Hm"], max_new_tokens=2)) == 1
    with pytest.raises(ToastError) as refused:
        writing.generate_all(["Hm"], tools=[{"name": "weather", "parameters": {}}], max_new_tokens=2)
    assert refused.value.code == "text.omitted-by-chat-template"


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ("Hi", {"num_return_sequences": 2}, "num_return_sequences=2"),
        ("Hi", {"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ("Hi", {"on_text": print, "num_beams": 2}, "num_beams=1"),
        ([], {}, "conversation is empty"),
        ([{"role": "usr", "content": "Hi"}], {}, "usr"),
        ([{"user": "Hi"}], {}, "user"),
        (7, {}, "int"),
    ],
)
def test_what_cannot_be_written_is_said(
    writing: toast_cli.Steered, prompt: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        writing.generate(prompt, **settings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 2, "method": "tost"}, "toast"),
        ({"classes": 2, "rank": 3}, "rank"),
        ({}, "classes=10"),
        ({"classes": 0}, "classes="),
        ({"classes": "cat"}, "classes="),
        ({"classes": 2.5}, "classes="),
        ({"classes": True}, "classes="),
        ({"classes": [1, 2]}, "classes="),
        ({"classes": ["a", "a"]}, "'a'"),
    ],
)
def test_what_cannot_be_is_said(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        toast_cli.steer(timm.create_model(TINY), **arguments)


def test_a_model_of_no_family_and_a_run_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Linear"):
        toast_cli.steer(torch.nn.Linear(2, 2), classes=2)
    with pytest.raises(ToastError, match="no run"):
        toast_cli.load(tmp_path / "nothing")


@pytest.fixture(scope="module")
def looking() -> toast_cli.Steered:
    """An image model with a head that has learned nothing."""
    return toast_cli.steer(timm.create_model(TINY), classes=2)


NO_IMAGES: dict[str, tuple[Any, str]] = {
    "none": ([], "image"),
    "array": (np.zeros((9, 9, 3), np.uint8), "ndarray"),
    "arrays": ([np.zeros((9, 9, 3))], "ndarray"),
    "tensor": (torch.zeros(2, 3, 160, 160), "Tensor"),
    "number": (3, "int"),
    "bytes": (b"abc", "bytes"),
    "nothing": (None, "NoneType"),
    "floats": (Image.new("F", (9, 9)), "image"),
}


@pytest.mark.parametrize("given", NO_IMAGES)
def test_what_is_no_image_is_told_as_what_it_is(looking: toast_cli.Steered, given: str) -> None:
    images, words = NO_IMAGES[given]
    for verb in (looking.predict, looking.attention, looking.prepare):
        with pytest.raises(UsageError, match=words):
            verb(images)


def test_images_come_by_path_or_open_one_or_many(looking: toast_cli.Steered, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = picture(path)
    expected = looking.predict(image)[0].probability
    for images in (path, str(path), [path, image], (image, image.convert("RGBA"))):
        assert all(each.probability == pytest.approx(expected, abs=1e-6) for each in looking.predict(images))


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_said(toast_run: Path, device: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}'"):
        toast_cli.load(toast_run, device=device)

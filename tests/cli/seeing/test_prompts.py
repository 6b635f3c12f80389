"""Where language models look in a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import toast
from tests.cli.seeing.pages import page
from tests.cli.seeing.texts import tuned_on_texts
from toast_cli.visualize.texts.text_figure import TEXT_MAP_DESCRIPTIONS


def test_a_prompt_is_coloured_in_the_terminal_and_as_a_page(here: Path) -> None:
    tuned_on_texts(here, "run")
    prompt = "Say <script>alert(1)</script> to Zoë."
    said = toast("visualize-attention", "--prompt", prompt, "--run", "run", "--out", "seen", "--raw")
    assert said.code == 0, said.err
    assert said.out.replace("·", "").count(prompt) == 4 and "attention of the last token, pass two" in said.out
    assert prompt in page(here / "seen/prompt.html").text.replace("·", "")
    maps, record = load_file(here / "seen/prompt.safetensors"), json.loads((here / "seen/prompt.json").read_text())
    assert "".join(record["views"][0]["tokens"]).removeprefix("<s>").replace("·", "") == prompt
    assert set(maps) == {"similarity", "pass_one", "pass_two", "difference"}
    assert all(len(map) == len(record["views"][0]["tokens"]) for map in maps.values())
    assert maps["pass_two"].sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(maps["difference"], maps["pass_two"] - maps["pass_one"])
    said = toast("visualize-attention", "--prompt", "hello", "--backbone", f"llama:{here / 'llama'}", "--out", "plain")
    assert said.code == 0 and "plain backbone" in said.err
    toast("visualize-attention", "--prompt", "hello", "--backbone", "vit_demo").fails(
        2, error="task.not-a-language-model"
    )


def test_prompts_in_one_folder_are_never_written_over_by_another(here: Path) -> None:
    tuned_on_texts(here, "run")
    texts = ["Hello there.", "And you?", "Hello there."]
    seen = []
    for prompt in texts:
        said = toast("visualize-attention", "--prompt", prompt, "--run", "run", "--out", "seen", "--raw", "--json")
        assert said.code == 0, said.err
        seen.append({file.name: file.read_bytes() for file in (here / "seen").iterdir()})
        assert json.loads(said.out)["page"] == ("seen/prompt-2.html" if prompt == texts[1] else "seen/prompt.html")
    kinds = ("html", "json", "safetensors")
    assert set(seen[0]) == {f"prompt.{kind}" for kind in kinds}
    assert set(seen[1]) == set(seen[2]) == set(seen[0]) | {f"prompt-2.{kind}" for kind in kinds}
    assert seen[1].items() >= seen[0].items() and seen[2] == seen[1], "the same again is the same again"
    for name, prompt in (("prompt", texts[0]), ("prompt-2", texts[1])):
        assert json.loads(seen[1][f"{name}.json"])["prompt"] == prompt
        assert prompt in page(here / f"seen/{name}.html").text.replace("·", "")
    assert toast("visualize-attention", "--prompt", texts[0], "--run", "run", "--out", "seen").code == 0
    assert (here / "seen/prompt-3.html").is_file(), "nor by the same text marked as the run was trained on it"


def test_two_runs_of_one_name_keep_their_own_numbers_of_a_prompt(here: Path) -> None:
    runs = [tuned_on_texts(here, path, seed) for seed, path in enumerate(("a/run", "b/run"))]
    said = toast(
        "visualize-attention", "--prompt", "Hi.", "--run", runs[0], "--run", runs[1], "--out", "seen", "--json"
    )
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert [view["name"] for view in record["views"]] == ["run", "run-2"]
    maps = load_file(Path(record["page"]).with_suffix(".safetensors"))
    assert {f"{name}/{map}" for name in ("run", "run-2") for map in TEXT_MAP_DESCRIPTIONS} == set(maps)
    assert not torch.equal(maps["run/pass_two"], maps["run-2/pass_two"])
    assert "run-2" in page(Path(record["page"])).text

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tests.cli.conftest import toast

TINY = [
    "dataset.train_images=10",
    "dataset.val_images=5",
    "dataset.test_images=6",
    "training.epochs=1",
    "training.warmup_epochs=0",
]


def test_the_demo_makes_three_runs_one_picture_and_one_page(here: Path) -> None:
    said = toast("demo", *TINY)
    assert said.code == 0, said.err
    for word in ("linear probe", "LoRA", "TOAST", "pass two", "Try next", "toast eval --attention"):
        assert word in said.out
    assert sorted(path.name.split("-")[2] for path in (here / "runs").iterdir()) == ["linear", "lora", "toast"]
    with Image.open(here / "demo.png") as picture:
        assert picture.height > picture.width > 500
    page = (here / "demo.html").read_text()
    assert "data:image/png;base64," in page and "linear probe" in page and "<script" not in page
    # The verbs that follow take the newest run, which must be TOAST's.
    assert "-toast-" in toast("eval", "--attention").err


def test_the_numbers_come_as_json_and_runs_are_never_written_over(here: Path) -> None:
    for _ in range(2):
        said = toast("demo", "--json", "--out", "shown", *TINY)
        assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found["runs"]) == ["linear probe", "LoRA", "TOAST"]
    assert found["runs"]["TOAST"]["test"]["attention_share"]["pass_two"] >= 0
    assert len(list((here / "runs").iterdir())) == 6 and (here / "shown" / "demo.png").is_file()


def test_a_wrong_setting_is_an_error_before_anything_is_trained(here: Path) -> None:
    toast("demo", "training.lr=fast").fails(2, "training.lr")
    assert not (here / "runs").exists()

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


def test_the_demo_makes_three_runs_one_picture_and_one_page_and_writes_over_none(here: Path) -> None:
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

    again = toast("demo", "--json", "--out", "shown", *TINY)
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert list(found["runs"]) == ["linear probe", "LoRA", "TOAST"]
    assert found["runs"]["TOAST"]["test"]["attention_share"]["pass_two"] >= 0
    assert len(list((here / "runs").iterdir())) == 6 and (here / "shown" / "demo.png").is_file()


def test_a_wrong_setting_is_an_error_before_anything_is_trained(here: Path) -> None:
    toast("demo", "training.lr=fast").fails(2, "training.lr")
    assert not (here / "runs").exists()

"""TRL trains an exported folder further, as docs/how-to/dpo.md shows. `make test-trl` installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import toast
from tests.language import instructions, make_model, write_json

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/how-to/dpo.md"


def test_the_documented_dpo_prefers_the_chosen_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model", chat=True)
    data = write_json(tmp_path / "data.json", instructions(100))
    words = ["--backbone", f"llama:{tmp_path / 'model'}", "--dataset", f"alpaca:{data}", "--method", "lora"]
    assert toast("tune", *words, "--output-dir", "runs/mine", "training.epochs=5", "training.lr=0.03").code == 0
    assert toast("export", "--run", "runs/mine", "--format", "hf", "--out", "mine").code == 0
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"Say it, {number}."}],
            "chosen": [{"role": "assistant", "content": "no"}],
            "rejected": [{"role": "assistant", "content": "yes"}],
        }
        for number in range(32)
    ]
    Path("preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    script = PAGE.read_text(encoding="utf-8").split('```python title="dpo.py"\n')[1].split("```")[0]
    Path("dpo.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "dpo.py"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    state = json.loads(next(Path("mine-dpo").rglob("trainer_state.json")).read_text())
    margins = [entry["rewards/margins"] for entry in state["log_history"] if "rewards/margins" in entry]
    assert margins[-1] > max(0.0, margins[0])
    first, second = (load_file(f"{name}/model.safetensors") for name in ("mine", "mine-dpo"))
    assert first.keys() == second.keys() and any((first[name] != second[name]).any() for name in first)
    answers = {
        place: json.loads(toast("generate", *place, "Say it, 3.", "--max-new-tokens", "4", "--json").out)["answer"]
        for place in (("--run", "mine"), ("--backbone", f"llama:{tmp_path / 'mine-dpo'}"))
    }
    before, after = answers.values()
    assert before == "yes" and after.startswith("no")

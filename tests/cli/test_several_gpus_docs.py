"""The SLURM scripts of docs/how-to/several-gpus.md, dry: with a `torchrun` that writes down how it was called."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from tests.unit.test_docs_commands import find_mistake

PAGE = (ROOT / "docs" / "how-to" / "several-gpus.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("nodes", "script"), [(1, SCRIPTS[0]), (2, SCRIPTS[1])])
def test_a_job_starts_torchrun_on_its_nodes(here: Path, nodes: int, script: str) -> None:
    stand_ins = here / "bin"
    stand_ins.mkdir()
    log = here / "calls"
    (stand_ins / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (stand_ins / "scontrol").write_text(
        '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n'
    )
    (stand_ins / "torchrun").write_text(f'#!/bin/bash\necho "$*" >> {log}\n')
    for each in stand_ins.iterdir():
        each.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "DATA": "data", "RUN": "runs/birds"}
    environment = {**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}", **job}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    launcher, _, words = log.read_text().strip().partition(" -m toast_cli ")
    assert find_mistake(f"toast {words}") is None and words.startswith("tune ") and "runs/birds" in words
    assert f"#SBATCH --nodes={nodes}\n" in script and "--nproc-per-node 4" in launcher
    assert ("--rdzv-endpoint node1:29500" in launcher and "--nnodes 2" in launcher) == (nodes == 2)
    assert all(line.startswith("#SBATCH --") for line in script.splitlines() if "SBATCH" in line)

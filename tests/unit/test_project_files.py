"""Files that repeat each other: Python versions, toast's version, extras, hooks, the changelog and llms.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from toast_cli.utils.version import __version__

ROOT = Path(__file__).parent.parent.parent
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


PYPROJECT = tomllib.loads(read("pyproject.toml"))
PROJECT = PYPROJECT["project"]


def test_every_file_names_the_same_versions_of_python() -> None:
    oldest = PYTHONS[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])) == PYTHONS
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert f"--python-version {oldest} " in read("Makefile")
    assert f"Python {oldest} or newer" in read("README.md")
    assert f"Python {oldest} or newer" in read("CONTRIBUTING.md")
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    assert jobs["test-fast"]["strategy"]["matrix"]["python"] == PYTHONS


def test_the_extra_all_joins_every_extra_for_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (joined,) = extras["all"]
    assert joined.startswith(f"{PROJECT['name']}[")
    names = joined.partition("[")[2].rstrip("]").split(",")
    assert sorted(names) == sorted(set(extras) - {"all", "dev", "docs", "trackers", "lm-eval"})


def test_workflows_only_run_targets_of_the_makefile_and_pinned_actions() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    made = set()
    for file in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
            for step in job["steps"]:
                made |= set(re.findall(r"^make ([a-z-]+)", step.get("run", "")))
                assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40)), f"{file.name}: {name}"
    assert {"test-fast", "test", "test-all", "dist"} <= made
    assert made <= targets


def test_hooks_and_lock_have_the_same_linter() -> None:
    locked = set(re.findall(r"^ruff==\S+", read("requirements.lock"), re.MULTILINE))
    assert set(re.findall(r"ruff==[0-9.]+", read(".pre-commit-config.yaml"))) == locked


def test_the_changelog_has_dated_versions_and_short_lines() -> None:
    text = read("CHANGELOG.md")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
    assert [line for line in text.splitlines() if len(line) >= 120] == []


def test_a_citation_names_this_version() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == __version__


@pytest.mark.parametrize("file", ["llms.txt", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(file: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", read(file)) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

"""lm-evaluation-harness where it is not installed, and its results as rows."""

from __future__ import annotations

import sys

import pytest

from toast_cli.evaluation.harness.tasks import TaskMetric, list_task_metrics, require_harness, run_harness
from toast_cli.utils.errors import ToastError


def test_a_missing_harness_is_an_error_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ToastError) as error:
        require_harness()
    assert error.value.code == "cli.missing-package" and "lm-eval>=" in error.value.what_to_do
    with pytest.raises(SystemExit) as ended:
        run_harness()
    assert str(ended.value.code).startswith("Error: The package lm-eval is not installed.")


def test_every_filter_of_an_answer_has_a_metric_of_its_own() -> None:
    values = {"alias": "sums", "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1,
              "exact_match,flexible": 0.75, "exact_match_stderr,flexible": "N/A", "perplexity,none": 3}  # fmt: skip
    better = {"sums": {"exact_match": True, "perplexity": False}}
    assert list_task_metrics({"results": {"sums": values}, "higher_is_better": better}) == [
        TaskMetric("sums", "exact_match (strict)", 0.5, 0.1, True),
        TaskMetric("sums", "exact_match (flexible)", 0.75, None, True),
        TaskMetric("sums", "perplexity", 3.0, None, False),
    ]

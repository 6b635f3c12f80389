"""Evaluation of a run on tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean


@dataclass(frozen=True)
class HarnessRequest:
    """A request to evaluate runs on tasks.

    Attributes:
        tasks: names of tasks, groups or tags, patterns of these, or paths of task files.
        folder: a folder of further task files; None for those of the harness alone.
        shots: the number of examples before each question; None for that of each task.
        limit: the number of questions of each task; None for all.
        chat: whether questions are written as turns, in the format of the run.
        batch_size: the number of texts in a forward pass.
    """

    tasks: tuple[str, ...]
    folder: Path | None = None
    shots: int | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: int = 8


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        ToastError: it is not.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ToastError(
            "The package lm-eval is not installed.",
            what_to_do='pip install "lm-eval>=0.4.13".',
            code="cli.missing-package",
        ) from error


def run_harness() -> None:
    """Run the command line of the harness, in which `--model toast --model_args run=RUN` is known."""
    try:
        require_harness()
        from lm_eval.__main__ import cli_evaluate

        import toast_cli.evaluation.harness.language_model  # noqa: F401  # registers the model

        cli_evaluate()
    except ToastError as error:
        sys.exit(f"Error: {error}")


def find_tasks(request: HarnessRequest) -> tuple[Any, list[str]]:
    """Return the task manager of the harness, and the names of the tasks of a request.

    Raises:
        UsageError: the folder does not exist, or a name matches no task and is no file.
    """
    from lm_eval.tasks import TaskManager

    if request.folder is not None and not request.folder.is_dir():
        raise UsageError(
            f"{request.folder} is not a folder.", what_to_do="Check --tasks-path.", code="data.missing-folder"
        )
    if request.folder is not None:  # the harness takes seconds to list its own tasks
        own = TaskManager(include_path=str(request.folder), include_defaults=False)
        matches = [[known for known in own.all_subtasks if fnmatch(known, name)] for name in request.tasks]
        if all(matches):
            return own, list(dict.fromkeys(chain.from_iterable(matches)))
    manager = TaskManager(include_path=None if request.folder is None else str(request.folder))
    found: list[str] = []
    for name in request.tasks:
        matching = [known for known in manager.all_tasks if fnmatch(known, name)]
        if not matching and not Path(name).is_file():
            raise UsageError(
                f"lm-eval has no task '{name}'.",
                what_to_do=did_you_mean(name, manager.all_tasks) or "Run 'lm-eval ls tasks' to list them.",
                code="task.unknown-task",
            )
        found += matching or [name]
    return manager, list(dict.fromkeys(found))


def evaluate_tasks(
    runs: Sequence[Path], request: HarnessRequest, weights: str | None, device: str | None, alpha: float | None
) -> dict[str, dict[str, Any]]:
    """Return the results of every run as the harness has them, keyed by the run's path.

    They have `results` by task, `versions` and `n-shot` of the tasks, and `groups`, if there are any.

    Raises:
        UsageError: a task does not exist, or a run is not one of a language model.
        ToastError: a run or the data of a task cannot be loaded.
    """
    require_harness()
    # The harness warns of every model that it has not loaded itself.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate

    from toast_cli.evaluation.harness.language_model import HarnessModel

    manager, names = find_tasks(request)
    results = {}
    for run in runs:
        model = HarnessModel(run, weights, alpha, device, batch_size=request.batch_size)
        if request.chat and not model.tokenizer.chat_template:
            raise UsageError(
                f"{run} has no format of turns.",
                "It was trained on documents, or its tokenizer has no chat template.",
                "Leave --chat out.",
                code="text.no-chat-template",
            )
        try:
            measured: Any = simple_evaluate(
                model=model,
                tasks=names,
                num_fewshot=request.shots,
                limit=request.limit,
                apply_chat_template=request.chat,
                task_manager=manager,
                log_samples=False,
            )
        except ToastError:
            raise
        except Exception as error:  # task files are programs of others, and their data comes from the hub
            raise ToastError(
                f"The tasks {', '.join(names)} could not be evaluated.",
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "Check that the data of each task is on this machine or can be downloaded.",
                code="task.harness-failed",
            ) from error
        kept = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples")
        results[str(run)] = {name: measured[name] for name in kept if measured.get(name)}
    return results


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task: its value and standard error, and whether a higher value is better, if that is known."""

    task: str
    metric: str
    value: float
    error: float | None
    higher_is_better: bool | None


def list_task_metrics(results: dict[str, Any]) -> list[TaskMetric]:
    """Return the metrics of one run, task by task. Of several filters of an answer, each has its own."""
    metrics = []
    better = results.get("higher_is_better", {})
    for task, values in results["results"].items():
        for key, value in values.items():
            name, _, kind = key.partition(",")
            if name.endswith("_stderr") or not kind or not isinstance(value, int | float):
                continue
            error = values.get(f"{name}_stderr,{kind}")
            shown = name if kind == "none" else f"{name} ({kind})"
            metrics.append(
                TaskMetric(
                    task,
                    shown,
                    float(value),
                    float(error) if isinstance(error, int | float) else None,
                    better.get(task, {}).get(name),
                )
            )
    return metrics

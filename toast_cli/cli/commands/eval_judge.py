"""`toast eval --judge`: scores by an LLM judge, as in table 3 of the paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli.cli.find_run import load_writer
from toast_cli.cli.output.console import err, print_line
from toast_cli.cli.output.progress import TerminalReporter
from toast_cli.evaluation.judge_questions import read_questions
from toast_cli.evaluation.llm_judge import Judge, answer_questions, average_by_category, judge_answers
from toast_cli.storage.checksums import drop_damaged_lines
from toast_cli.utils.errors import UsageError
from toast_cli.utils.names import escape_newlines, to_file_name

DEFAULT_JUDGE = "gpt-4"
"""The judge at OpenAI's endpoint, unless another one is named: that of the paper."""


def run_judge_eval(
    runs: list[Path],
    questions_file: Path,
    judge: Judge,
    weights: str | None,
    device: str | None,
    max_new_tokens: int,
    seed: int,
    parallel: int,
) -> dict[str, dict[str, Any]]:
    """Return the mean score per category of every run, keyed by the run's path.

    Answers and judgements are stored with each run, so an interrupted evaluation continues where it stopped.
    """
    questions = read_questions(questions_file)
    turns = sum(len(question.turns) for question in questions)
    scores = {}
    for run in runs:
        kept = get_judge_folder(run, questions_file)
        for file in (kept / "answers.jsonl", kept / "judgements.jsonl"):
            if dropped := drop_damaged_lines(file):
                lines = "1 damaged or truncated line" if dropped == 1 else f"{dropped} damaged or truncated lines"
                print_line(f"{file}: dropped {lines}; requesting again.", err)
        with TerminalReporter() as reporter:
            answers = list(
                reporter.track_progress(
                    answer_questions(
                        partial(load_writer, run, weights, device),
                        questions,
                        kept / "answers.jsonl",
                        seed,
                        max_new_tokens,
                        weights,
                    ),
                    turns,
                    f"{run.name}: answering",
                )
            )
            scored = list(
                reporter.track_progress(
                    judge_answers(judge, answers, kept / "judgements.jsonl", parallel), turns, f"{run.name}: judging"
                )
            )
        unscored = [f"{turn.describe()} ({reply.why})" for turn, reply in scored if reply.why]
        if unscored:
            more = f" and {len(unscored) - 3} more" if len(unscored) > 3 else ""
            print_line(
                f"{run}: {judge.describe()} returned no score for {len(unscored)} of {turns} answers, which are "
                f"excluded: {', '.join(unscored[:3])}{more}.",
                err,
            )
        print_line(f"Answers and judgements: {kept}", err)
        scores[str(run)] = average_by_category(scored)
    return scores


def make_judge(model: str | None, url: str | None, temperature: str) -> Judge:
    """Return the judge of the options.

    Raises:
        UsageError: the temperature is neither a number from 0 to 2 nor `none`.
    """
    try:
        number = None if temperature == "none" else float(temperature)
        if number is not None and not 0 <= number <= 2:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"Invalid value for --judge-temperature: '{temperature}'.",
            what_to_do="Give a number from 0 to 2, or none, which leaves it out of the requests.",
            code="cli.invalid-value",
        ) from error
    return Judge(model or (DEFAULT_JUDGE if url is None else None), url, temperature=number)


def get_judge_folder(run: Path, questions_file: Path) -> Path:
    """Return the folder for a run's answers to a questions file: in the run folder, or next to an exported file."""
    home = run / "judge" if run.is_dir() else run.with_name(f"{run.name}.judge")
    return home / to_file_name(questions_file.stem)


def build_judge_table(scores: dict[str, dict[str, Any]], judge: Judge) -> Table:
    """Return a table with one row per run and one column per category (table 3)."""
    table = Table(title=escape_newlines(f"Scores from 1 to 10, judged by {judge.describe()}"), title_justify="left")
    table.add_column("run")
    categories = list(next(iter(scores.values())))
    for category in categories:
        table.add_column(escape_newlines(category), justify="right")
    for run, means in scores.items():
        table.add_row(
            escape_newlines(run), *("–" if means[name] is None else f"{means[name]:.2f}" for name in categories)
        )
    return table

"""`toast eval`: evaluate a run's accuracy, its attention, or its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from toast_cli.cli import options


def run_eval(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="With --dataset: fields of that data set, e.g. dataset.image_column=file."
        ),
    ] = None,
    run: options.RunsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Data split: train, val, test, or all of them together. [default: test; of texts given by --dataset, "
            "all of them]"
        ),
    ] = None,
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Evaluate the attention maps: overlap with object masks (if available), deletion and insertion "
            "curves, and the shift between passes. Of a language model: the share of attention on each part of its "
            "texts.",
        ),
    ] = False,
    alpha: options.AlphaOption = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Evaluate at feedback scales from 0 to 2.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --attention or --sweep: evaluate a random subset of this many images or texts (seed of the "
            "run). With --tasks: the first questions of each task.",
        ),
    ] = None,
    curve_images: Annotated[
        int,
        typer.Option(
            min=0, help="With --attention: number of images for the deletion and insertion curves; 0 skips them."
        ),
    ] = 32,
    layer: Annotated[
        int, typer.Option(help="With --attention or --sweep: layer to evaluate; -1 is the last one.")
    ] = -1,
    head: options.HeadOption = "mean",
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="Segmentation inference: slide (sliding window, aspect ratio kept) or whole (image resized to the "
            "input size). [default: as in the run's recipe]"
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Test-time flips: average the probabilities of each image and its mirror image. Twice the time; not "
            "for images in which left and right matter, such as text.",
        ),
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Of a language model on conversations: also generate an answer to each prompt, greedily, and count "
            "those that are equal to the answers of the data, without white space around them.",
        ),
    ] = False,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="Answer the questions in this JSON Lines file (question_id, category, and text or turns), scored by "
            "an LLM."
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            help="With --judge: model that scores the answers. [default: gpt-4; with --judge-url, requests name none]"
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="With --judge: URL of an OpenAI-compatible API. [default: OpenAI]")
    ] = None,
    judge_temperature: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|none", help="With --judge: temperature of the judge; none leaves it out of the requests."
        ),
    ] = "0",
    parallel: Annotated[int, typer.Option(min=1, help="With --judge: number of requests to the judge at once.")] = 1,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Evaluate a language model on tasks of lm-evaluation-harness: names, groups or patterns, separated by "
            "commas, e.g. hellaswag,arc_easy, or task files."
        ),
    ] = None,
    tasks_path: Annotated[Path | None, typer.Option(help="With --tasks: folder of further task files.")] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="With --tasks: examples before each question. [default: as each task says]"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="With --tasks: write questions as turns, in the format of the run.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="With --judge or --answers: maximum number of tokens per answer.")
    ] = 512,
    seed: Annotated[int, typer.Option(help="With --judge: random seed of the answers.")] = 0,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also write an HTML page with the numbers, those of each class or label, and the worst mistakes as "
            "images.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the results to this JSON file. Tables and pictures are written next to it, and not into "
            "the run folder."
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Evaluate a run on a data split.

    By default, reports the task's metrics on the run's own data set, and writes the answers as tables and pictures into
    RUN/evaluations; --dataset selects another data set with the same classes, or some of them, or other texts, which
    are measured whole. --attention evaluates
    the attention maps, --sweep varies the strength of the feedback, --judge has an LLM score the run's answers, and
    --tasks measures a language model on the tasks of lm-evaluation-harness.
    """
    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.utils.errors import UsageError

    if judge is not None and (dataset is not None or overrides):
        raise UsageError(
            "--judge and --dataset cannot be combined: the questions are the data.", code="cli.conflicting-options"
        )
    given = {"--attention": attention, "--sweep": sweep, "--judge": judge is not None, "--report": report, "--tta": tta}
    given |= {"--answers": answers, "--dataset": dataset is not None, "--split": split is not None}
    given |= {"--evaluation": evaluation is not None, "--precision": precision is not None}
    given |= {f"{overrides[0] if overrides else ''}": bool(overrides)}
    if tasks is not None and any(given.values()):
        other = next(name for name, is_given in given.items() if is_given)
        raise UsageError(
            f"--tasks and {other} cannot be combined: the tasks are the data.", code="cli.conflicting-options"
        )
    if tasks is None and (tasks_path is not None or shots is not None or chat):
        raise UsageError("--tasks-path, --shots and --chat need --tasks.", code="cli.missing-option")
    if judge is None and tasks is None and run is not None and len(run) > 1:
        raise UsageError(
            "Only --judge and --tasks accept several runs.",
            what_to_do="Run 'toast compare RUN RUN ...' to compare runs.",
            code="cli.too-many-runs",
        )
    if sum((attention, sweep, judge is not None)) > 1 or (sweep and alpha is not None):
        raise UsageError(
            "--attention, --sweep and --judge cannot be combined, and --sweep sets --alpha itself.",
            code="cli.conflicting-options",
        )
    if split == "all" and (attention or sweep):
        raise UsageError(
            "--split all cannot be combined with --attention or --sweep.",
            "They measure one split.",
            "Name a split.",
            code="cli.conflicting-options",
        )
    if evaluation is not None and (attention or sweep or judge is not None):
        raise UsageError(
            "--evaluation cannot be combined with --attention, --sweep or --judge.",
            "They always use the backbone's input size.",
            code="cli.conflicting-options",
        )
    if report and (attention or sweep or judge is not None):
        raise UsageError("--report is not for --attention, --sweep or --judge.", code="cli.conflicting-options")
    if answers and (attention or sweep or report or tta or judge is not None):
        raise UsageError(
            "--answers cannot be combined with --attention, --sweep, --report, --tta or --judge.",
            what_to_do="Start one evaluation for each.",
            code="cli.conflicting-options",
        )
    if tta and (attention or sweep or judge is not None):
        raise UsageError(
            "--tta cannot be combined with --attention, --sweep or --judge.",
            "They evaluate single images as they are, or texts.",
            code="cli.conflicting-options",
        )
    if limit is not None and not (attention or sweep or tasks is not None):
        raise UsageError(
            "--limit needs --attention, --sweep or --tasks.",
            "Accuracy is always computed on the full split.",
            code="cli.missing-option",
        )

    from toast_cli.cli.commands.eval_attention import run_attention_eval, run_strength_sweep
    from toast_cli.cli.commands.eval_judge import build_judge_table, make_judge, run_judge_eval
    from toast_cli.cli.commands.eval_texts import run_text_attention, run_text_sweep
    from toast_cli.cli.output.answers import write_evaluation_files, write_exact_answers
    from toast_cli.cli.output.console import err, print_json, print_line, print_table
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.run_summary import build_results_table
    from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
    from toast_cli.evaluation.evaluate_run import evaluate_run
    from toast_cli.evaluation.open_run import DEFAULT_SPLIT, RunRequest
    from toast_cli.evaluation.texts.exact_answers import AnswerRequest, ExactAnswers
    from toast_cli.evaluation.texts.runs import is_language_run
    from toast_cli.training.evaluate import SplitAnswers
    from toast_cli.utils.errors import ToastError
    from toast_cli.utils.files import write_json

    results: dict[str, Any]
    written, failure = "", None
    runs = run or [resolve_run_path(None)]
    if tasks is not None:
        from toast_cli.cli.commands.eval_tasks import run_task_eval
        from toast_cli.evaluation.harness.tasks import HarnessRequest

        names = tuple(name.strip() for name in tasks.split(",") if name.strip())
        results, table = run_task_eval(
            runs, HarnessRequest(names, tasks_path, shots, limit, chat), weights, device, alpha
        )
    elif judge is not None:
        scorer = make_judge(judge_model, judge_url, judge_temperature)
        results = run_judge_eval(runs, judge, scorer, weights, device, max_new_tokens, seed, parallel)
        table = build_judge_table(results, scorer)
    elif attention or sweep:
        request = AttentionEvalRequest(
            runs[0], dataset, data_dir, split or "test", weights, device, precision, alpha, limit, layer,
            options.parse_head(head), curve_images, overrides=tuple(overrides or ()),
        )  # fmt: skip
        if is_language_run(request.path):
            # Other texts are measured whole, as without these options.
            request = replace(request, split=split or DEFAULT_SPLIT)
            results, table = (run_text_sweep if sweep else run_text_attention)(request, out)
        else:
            results, table = (run_strength_sweep if sweep else run_attention_eval)(request, out)
    else:
        with TerminalReporter() as reporter:
            run_request = RunRequest(
                runs[0],
                dataset,
                data_dir,
                split or DEFAULT_SPLIT,
                weights,
                device,
                precision,
                alpha,
                overrides=tuple(overrides or ()),
            )
            found: list[SplitAnswers] = []
            texts: list[ExactAnswers] = []
            compared = AnswerRequest(max_new_tokens, texts.append) if answers else None
            variant = "-".join(filter(None, (evaluation, "tta" if tta else None))) or None
            results = evaluate_run(run_request, reporter, evaluation, found.append, report, tta, compared)
        table = build_results_table(f"{runs[0]}: {results['method']} on {results['data']}", results)
        try:
            for text in texts:
                folder, written = write_exact_answers(text, run_request, results, out)
                results["folder"] = str(folder)
            for each in found:
                folder, written = write_evaluation_files(
                    each, run_request, results, table, evaluation=variant, out=out, report=report
                )
                results["folder"] = str(folder)
        except ToastError as error:  # the numbers are shown first
            failure = error
    if out is not None:
        write_json(out, results)
    if as_json:
        print_json(results)
    else:
        print_table(table)
    if written:
        print_line(written, err)
    if failure is not None and (report or out is not None):
        raise failure
    if failure is not None:
        print_line(f"No tables and pictures were written. {failure.what} Use --out to write them elsewhere.", err)

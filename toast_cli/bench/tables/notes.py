"""What a table says below itself: what its numbers are means over, what is bold and why the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toast_cli.bench.suite import TableLayout
from toast_cli.bench.tables.aggregate import ResultAggregator
from toast_cli.bench.tables.model import FilledRow, NumberCell, PlainCell, TableColumn
from toast_cli.bench.tables.significance import PAIRED_IMAGES, PAIRED_QUESTIONS, PAIRED_SEEDS, SIGNIFICANCE_LEVEL

_TEST_DESCRIPTIONS = {
    PAIRED_IMAGES: "over the same test images, each counted by the share of seeds that have it right",
    PAIRED_QUESTIONS: "over the same questions, each counted by its mean score over seeds",
    PAIRED_SEEDS: "over seeds",
}


def format_table_notes(
    measures: ResultAggregator, layout: TableLayout, columns: Sequence[TableColumn], lines: Sequence[FilledRow]
) -> Iterator[str]:
    """The sentences below a table."""
    numbers = [cell for line in lines for cell in line.cells if isinstance(cell, NumberCell)]
    if not numbers:
        yield "No final run is done yet."
    else:
        yield from _describe_means(columns, lines, numbers)
        yield from _describe_significance(columns, lines, numbers)
    yield from _describe_judge(measures, columns)
    yield from _describe_regions(measures, columns, lines)
    if any(line.paper for line in lines):
        yield "The second line of a row is the paper's."
    yield from _describe_starts(measures, layout)
    unasked = measures.results.board.count_unrequested_runs()
    if unasked:
        runs = (
            "1 finished run of another seed, row or setting is"
            if unasked == 1
            else (f"{unasked:,} finished runs of other seeds, rows or settings are")
        )
        yield f"Not shown: {runs} in the ledger; with the options that made them, they come back."


def _describe_means(
    columns: Sequence[TableColumn], lines: Sequence[FilledRow], numbers: Sequence[NumberCell]
) -> Iterator[str]:
    """What means and spreads are over."""
    seeds = sorted({record["seed"] for number in numbers for record in number.runs})
    if len(seeds) == 1:
        yield f"Numbers of a single seed, {seeds[0]}: no spread is known."
    else:
        listed = ", ".join(map(str, seeds))
        single = "; a number without ± is of one seed" if any(number.std is None for number in numbers) else ""
        yield f"Mean ± sample standard deviation over seeds {listed}{single}."
    if any(number.part for number in numbers):
        yield "(1 of 2): so many of the seeds that are wanted are done."
    several = [
        (column, place)
        for place, column in enumerate(columns)
        if any(_count_datasets_per_seed(line.cells[place]) > 1 for line in lines)
    ]
    within = [column.heading for column, place in several if column.shows not in ("parameters", "flops")]
    if within:
        yield (
            f"{_join_unique(within)}: of each seed, the mean over the row's data sets; mean and ± are over the seeds "
            "that have all of them."
        )
    if any(column.shows.startswith("judge:") for column in columns):
        yield "Scores: of each seed, the mean over the questions that were scored."
    sizes = [column.heading for place, column in enumerate(columns) if column.shows in ("parameters", "flops")]
    if any(_has_differing_sizes(line.cells[place]) for place, column in enumerate(columns) for line in lines) and sizes:
        yield f"{_join_unique(sizes)}: mean over the row's data sets, whose heads differ."


def _count_datasets_per_seed(cell: object) -> int:
    """Over how many data sets each seed's value is a mean."""
    return len(cell.runs) // cell.count if isinstance(cell, NumberCell) and cell.runs else 1


def _has_differing_sizes(cell: object) -> bool:
    return isinstance(cell, PlainCell) and len({record["trained_parameters"] for record in cell.runs}) > 1


def _describe_significance(
    columns: Sequence[TableColumn], lines: Sequence[FilledRow], numbers: Sequence[NumberCell]
) -> Iterator[str]:
    """Which test makes a number bold, and why columns have no bold number."""
    pairs = {found.over for number in numbers for found in number.against.values() if found.over}
    tests = "; ".join(
        _format_test(over, columns, lines, len(pairs) > 1) for over in _TEST_DESCRIPTIONS if over in pairs
    )
    grouped = any(line.group for line in lines)
    if tests:
        rest = "every other row of its group" if grouped else "every other row measured here"
        yield f"Bold: better than {rest}, each with p < {SIGNIFICANCE_LEVEL} (paired t-test {tests})."
    reasons: dict[str, list[str]] = {}
    compared = 0
    for place, column in enumerate(columns):
        kind = column.shows.partition(":")[0]
        if kind in _UNTESTED_REASONS:
            if any(isinstance(line.cells[place], NumberCell) for line in lines):
                reasons.setdefault(_UNTESTED_REASONS[kind], []).append(
                    column.span if column.dataset and column.span else column.heading
                )
        elif kind not in ("parameters", "flops"):
            for group in dict.fromkeys(line.group for line in lines):
                cells = [
                    cell for line in lines if line.group == group and isinstance(cell := line.cells[place], NumberCell)
                ]
                compared += bool(cells)
                if cells and (reason := _explain_no_bold(cells)):
                    reasons.setdefault(reason, []).append(f"{column.heading}, {group}" if group else column.heading)
    for reason, headings in reasons.items():
        every = len(headings) == compared > 1 and reason not in _UNTESTED_REASONS.values()
        yield f"Not bold: {'every column' if every else _join_unique(headings)} ({reason})."


_UNTESTED_REASONS = {
    "validation": "hyper-parameters or epochs were chosen by it",
    "minutes": "times depend on the machine",
    "attention": "a share says where a model looks, not which one is better",
}


def _format_test(over: str, columns: Sequence[TableColumn], lines: Sequence[FilledRow], several: bool) -> str:
    """What a test pairs, and where there are several, the columns in which it does."""
    where = [
        column.heading
        for place, column in enumerate(columns)
        for line in lines
        if isinstance(cell := line.cells[place], NumberCell)
        and any(found.over == over for found in cell.against.values())
    ]
    return _TEST_DESCRIPTIONS[over] + (f" in {_join_unique(where)}" if several else "")


def _explain_no_bold(cells: Sequence[NumberCell]) -> str:
    """Why none of the rows of a group is bold; empty where one is."""
    if any(cell.best for cell in cells):
        return ""
    if len(cells) == 1:
        return "one row alone is measured"
    if any(found.p is None for cell in cells for found in cell.against.values()):
        return "a single seed, and no answers to the same items, is nothing to pair"
    return "no row is significantly better than every other"


def _describe_judge(measures: ResultAggregator, columns: Sequence[TableColumn]) -> Iterator[str]:
    judgements = measures.judge_scores
    if judgements.judge is not None and any(column.shows.startswith("judge:") for column in columns):
        rest = f" Left out: scores by {_join_unique(judgements.others)}." if judgements.others else ""
        yield f"Scored by {judgements.judge}.{rest}"


def _describe_regions(
    measures: ResultAggregator, columns: Sequence[TableColumn], lines: Sequence[FilledRow]
) -> Iterator[str]:
    """What the object is on each data set whose attention is shown: a box and an outline are not alike."""
    found: dict[str, str] = {}
    for place, column in enumerate(columns):
        if column.shows.startswith("attention:") and column.dataset is not None:
            for line in lines:
                cell = line.cells[place]
                if isinstance(cell, NumberCell) and column.dataset not in found:
                    found[column.dataset] = measures.results.region(cell.runs[0])
    by_region: dict[str, list[str]] = {}
    for dataset, region in found.items():
        by_region.setdefault(region, []).append(dataset)
    if found:
        named = "; ".join(f"{region} ({', '.join(datasets)})" for region, datasets in by_region.items())
        yield f"The object, in which a share of attention is measured: {named}."


def _describe_starts(measures: ResultAggregator, layout: TableLayout) -> Iterator[str]:
    """Where the feedback paths come from of rows that are to have a pre-tuned one."""
    experiment, begun = measures.results.board.experiment, dict[str, list[str]]()
    for heading, row in layout.rows.items():
        if row.run is None or not experiment.suite.rows[row.run].pretuned:
            continue
        for dataset in sorted({dataset for dataset, name in experiment.cells if name == row.run})[:1]:
            recipe = experiment.recipe(dataset, row.run, "final", experiment.suite.seeds[0])
            start = f"{getattr(recipe.method, 'start', 'no')} start, for want of an --init-from"
            begun.setdefault(recipe.init_from or start, []).append(heading)
    for start, headings in begun.items():
        yield f"Feedback paths of {', '.join(headings)}: {start}."


def _join_unique(words: Iterable[str]) -> str:
    """Each once; by semicolons where one of them has a comma of its own."""
    words = list(words)
    return ("; " if any("," in word for word in words) else ", ").join(dict.fromkeys(words))

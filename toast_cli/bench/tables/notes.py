"""Notes below a table: what its means are taken over, which numbers are bold, and why others are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toast_cli.bench.suite import TableLayout
from toast_cli.bench.tables.aggregate import ResultAggregator
from toast_cli.bench.tables.model import FilledRow, NumberCell, PlainCell, TableColumn
from toast_cli.bench.tables.significance import PAIRED_IMAGES, PAIRED_QUESTIONS, PAIRED_SEEDS, SIGNIFICANCE_LEVEL

_TEST_DESCRIPTIONS = {
    PAIRED_IMAGES: "over the same test images, each scored by the share of seeds that classify it correctly",
    PAIRED_QUESTIONS: "over the same questions, each scored by its mean over seeds",
    PAIRED_SEEDS: "over seeds",
}


def format_table_notes(
    measures: ResultAggregator, layout: TableLayout, columns: Sequence[TableColumn], lines: Sequence[FilledRow]
) -> Iterator[str]:
    """Yield the notes of a table."""
    numbers = [cell for line in lines for cell in line.cells if isinstance(cell, NumberCell)]
    if not numbers:
        yield "No final run has finished yet."
    else:
        yield from _describe_means(columns, lines, numbers)
        yield from _describe_significance(columns, lines, numbers)
    yield from _describe_judge(measures, columns)
    yield from _describe_regions(measures, columns, lines)
    if any(line.paper for line in lines):
        yield "The second line of a row shows the paper's numbers."
    yield from _describe_starts(measures, layout)
    unrequested = measures.results.board.count_unrequested_runs()
    if unrequested:
        runs = (
            "1 finished run of another seed, row or setting is"
            if unrequested == 1
            else (f"{unrequested:,} finished runs of other seeds, rows or settings are")
        )
        yield f"Not shown: {runs} in the ledger. Use the options that made them to show them."


def _describe_means(
    columns: Sequence[TableColumn], lines: Sequence[FilledRow], numbers: Sequence[NumberCell]
) -> Iterator[str]:
    """Yield what means and standard deviations are taken over."""
    seeds = sorted({record["seed"] for number in numbers for record in number.runs})
    if len(seeds) == 1:
        yield f"Single seed, {seeds[0]}: no standard deviation."
    else:
        listed = ", ".join(map(str, seeds))
        single = "; numbers without ± are from a single seed" if any(number.std is None for number in numbers) else ""
        yield f"Mean ± sample standard deviation over seeds {listed}{single}."
    if any(number.part for number in numbers):
        yield "(1 of 2): 1 of the 2 seeds has finished."
    several = [
        (column, place)
        for place, column in enumerate(columns)
        if any(_count_datasets_per_seed(line.cells[place]) > 1 for line in lines)
    ]
    within = [column.heading for column, place in several if column.shows not in ("parameters", "flops")]
    if within:
        yield (
            f"{_join_unique(within)}: each seed's value is its mean over the row's data sets; mean and ± are over the "
            "seeds that have finished all of them."
        )
    if any(column.shows.startswith("judge:") for column in columns):
        yield "Scores: each seed's value is its mean over the scored questions."
    sizes = [column.heading for place, column in enumerate(columns) if column.shows in ("parameters", "flops")]
    if any(_has_differing_sizes(line.cells[place]) for place, column in enumerate(columns) for line in lines) and sizes:
        yield f"{_join_unique(sizes)}: mean over the row's data sets, whose heads differ."


def _count_datasets_per_seed(cell: object) -> int:
    """Return the number of data sets that each seed's value averages."""
    return len(cell.runs) // cell.count if isinstance(cell, NumberCell) and cell.runs else 1


def _has_differing_sizes(cell: object) -> bool:
    return isinstance(cell, PlainCell) and len({record["trained_parameters"] for record in cell.runs}) > 1


def _describe_significance(
    columns: Sequence[TableColumn], lines: Sequence[FilledRow], numbers: Sequence[NumberCell]
) -> Iterator[str]:
    """Yield which test determines bold numbers, and why columns have none."""
    pairs = {result.over for number in numbers for result in number.against.values() if result.over}
    tests = "; ".join(
        _format_test(over, columns, lines, len(pairs) > 1) for over in _TEST_DESCRIPTIONS if over in pairs
    )
    grouped = any(line.group for line in lines)
    if tests:
        rest = "every other row of its group" if grouped else "every other row measured here"
        yield f"Bold: better than {rest}, with p < {SIGNIFICANCE_LEVEL} for each (paired t-test {tests})."
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
    "validation": "used to select hyper-parameters or epochs",
    "minutes": "times depend on the machine",
    "attention": "a share shows where a model looks, not which model is better",
}


def _format_test(over: str, columns: Sequence[TableColumn], lines: Sequence[FilledRow], several: bool) -> str:
    """Return what a test pairs, and in which columns if there are several tests."""
    where = [
        column.heading
        for place, column in enumerate(columns)
        for line in lines
        if isinstance(cell := line.cells[place], NumberCell)
        and any(result.over == over for result in cell.against.values())
    ]
    return _TEST_DESCRIPTIONS[over] + (f" in {_join_unique(where)}" if several else "")


def _explain_no_bold(cells: Sequence[NumberCell]) -> str:
    """Return why no row of a group is bold, or an empty text if one is."""
    if any(cell.best for cell in cells):
        return ""
    if len(cells) == 1:
        return "only one row is measured"
    if any(result.p is None for cell in cells for result in cell.against.values()):
        return "nothing to pair: a single seed, and no answers to the same items"
    return "no row is significantly better than every other"


def _describe_judge(measures: ResultAggregator, columns: Sequence[TableColumn]) -> Iterator[str]:
    judgements = measures.judge_scores
    if judgements.judge is not None and any(column.shows.startswith("judge:") for column in columns):
        rest = f" Not shown: scores by {_join_unique(judgements.others)}." if judgements.others else ""
        yield f"Scored by {judgements.judge}.{rest}"


def _describe_regions(
    measures: ResultAggregator, columns: Sequence[TableColumn], lines: Sequence[FilledRow]
) -> Iterator[str]:
    """Yield the kind of region in which each data set's attention is measured, such as a box or an outline."""
    regions: dict[str, str] = {}
    for place, column in enumerate(columns):
        if column.shows.startswith("attention:") and column.dataset is not None:
            for line in lines:
                cell = line.cells[place]
                if isinstance(cell, NumberCell) and column.dataset not in regions:
                    regions[column.dataset] = measures.results.get_region_kind(cell.runs[0])
    by_region: dict[str, list[str]] = {}
    for dataset, region in regions.items():
        by_region.setdefault(region, []).append(dataset)
    if regions:
        named = "; ".join(f"{region} ({', '.join(datasets)})" for region, datasets in by_region.items())
        yield f"Region in which attention on the object is measured: {named}."


def _describe_starts(measures: ResultAggregator, layout: TableLayout) -> Iterator[str]:
    """Yield where the feedback paths of pre-tuned rows come from."""
    experiment, headings_by_start = measures.results.board.experiment, dict[str, list[str]]()
    for heading, row in layout.rows.items():
        if row.run is None or not experiment.suite.rows[row.run].pretuned:
            continue
        for dataset in sorted({dataset for dataset, name in experiment.cells if name == row.run})[:1]:
            recipe = experiment.build_recipe(dataset, row.run, "final", experiment.suite.seeds[0])
            start = f"{getattr(recipe.method, 'start', 'no')} start, no --init-from given"
            headings_by_start.setdefault(recipe.init_from or start, []).append(heading)
    for start, headings in headings_by_start.items():
        yield f"Feedback paths of {', '.join(headings)}: {start}."


def _join_unique(words: Iterable[str]) -> str:
    """Join the distinct words, with semicolons if one of them contains a comma."""
    words = list(words)
    return ("; " if any("," in word for word in words) else ", ").join(dict.fromkeys(words))

"""What a table says below itself: what its numbers are means over, what is bold and why the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toast_cli.bench.suite import Layout
from toast_cli.bench.tables.aggregate import Measures
from toast_cli.bench.tables.model import Column, Line, Number, Size
from toast_cli.bench.tables.significance import IMAGES, LEVEL, QUESTIONS, SEEDS

_TESTS = {
    IMAGES: "over the same test images, each counted by the share of seeds that have it right",
    QUESTIONS: "over the same questions, each counted by its mean score over seeds",
    SEEDS: "over seeds",
}


def notes(measures: Measures, layout: Layout, columns: Sequence[Column], lines: Sequence[Line]) -> Iterator[str]:
    """The sentences below a table."""
    numbers = [cell for line in lines for cell in line.cells if isinstance(cell, Number)]
    if not numbers:
        yield "No final run is done yet."
    else:
        yield from _over(columns, lines, numbers)
        yield from _bold(columns, lines, numbers)
    yield from _judge(measures, columns)
    yield from _regions(measures, columns, lines)
    if any(any(line.paper) for line in lines):
        yield "The second line of a row is the paper's."
    yield from _starts(measures, layout)
    unasked = measures.results.board.unasked()
    if unasked:
        runs = (
            "1 finished run of another seed, row or setting is"
            if unasked == 1
            else (f"{unasked:,} finished runs of other seeds, rows or settings are")
        )
        yield f"Not shown: {runs} in the ledger; with the options that made them, they come back."


def _over(columns: Sequence[Column], lines: Sequence[Line], numbers: Sequence[Number]) -> Iterator[str]:
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
        if any(_per_seed(line.cells[place]) > 1 for line in lines)
    ]
    within = [column.heading for column, place in several if column.shows not in ("parameters", "flops")]
    if within:
        yield (
            f"{_listed(within)}: of each seed, the mean over the row's data sets; mean and ± are over the seeds that "
            "have all of them."
        )
    if any(column.shows.startswith("judge:") for column in columns):
        yield "Scores: of each seed, the mean over the questions that were scored."
    sizes = [column.heading for place, column in enumerate(columns) if column.shows in ("parameters", "flops")]
    if any(_differ(line.cells[place]) for place, column in enumerate(columns) for line in lines) and sizes:
        yield f"{_listed(sizes)}: mean over the row's data sets, whose heads differ."


def _per_seed(cell: object) -> int:
    """Over how many data sets each seed's value is a mean."""
    return len(cell.runs) // cell.count if isinstance(cell, Number) and cell.runs else 1


def _differ(cell: object) -> bool:
    return isinstance(cell, Size) and len({record["trained_parameters"] for record in cell.runs}) > 1


def _bold(columns: Sequence[Column], lines: Sequence[Line], numbers: Sequence[Number]) -> Iterator[str]:
    """Which test makes a number bold, and why columns have no bold number."""
    pairs = {found.over for number in numbers for found in number.against.values() if found.over}
    tests = "; ".join(_test(over, columns, lines, len(pairs) > 1) for over in _TESTS if over in pairs)
    grouped = any(line.group for line in lines)
    if tests:
        rest = "every other row of its group" if grouped else "every other row measured here"
        yield f"Bold: better than {rest}, each with p < {LEVEL} (paired t-test {tests})."
    reasons: dict[str, list[str]] = {}
    compared = 0
    for place, column in enumerate(columns):
        kind = column.shows.partition(":")[0]
        if kind in _NEVER:
            if any(isinstance(line.cells[place], Number) for line in lines):
                reasons.setdefault(_NEVER[kind], []).append(
                    column.span if column.dataset and column.span else column.heading
                )
        elif kind not in ("parameters", "flops"):
            for group in dict.fromkeys(line.group for line in lines):
                cells = [
                    cell for line in lines if line.group == group and isinstance(cell := line.cells[place], Number)
                ]
                compared += bool(cells)
                if cells and (reason := _reason(cells)):
                    reasons.setdefault(reason, []).append(f"{column.heading}, {group}" if group else column.heading)
    for reason, headings in reasons.items():
        every = len(headings) == compared > 1 and reason not in _NEVER.values()
        yield f"Not bold: {'every column' if every else _listed(headings)} ({reason})."


_NEVER = {
    "validation": "hyper-parameters or epochs were chosen by it",
    "minutes": "times depend on the machine",
    "attention": "a share says where a model looks, not which one is better",
}


def _test(over: str, columns: Sequence[Column], lines: Sequence[Line], several: bool) -> str:
    """What a test pairs, and where there are several, the columns in which it does."""
    where = [
        column.heading
        for place, column in enumerate(columns)
        for line in lines
        if isinstance(cell := line.cells[place], Number) and any(found.over == over for found in cell.against.values())
    ]
    return _TESTS[over] + (f" in {_listed(where)}" if several else "")


def _reason(cells: Sequence[Number]) -> str:
    """Why none of the rows of a group is bold; empty where one is."""
    if any(cell.best for cell in cells):
        return ""
    if len(cells) == 1:
        return "one row alone is measured"
    if any(found.p is None for cell in cells for found in cell.against.values()):
        return "a single seed, and no answers to the same items, is nothing to pair"
    return "no row is significantly better than every other"


def _judge(measures: Measures, columns: Sequence[Column]) -> Iterator[str]:
    judgements = measures.judgements
    if judgements.judge is not None and any(column.shows.startswith("judge:") for column in columns):
        rest = f" Left out: scores by {_listed(judgements.others)}." if judgements.others else ""
        yield f"Scored by {judgements.judge}.{rest}"


def _regions(measures: Measures, columns: Sequence[Column], lines: Sequence[Line]) -> Iterator[str]:
    """What the object is on each data set whose attention is shown: a box and an outline are not alike."""
    found: dict[str, str] = {}
    for place, column in enumerate(columns):
        if column.shows.startswith("attention:") and column.dataset is not None:
            for line in lines:
                cell = line.cells[place]
                if isinstance(cell, Number) and column.dataset not in found:
                    found[column.dataset] = measures.results.region(cell.runs[0])
    by_region: dict[str, list[str]] = {}
    for dataset, region in found.items():
        by_region.setdefault(region, []).append(dataset)
    if found:
        named = "; ".join(f"{region} ({', '.join(datasets)})" for region, datasets in by_region.items())
        yield f"The object, in which a share of attention is measured: {named}."


def _starts(measures: Measures, layout: Layout) -> Iterator[str]:
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


def _listed(words: Iterable[str]) -> str:
    """Each once; by semicolons where one of them has a comma of its own."""
    words = list(words)
    return ("; " if any("," in word for word in words) else ", ").join(dict.fromkeys(words))

"""The report: evaluations side by side, as one self-contained HTML page and as a Markdown summary."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fc_lightning.conversation.parsing import call_from_value, parse_turn
from fc_lightning.evaluation.error_types import Piece, compare_calls, error_type
from fc_lightning.evaluation.leaderboard import leaderboard
from fc_lightning.evaluation.metrics import EvaluatedTurn, groups_of, tool_call_metrics
from fc_lightning.evaluation.robustness import robustness
from fc_lightning.evaluation.significance import LEVEL, compare_turns, holm_adjusted, standard_error
from fc_lightning.utils import html as pages
from fc_lightning.utils.atomic_files import write_text
from fc_lightning.utils.errors import UserError
from fc_lightning.utils.escaping import escape_markdown

_GROUPED_METRICS = ("exact_match", "name_match", "argument_f1")
_CURVES = ("train/loss", "val/loss", "val/exact_match", "val/name_match")
_ROBUSTNESS = (
    "The same turns with their prompts perturbed: tools in another order, tools of other rows added, functions and "
    "parameters renamed, the called tool dropped. A verdict is changed if only one of the two turns is correct."
)
_NO_METRICS = {"epoch", "step"}  # columns of metrics.csv

_LEADERBOARD = "Berkeley Function Calling Leaderboard"
_DIFFERENCES = (
    "Paired by turn. p is that of McNemar's exact test on the turns that only one of the two has right, adjusted for "
    f"the number of pairs after Holm; below {LEVEL} a difference is larger than chance. Standard errors follow ±."
)

TableRows = tuple[list[str], list[list[Any]]]  # header and rows


class ReportError(UserError):
    """The requested report cannot be made. The message says what to do."""


@dataclass
class EvaluatedRun:
    """One column of a report.

    Attributes:
        name: Heading of the column.
        turns: Evaluated turns.
        curves: Values logged during training, ``(step, value)`` by name.
        perturbed: Evaluated turns with perturbed prompts.
    """

    name: str
    turns: list[EvaluatedTurn]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    perturbed: list[EvaluatedTurn] = field(default_factory=list)


def read_run(folder: Path) -> list[EvaluatedRun]:
    """Read the evaluations of a run: the base before training, if it was evaluated, and the model.

    Raises:
        ReportError: If the folder has no predictions.
    """
    file = folder / "predictions.jsonl"
    if not file.is_file():
        raise ReportError(f"{folder}: no predictions.jsonl; add the callback PredictionWriter to the run (`--runs`)")
    before = folder / "predictions_before.jsonl"
    base = [EvaluatedRun("before training", read_predictions(before))] if before.is_file() else []
    perturbed = folder / "predictions_perturbed.jsonl"
    turns = read_predictions(perturbed) if perturbed.is_file() else []
    return [*base, EvaluatedRun(folder.name, read_predictions(file), read_curves(folder / "metrics.csv"), turns)]


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """Read the evaluations of several runs; a base that several of them evaluated with the same result is one column.

    Raises:
        ReportError: If a folder has no predictions.
    """
    columns: list[EvaluatedRun] = []
    for folder in folders:
        for column in read_run(folder):
            if column.turns not in [other.turns for other in columns if other.name.endswith("before training")]:
                columns.append(column)
    names = Counter(column.name for column in columns)
    return [
        replace(column, name=f"{column.name} ({number})") if names[column.name] > 1 else column
        for number, column in enumerate(columns, 1)
    ]


def read_predictions(file: Path) -> list[EvaluatedTurn]:
    """The turns of a ``predictions.jsonl``."""
    turns = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        calls = {key: tuple(map(call_from_value, row[key] or ())) for key in ("expected", "predicted")}
        # Files of the first version lack these two fields.
        defaults = {"finished": True, "parsed": not parse_turn(row["text"], strict=True).errors}
        turns.append(EvaluatedTurn(**{**defaults, **row, **calls}))
    return turns


def read_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """The values that CSVLogger wrote, by name; empty if there is no such file."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if not file.is_file():
        return curves
    with file.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value and name not in _NO_METRICS:
                    curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def write_report(columns: Sequence[EvaluatedRun], path: Path, title: str = "Evaluation", command: str = "") -> None:
    """Write ``path`` with the suffixes ``.html`` and ``.md``."""
    write_text(path.with_suffix(".html"), html_report(columns, title, command))
    write_text(path.with_suffix(".md"), markdown_report(columns, title, command))


def html_report(columns: Sequence[EvaluatedRun], title: str, command: str = "") -> str:
    """The page. Its failures are those of the last column."""
    last = columns[-1]
    figures = {f"exact match, {column.name}": _share(column.turns, "exact_match") for column in columns}
    sections: dict[str, list[str | Markup]] = {
        "Metrics": [
            pages.figures({"turns": f"{len(last.turns):,}", **figures}),
            pages.table(*_metric_table(columns)),
        ],
        **({_LEADERBOARD: [pages.table(*table)]} if (table := _leaderboard_table(columns))[1] else {}),
        "Groups": [
            "By the expected calls (none, one, parallel: one tool more than once, several: different tools), by the "
            "number of the model's turn in the conversation, and by the category of the row.",
            pages.table(*_group_table(columns)),
        ],
        **({"Robustness": [_ROBUSTNESS, pages.table(*_robustness_table(columns))]} if _is_perturbed(columns) else {}),
        **({"Differences": [_DIFFERENCES, pages.table(*_difference_table(columns))]} if len(columns) > 1 else {}),
        "Error types": [pages.table(*_error_table(columns))],
        _failure_heading(last): [
            "Differences are highlighted.",
            *(_html_example(error, turn) for error, turn in _examples(last.turns, 8)),
        ],
    }
    curves = {
        name: {column.name: column.curves[name] for column in columns if name in column.curves} for name in _CURVES
    }
    plots = [
        pages.lines(series, name, "optimizer step", name.split("/", 1)[1].replace("_", " "))
        for name, series in curves.items()
        if any(len(points) > 1 for points in series.values())  # a single point is in the tables
    ]
    if plots:
        sections["Training curves"] = [*plots]
    return pages.page(title, sections, command)


def markdown_report(columns: Sequence[EvaluatedRun], title: str, command: str = "") -> str:
    """The summary: the same tables, and fewer examples."""
    last = columns[-1]
    parts = [f"# {escape_markdown(title)}", *([f"```bash\n{command}\n```"] if command else [])]
    tables = {"Metrics": _metric_table, _LEADERBOARD: _leaderboard_table, "Groups": _group_table}
    tables["Differences"] = _difference_table
    tables |= {"Robustness": _robustness_table} if _is_perturbed(columns) else {}
    for heading, table in {**tables, "Error types": _error_table}.items():
        header, rows = table(columns)
        if rows:
            parts += [f"## {heading}", *([_DIFFERENCES] if heading == "Differences" else [])]
            parts.append(pages.markdown_table(header, rows))
    parts += [f"## {escape_markdown(_failure_heading(last))}", "Differences are in bold."]
    for error, turn in _examples(last.turns, 2):
        expected, predicted = (_joined(pieces, _bold) for pieces in _both_sides(turn))
        where = f"{error}, {escape_markdown(turn.id)}, turn {turn.turn}"
        parts.append(f"- {where}  \n  expected: {expected}  \n  predicted: {predicted}")
    return "\n\n".join(parts) + "\n"


def _failure_heading(column: EvaluatedRun) -> str:
    return f"Failures {column.name}" if column.name == "after training" else f"Failures: {column.name}"


def _share(turns: Sequence[EvaluatedTurn], name: str) -> str:
    return f"{sum(getattr(turn, name) for turn in turns) / len(turns):.3f}" if turns else "–"


def _values(turns: Sequence[EvaluatedTurn], groups: Sequence[str]) -> dict[str, list[float]]:
    """Each metric, overall and for each group. One rank writes the report, and it has the turns of all ranks."""
    metrics = tool_call_metrics(groups=groups, sync=False)
    metrics.update(turns)
    return {name: value.reshape(-1).tolist() for name, value in metrics.compute().items()}


def _format(value: float, error: float | None = None) -> str:
    if value != value:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _metric_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    values = [_values(column.turns, []) for column in columns]
    rows = [
        [
            name.replace("_", " "),
            *(
                _format(value[name][0], standard_error(column.turns, name))
                for value, column in zip(values, columns, strict=True)
            ),
        ]
        for name in values[0]
    ]
    return ["metric", *(column.name for column in columns)], [row for row in rows if set(row[1:]) != {"–"}]


def _group_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    groups = groups_of([turn for column in columns for turn in column.turns])
    values = [_values(column.turns, groups) for column in columns]
    counts = Counter(group for turn in columns[-1].turns for group in turn.groups)
    header = [f"{name.replace('_', ' ')}, {column.name}" for name in _GROUPED_METRICS for column in columns]
    rows = [
        [group, counts[group], *(_format(column[name][place]) for name in _GROUPED_METRICS for column in values)]
        for place, group in enumerate(groups, 1)
    ]
    return ["group", "turns", *header], rows


def _leaderboard_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    scores = [leaderboard(column.turns) for column in columns]
    rows = [
        [name, scores[-1][name][0], *(_format(score[name][1]) if name in score else "–" for score in scores)]
        for name in scores[-1]
    ]
    return ["category", "questions", *(column.name for column in columns)], rows


def _is_perturbed(columns: Sequence[EvaluatedRun]) -> bool:
    return any(column.perturbed for column in columns)


def _robustness_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    """Each metric of the perturbed turns; plain exact match first, to compare with."""
    values = [
        {"exact match": _share(column.turns, "exact_match")}
        | {
            name.replace("_", " "): _format(share)
            for name, share in robustness([*column.turns, *column.perturbed]).items()
        }
        for column in columns
    ]
    names = dict.fromkeys(name for one in values for name in one)
    rows = [[name, *(one.get(name, "–") for one in values)] for name in names]
    return ["metric", *(column.name for column in columns)], rows


def _difference_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    """Every pair of evaluations that have turns in common."""
    pairs = [
        (f"{second.name} – {first.name}", comparison)
        for first, second in combinations(columns, 2)
        if (comparison := compare_turns(first.turns, second.turns)) is not None
    ]
    p_values = holm_adjusted([comparison.p_value for _, comparison in pairs])
    rows = [
        [
            name,
            comparison.num_turns,
            f"{comparison.difference:+.3f} ± {comparison.standard_error:.3f}",
            comparison.only_second,
            comparison.only_first,
            f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001",
            "yes" if p_value < LEVEL else "no",
        ]
        for (name, comparison), p_value in zip(pairs, p_values, strict=True)
    ]
    header = ["exact match", "turns", "difference", "only the first is right", "only the second is right", "p"]
    return [*header, "larger than chance"], rows


def _error_table(columns: Sequence[EvaluatedRun]) -> TableRows:
    counts = [Counter(error_type(turn) or "correct" for turn in column.turns) for column in columns]
    errors = sorted(set().union(*counts), key=lambda error: (error != "correct", -counts[-1][error], error))
    rows = [[error, *(count[error] for count in counts)] for error in errors]
    return ["error type", *(column.name for column in columns)], rows


def _examples(turns: Sequence[EvaluatedTurn], number: int) -> Iterator[tuple[str, EvaluatedTurn]]:
    """The first ``number`` turns of each error type, the most frequent type first."""
    by_error: dict[str, list[EvaluatedTurn]] = {}
    for turn in turns:
        if error := error_type(turn):
            by_error.setdefault(error, []).append(turn)
    for error, failed in sorted(by_error.items(), key=lambda item: -len(item[1])):
        yield from ((error, turn) for turn in failed[:number])


def _both_sides(turn: EvaluatedTurn) -> tuple[list[Piece], list[Piece]]:
    """The expected and the predicted calls in pieces; the text itself where it is not a readable, complete turn."""
    predicted = compare_calls(turn.predicted, turn.expected)
    if not turn.parsed or not turn.finished:
        predicted = [(turn.text[:400] + ("…" if len(turn.text) > 400 else ""), False)]
    return compare_calls(turn.expected, turn.predicted), predicted


def _joined(pieces: Sequence[Piece], mark: Callable[[str], str]) -> str:
    return "".join(mark(text) if differs else escape_markdown(text) for text, differs in pieces)


def _bold(text: str) -> str:
    return f"**{escape_markdown(text)}**"


def _html_example(error: str, turn: EvaluatedTurn) -> Markup:
    expected, predicted = (
        Markup("").join(Markup("<mark>{}</mark>" if differs else "{}").format(text) for text, differs in pieces)
        for pieces in _both_sides(turn)
    )
    return Markup(
        "<details><summary>{}: {}, turn {}</summary><pre>expected:  {}\npredicted: {}</pre><pre>{}</pre></details>"
    ).format(error, turn.id, turn.turn, expected, predicted, f"{turn.prompt}{turn.text}")

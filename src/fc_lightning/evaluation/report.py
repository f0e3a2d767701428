"""The report: evaluations side by side, as one self-contained HTML page and as a Markdown summary."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from fc_lightning.conversation.parsing import call_from_value, parse_turn
from fc_lightning.evaluation.error_types import Piece
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.evaluation.report_about import read_about
from fc_lightning.evaluation.report_tables import EvaluatedRun, report_sections, share
from fc_lightning.evaluation.report_turns import compared_turns
from fc_lightning.utils import html as pages
from fc_lightning.utils.atomic_files import write_text
from fc_lightning.utils.errors import UserError, first_line
from fc_lightning.utils.escaping import escape_markdown

BEFORE_TRAINING = "before training"
# Title, label of the y axis, and the logged values of each plot, by pattern, with the name of their line.
_PLOTS = (
    (
        "Loss: mean cross-entropy of supervised tokens",
        "loss",
        {r"train/loss": "training", r"val/loss": "validation"},
    ),
    (
        "Exact match: fraction of validation turns with exactly the reference calls",
        "fraction",
        {r"val/exact_match": "exact match", r"val/name_match": "name match (the reference tools)"},
    ),
    ("Learning rate", "learning rate", {r"lr.*": "learning rate"}),
    (
        "Training speed, all ranks together, without evaluation",
        "tokens/s",
        {r"train/tokens_per_second": "tokens/s"},
    ),
)
_NO_METRICS = {"epoch", "step"}  # columns of metrics.csv
_MAX_TURNS = 40  # of each kind on the page
_MAX_FAILURES = 2  # of each error type in the Markdown file


class ReportError(UserError):
    """The requested report cannot be made. The message says what to do."""


def read_run(folder: Path) -> list[EvaluatedRun]:
    """Read the evaluations of a run: the base before training, if it was evaluated, and the model.

    Raises:
        ReportError: If the folder has no predictions, or its files are damaged.
    """
    file = folder / "predictions.jsonl"
    if not file.is_file():
        raise ReportError(f"{folder}: no predictions.jsonl; add the callback PredictionWriter to the run (`--runs`)")
    before = folder / "predictions_before.jsonl"
    perturbed = folder / "predictions_perturbed.jsonl"
    try:
        base = [EvaluatedRun(BEFORE_TRAINING, read_predictions(before))] if before.is_file() else []
        turns = read_predictions(perturbed) if perturbed.is_file() else []
        curves = read_curves(folder / "metrics.csv")
        return [*base, EvaluatedRun(folder.name, read_predictions(file), curves, turns, read_about(folder))]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ReportError(f"{folder}: its files are damaged (`--runs`): {first_line(error)}") from error


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """Read the evaluations of several runs; a base that several of them evaluated with the same result is one column.

    Raises:
        ReportError: If a folder has no predictions, or there is no folder.
    """
    if not folders:
        raise ReportError("nothing to compare: name at least one run (`--runs`)")
    columns: list[EvaluatedRun] = []
    for folder in folders:
        for column in read_run(folder):
            if column.turns not in [other.turns for other in columns if other.name.endswith(BEFORE_TRAINING)]:
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
    """The page. Its turns are those of the last column."""
    figures = {f"exact match, {column.name}": share(column.turns, "exact_match") for column in columns}
    key_figures = pages.figures({"turns": f"{len(columns[-1].turns):,}", **figures})
    described = [column for column in columns if column.about]
    about = [pages.properties(column.about, column.name if len(described) > 1 else "") for column in described]
    sections: dict[str, list[str | Markup]] = {"Run" if len(described) < 2 else "Runs": [*about, key_figures]}
    for section in report_sections(columns):
        sections[section.heading] = [section.explanation, pages.table(section.header, section.rows)]
    if plots := _plots(columns):
        sections["Training curves"] = [*plots]
    turns = compared_turns(columns, _MAX_TURNS)
    if turns:
        sections["Turns"] = [
            f"Expected calls in green, what differs from them in red. Up to {_MAX_TURNS} turns of each kind are shown; "
            "predictions.jsonl has all of them.",
            pages.turns(turns),
        ]
    return pages.page(title, sections, command)


def markdown_report(columns: Sequence[EvaluatedRun], title: str, command: str = "") -> str:
    """The summary: the same tables, and a few failures."""
    parts = [f"# {escape_markdown(title)}", *([f"```bash\n{command}\n```"] if command else [])]
    for column in columns:
        if column.about:
            parts.append(pages.markdown_table([column.name, ""], list(column.about.items())))
    for section in report_sections(columns):
        parts += [f"## {section.heading}", section.explanation, pages.markdown_table(section.header, section.rows)]
    parts += [f"## {escape_markdown(_failure_heading(columns[-1].name))}", "Differences are in bold."]
    for compared in compared_turns(columns, _MAX_FAILURES):
        if compared.tags["kind"] != "correct":
            where = f"{compared.tags['kind']}, {escape_markdown(compared.turn.id)}, turn {compared.turn.turn}"
            sides = [compared.expected, *compared.generated]
            lines = [f"{escape_markdown(side.name)}: {_joined(side.pieces, _bold)}" for side in sides]
            parts.append("  \n  ".join([f"- {where}", *lines]))
    return "\n\n".join(parts) + "\n"


def _failure_heading(name: str) -> str:
    return "Failures after training" if name == "after training" else f"Failures: {name}"


def _plots(columns: Sequence[EvaluatedRun]) -> list[Markup]:
    """The plots with a line of at least two points: a single value is in the tables."""
    plots = []
    trained = [column for column in columns if column.curves]
    for title, label, patterns in _PLOTS:
        series = {
            f"{line}, {column.name}" if len(trained) > 1 else line: points
            for column in trained
            for pattern, line in patterns.items()
            for name, points in column.curves.items()
            if re.fullmatch(pattern, name)
        }
        if any(len(points) > 1 for points in series.values()):
            plots.append(pages.lines(series, title, "optimizer step", label))
    return plots


def _joined(pieces: Sequence[Piece], mark: Callable[[str], str]) -> str:
    return "".join(mark(text) if differs else escape_markdown(text) for text, differs in pieces)


def _bold(text: str) -> str:
    return f"**{escape_markdown(text)}**"

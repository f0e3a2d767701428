"""The report: evaluations side by side, as one self-contained HTML page and as a Markdown summary."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fc_lightning.conversation.parsing import call_from_value, dump_json, parse_turn
from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.metrics import EvaluatedTurn, groups_of, tool_call_metrics
from fc_lightning.utils import html as pages
from fc_lightning.utils.atomic_files import write_text

_BY_GROUP = ("exact_match", "name_match", "argument_f1")
_CURVES = ("train/loss", "val/loss", "val/exact_match", "val/name_match")
_UNITS = {"epoch", "step"}

Piece = tuple[str, bool]  # of a call as text, and whether it differs


class ReportError(ValueError):
    """No report can be made as asked. The message says what to do."""


@dataclass
class EvaluatedRun:
    """One column of a report.

    Attributes:
        name: Its heading.
        turns: What was evaluated.
        curves: What was logged over training, ``(step, value)`` by name.
    """

    name: str
    turns: list[EvaluatedTurn]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_run(folder: Path) -> list[EvaluatedRun]:
    """What a run has measured: the base before training, if it was measured, and the model.

    Raises:
        ReportError: If there are no predictions in the folder.
    """
    file = folder / "predictions.jsonl"
    if not file.is_file():
        raise ReportError(
            f"{folder}: no predictions.jsonl there; add the callback PredictionWriter to the run (`--runs`)"
        )
    before = folder / "predictions_before.jsonl"
    base = [EvaluatedRun("before training", read_predictions(before))] if before.is_file() else []
    return [*base, EvaluatedRun(folder.name, read_predictions(file), read_curves(folder / "metrics.csv"))]


def read_predictions(file: Path) -> list[EvaluatedTurn]:
    """The turns of a ``predictions.jsonl``."""
    turns = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        calls = {key: tuple(map(call_from_value, row[key] or ())) for key in ("expected", "predicted")}
        # Files of the first version do not say whether a turn had ended and could be read.
        known = {"finished": True, "parsed": not parse_turn(row["text"]).errors}
        turns.append(EvaluatedTurn(**{**known, **row, **calls}))
    return turns


def read_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """What CSVLogger wrote, by name; nothing if there is no such file."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if file.is_file():
        with file.open(encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for name, value in row.items():
                    if value and name not in _UNITS:
                        curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def write_report(columns: Sequence[EvaluatedRun], path: Path, title: str = "Evaluation", command: str = "") -> None:
    """Write ``path`` with the suffixes ``.html`` and ``.md``."""
    write_text(path.with_suffix(".html"), html_report(columns, title, command))
    write_text(path.with_suffix(".md"), markdown_report(columns, title, command))


def html_report(columns: Sequence[EvaluatedRun], title: str, command: str = "") -> str:
    """The page. The last column is the one whose failures are shown."""
    last = columns[-1]
    figures = {f"exact match, {column.name}": _share(column.turns, "exact_match") for column in columns}
    sections: dict[str, list[str | Markup]] = {
        "Measures": [pages.figures({"turns": f"{len(last.turns):,}", **figures}), pages.table(*_measures(columns))],
        "By group": [
            "The kinds of calls (none, one, parallel: one tool more than once, several: different tools), the number "
            "of the model's turn, and the rows' own categories.",
            pages.table(*_by_group(columns)),
        ],
        "Kinds of failure": [pages.table(*_failures(columns))],
        f"Failures of {last.name}": [
            "What differs is marked.",
            *(_html_example(kind, turn) for kind, turn in _examples(last.turns, 8)),
        ],
    }
    curves = {
        name: {column.name: column.curves[name] for column in columns if name in column.curves} for name in _CURVES
    }
    drawn = [
        pages.lines(series, name, "optimizer step", name.split("/", 1)[1].replace("_", " "))
        for name, series in curves.items()
        if any(len(points) > 1 for points in series.values())  # one point alone is in the tables
    ]
    if drawn:
        sections["Over training"] = [*drawn]
    return pages.page(title, sections, command)


def markdown_report(columns: Sequence[EvaluatedRun], title: str, command: str = "") -> str:
    """The summary: the same tables, and fewer examples."""
    last = columns[-1]
    parts = [f"# {title}", *([f"```bash\n{command}\n```"] if command else [])]
    for heading, make in (("Measures", _measures), ("By group", _by_group), ("Kinds of failure", _failures)):
        parts += [f"## {heading}", pages.markdown_table(*make(columns))]
    parts += [f"## Failures of {last.name}", "What differs is in bold."]
    for kind, turn in _examples(last.turns, 2):
        calls = [_joined(pieces, _bold) for pieces in _compared(turn)]
        parts.append(f"- {kind}, `{turn.id}` turn {turn.turn}  \n  expected: {calls[0]}  \n  predicted: {calls[1]}")
    return "\n\n".join(parts) + "\n"


def failure(turn: EvaluatedTurn) -> str:
    """What is wrong with a turn, in a few words; nothing if it is right. The first that applies."""
    expected, predicted = Counter(call.name for call in turn.expected), Counter(call.name for call in turn.predicted)
    rules: tuple[tuple[str, bool], ...] = (
        ("", turn.exact_match),
        ("a call cannot be read", not turn.parsed),
        ("the turn does not end", not turn.finished),
        ("no call, one is needed", not predicted),
        ("a call, none is needed", not expected),
        ("a tool that is not offered", turn.unoffered > 0),
        ("another tool", set(expected) != set(predicted)),
        ("too many calls", predicted.total() > expected.total()),
        ("too few calls", predicted.total() < expected.total()),
        ("right but for alternatives", turn.alternatives_match is True),
    )
    found = next((name for name, applies in rules if applies), None)
    return _wrong_arguments(turn) if found is None else found


def compare_calls(calls: Sequence[ToolCall], others: Sequence[ToolCall]) -> list[Piece]:
    """Calls as text in pieces, those marked that the others do not have; each call is compared with the most alike."""
    left = list(others)
    pieces: list[Piece] = []
    for call in calls:
        alike = [other for other in left if other.name == call.name]
        other = max(alike, key=lambda one: len(_items(call) & _items(one)), default=None)
        if other is not None:
            left.remove(other)
        pieces += [(", ", False)] if pieces else []
        pieces.append((call.name, other is None))
        pieces.append(("(", False))
        for number, (name, value) in enumerate(call.arguments.items()):
            same = other is not None and name in other.arguments and _same(value, other.arguments[name])
            pieces += [(", ", False)] if number else []
            pieces.append((f"{name}={dump_json(value)}", not same))
        pieces.append((")", False))
    return pieces or [("no call", bool(others))]


def _wrong_arguments(turn: EvaluatedTurn) -> str:
    """Of turns that call the right tools: which way the arguments are wrong."""
    wanted = Counter((call.name, name) for call in turn.expected for name in call.arguments)
    given = Counter((call.name, name) for call in turn.predicted for name in call.arguments)
    if wanted - given:
        return "an argument is missing"
    return "an argument too many" if given - wanted else "another value"


def _items(call: ToolCall) -> set[ToolCall]:
    return {ToolCall("", {name: value}) for name, value in call.arguments.items()}


def _same(first: Any, second: Any) -> bool:
    return ToolCall("", {"": first}) == ToolCall("", {"": second})


def _share(turns: Sequence[EvaluatedTurn], name: str) -> str:
    return f"{sum(getattr(turn, name) for turn in turns) / len(turns):.3f}" if turns else "–"


def _values(turns: Sequence[EvaluatedTurn], groups: Sequence[str]) -> dict[str, list[float]]:
    """Each metric, overall and of each group. One rank writes the report, and it has the turns of all ranks."""
    metrics = tool_call_metrics(groups=groups, sync=False)
    metrics.update(turns)
    return {name: value.reshape(-1).tolist() for name, value in metrics.compute().items()}


def _shown(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def _measures(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[str]]]:
    values = [_values(column.turns, []) for column in columns]
    rows = [[name.replace("_", " "), *(_shown(column[name][0]) for column in values)] for name in values[0]]
    return ["measure", *(column.name for column in columns)], [row for row in rows if set(row[1:]) != {"–"}]


def _by_group(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    groups = groups_of([turn for column in columns for turn in column.turns])
    values = [_values(column.turns, groups) for column in columns]
    counts = Counter(group for turn in columns[-1].turns for group in turn.groups)
    header = [f"{name.replace('_', ' ')}, {column.name}" for name in _BY_GROUP for column in columns]
    rows = [
        [group, counts[group], *(_shown(column[name][place]) for name in _BY_GROUP for column in values)]
        for place, group in enumerate(groups, 1)
    ]
    return ["group", "turns", *header], rows


def _failures(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    counts = [Counter(failure(turn) or "right" for turn in column.turns) for column in columns]
    kinds = sorted(set().union(*counts), key=lambda kind: (kind != "right", -counts[-1][kind], kind))
    return ["kind", *(column.name for column in columns)], [
        [kind, *(count[kind] for count in counts)] for kind in kinds
    ]


def _examples(turns: Sequence[EvaluatedTurn], number: int) -> Iterator[tuple[str, EvaluatedTurn]]:
    """So many failures of each kind, the commonest kind first."""
    kinds: dict[str, list[EvaluatedTurn]] = {}
    for turn in turns:
        if kind := failure(turn):
            kinds.setdefault(kind, []).append(turn)
    for kind, some in sorted(kinds.items(), key=lambda item: -len(item[1])):
        yield from ((kind, turn) for turn in some[:number])


def _compared(turn: EvaluatedTurn) -> tuple[list[Piece], list[Piece]]:
    predicted = compare_calls(turn.predicted, turn.expected)
    if not turn.parsed or not turn.finished:
        predicted = [(turn.text[:400] + ("…" if len(turn.text) > 400 else ""), False)]
    return compare_calls(turn.expected, turn.predicted), predicted


def _joined(pieces: Sequence[Piece], mark: Callable[[str], str]) -> str:
    return "".join(mark(text) if differs else _code(text) for text, differs in pieces)


def _code(text: str) -> str:
    """Text for Markdown, in which nothing has a meaning."""
    return "".join(f"\\{char}" if char in "\\`*_<>[]|#~" else " " if char in "\r\n" else char for char in text)


def _bold(text: str) -> str:
    return f"**{_code(text)}**"


def _html_example(kind: str, turn: EvaluatedTurn) -> Markup:
    expected, predicted = (
        Markup("").join(Markup("<mark>{}</mark>" if differs else "{}").format(text) for text, differs in pieces)
        for pieces in _compared(turn)
    )
    return Markup(
        "<details><summary>{}: {}, turn {}</summary><pre>expected:  {}\npredicted: {}</pre><pre>{}</pre></details>"
    ).format(kind, turn.id, turn.turn, expected, predicted, f"{turn.prompt}{turn.text}")

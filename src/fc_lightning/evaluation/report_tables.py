"""Tables of the report: evaluations side by side, with what each number means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fc_lightning.evaluation.error_types import error_type
from fc_lightning.evaluation.leaderboard import leaderboard
from fc_lightning.evaluation.metrics import RULES, EvaluatedTurn, groups_of, tool_call_metrics
from fc_lightning.evaluation.robustness import robustness
from fc_lightning.evaluation.significance import LEVEL, compare_turns, holm_adjusted, standard_error
from fc_lightning.evaluation.ways import UNFINISHED, WAYS, confusion

_GROUPED_METRICS = ("exact_match", "name_match", "argument_f1")
_METRICS = "Each metric is a ratio over the evaluated turns; ± is its standard error."
_LEADERBOARD = (
    "Accuracy as the Berkeley Function Calling Leaderboard counts it: calls are correct if they are among the accepted "
    "alternatives."
)
_WAYS = (
    "Response type of each turn against the label of its row: answer (direct), call, follow-up question, or refusal. A "
    "heuristic on the words of the turn tells them apart."
)
_GROUPS = (
    "Turns by their reference calls (none, one, parallel: one tool several times, several: different tools), by their "
    "position in the conversation, and by the row's category. Exact match: exactly the reference calls. Name match: "
    "the reference tools, with any arguments. Argument F1: harmonic mean of the precision and recall of arguments."
)
_ROBUSTNESS = (
    "The same turns with perturbed prompts: tools reordered, tools of other rows added, functions and parameters "
    "renamed, or the called tool removed. A verdict has changed if only one of the two turns is correct."
)
_DIFFERENCES = (
    "Paired by turn. p-values are from McNemar's exact test on the turns that only one of the two runs gets right, "
    f"adjusted for the number of pairs with Holm's method; below {LEVEL}, the difference is statistically significant. "
    "± is the standard error."
)
_ERRORS = "The first error type that applies to each turn, defined by how its calls differ from the reference calls."


@dataclass
class EvaluatedRun:
    """One column of a report.

    Attributes:
        name: Heading of the column.
        turns: Evaluated turns.
        curves: Values logged during training, ``(step, value)`` by name.
        perturbed: Evaluated turns with perturbed prompts.
        about: What was evaluated, on which data, when and where, by name.
    """

    name: str
    turns: list[EvaluatedTurn]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    perturbed: list[EvaluatedTurn] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    heading: str
    explanation: str  # what the numbers mean
    header: list[str]
    rows: list[list[Any]]


def report_sections(columns: Sequence[EvaluatedRun]) -> list[Section]:
    """The tables that have rows for these evaluations."""
    sections = [
        Section("Metrics", _METRICS, *_metric_table(columns)),
        Section("Berkeley Function Calling Leaderboard", _LEADERBOARD, *_leaderboard_table(columns)),
        Section("Response types", _WAYS, *_way_table(columns)),
        Section("Groups", _GROUPS, *_group_table(columns)),
        Section("Robustness", _ROBUSTNESS, *_robustness_table(columns)),
        Section("Differences", _DIFFERENCES, *_difference_table(columns)),
        Section("Error types", _ERRORS, *_error_table(columns)),
    ]
    return [section for section in sections if section.rows]


def share(turns: Sequence[EvaluatedTurn], name: str) -> str:
    """The fraction of turns for which an attribute is true."""
    return f"{sum(getattr(turn, name) for turn in turns) / len(turns):.3f}" if turns else "–"


def _names(columns: Sequence[EvaluatedRun]) -> list[str]:
    return [column.name for column in columns]


def _values(turns: Sequence[EvaluatedTurn], groups: Sequence[str]) -> dict[str, list[float]]:
    """Each metric, overall and for each group. One rank writes the report, and it has the turns of all ranks."""
    metrics = tool_call_metrics(groups=groups, sync=False)
    metrics.update(turns)
    return {name: value.reshape(-1).tolist() for name, value in metrics.compute().items()}


def _format(value: float, error: float | None = None) -> str:
    if value != value:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _metric_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    values = [_values(column.turns, []) for column in columns]
    rows = []
    for name in RULES:
        cells = [
            _format(value[name][0], standard_error(column.turns, name))
            for value, column in zip(values, columns, strict=True)
        ]
        better = "higher" if RULES[name].higher_is_better else "lower"
        if set(cells) != {"–"}:
            rows.append([name.replace("_", " "), *cells, f"{RULES[name].description}; {better} is better"])
    return ["metric", *_names(columns), "meaning"], rows


def _group_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    groups = groups_of([turn for column in columns for turn in column.turns])
    values = [_values(column.turns, groups) for column in columns]
    counts = Counter(group for turn in columns[-1].turns for group in turn.groups)
    header = [f"{name.replace('_', ' ')}, {column.name}" for name in _GROUPED_METRICS for column in columns]
    rows = [
        [group, counts[group], *(_format(column[name][place]) for name in _GROUPED_METRICS for column in values)]
        for place, group in enumerate(groups, 1)
    ]
    return ["group", "turns", *header], rows


def _leaderboard_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    scores = [leaderboard(column.turns) for column in columns]
    rows = [
        [name, scores[-1][name][0], *(_format(score[name][1]) if name in score else "–" for score in scores)]
        for name in scores[-1]
    ]
    return ["category", "questions", *_names(columns)], rows


def _way_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    ways = [*WAYS, UNFINISHED]
    rows: list[list[Any]] = [
        [column.name, label, *(counts[way] for way in ways)]
        for column in columns
        for label, counts in confusion(column.turns).items()
    ]
    return ["run", "label", *ways], rows


def _robustness_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    """Each metric of the perturbed turns; plain exact match first, to compare with."""
    if not any(column.perturbed for column in columns):
        return [], []
    values = [
        {"exact match": share(column.turns, "exact_match")}
        | {
            name.replace("_", " "): _format(ratio)
            for name, ratio in robustness([*column.turns, *column.perturbed]).items()
        }
        for column in columns
    ]
    names = dict.fromkeys(name for one in values for name in one)
    rows = [[name, *(one.get(name, "–") for one in values)] for name in names]
    return ["metric", *_names(columns)], rows


def _difference_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
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
    header = ["exact match", "turns", "difference", "only the first is correct", "only the second is correct", "p"]
    return [*header, "significant"], rows


def _error_table(columns: Sequence[EvaluatedRun]) -> tuple[list[str], list[list[Any]]]:
    counts = [Counter(error_type(turn) or "correct" for turn in column.turns) for column in columns]
    errors = sorted(set().union(*counts), key=lambda error: (error != "correct", -counts[-1][error], error))
    rows = [[error, *(count[error] for count in counts)] for error in errors]
    return ["error type", *_names(columns)], rows

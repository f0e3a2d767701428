"""Metrics over tool calls, on the text that the model really generated."""

from fc_lightning.conversation.json_schema import fits_schema, standard_schema
from fc_lightning.evaluation.alternatives import matches_alternatives
from fc_lightning.evaluation.metrics.ratios import TurnRatio, TurnShare, groups_of
from fc_lightning.evaluation.metrics.tool_calls import (
    Abstention,
    ArgumentF1,
    ArgumentPrecision,
    ArgumentRecall,
    ArgumentsValid,
    JsonAnswer,
    MissedCall,
    Overcall,
    PassAtK,
    ToolCallAlternativesMatch,
    ToolCallExactMatch,
    ToolCallNameMatch,
    ToolCallParseRate,
    TurnGrammar,
    UnofferedCalls,
    tool_call_metrics,
)
from fc_lightning.evaluation.turns import EvaluatedTurn, argument_pairs, evaluate_turn

__all__ = [
    "Abstention", "ArgumentF1", "ArgumentPrecision", "ArgumentRecall", "ArgumentsValid", "EvaluatedTurn", "JsonAnswer",
    "MissedCall", "Overcall", "PassAtK", "ToolCallAlternativesMatch", "ToolCallExactMatch", "ToolCallNameMatch",
    "ToolCallParseRate", "TurnGrammar", "TurnRatio", "TurnShare", "UnofferedCalls", "argument_pairs", "evaluate_turn",
    "fits_schema", "groups_of", "matches_alternatives", "standard_schema", "tool_call_metrics",
]  # fmt: skip

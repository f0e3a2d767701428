"""Constrained decoding: a model turn can only follow the grammar, its calls can only be to the tools on offer.

xgrammar keeps track of what may come next; here stands which grammar a prompt has, and which row is where.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fc_lightning.bases import BaseModelError
from fc_lightning.metrics import standard_schema
from fc_lightning.toolcalls import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN, Tool, dump_json

_TAGS = [CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE]


class CallGrammars:
    """Compiles the grammars of model turns, each once.

    Args:
        tokenizer: With the tags registered.
        vocabulary: Width of the model's logits.
        end_ids: Ids that end a turn.

    Raises:
        BaseModelError: If xgrammar is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_ids: Sequence[int]):
        try:
            import xgrammar
        except ImportError as error:
            raise BaseModelError("`model.constrained` needs xgrammar: pip install xgrammar") from error
        self.xgrammar = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=list(end_ids))
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.vocabulary = vocabulary
        self._compiled: dict[str, Any] = {}

    def constrain(self, tools: Sequence[Sequence[Tool]]) -> GrammarConstraint:
        """A constraint for rows, from the tools on offer to each."""
        compiled = [self._compile(some) for some in tools]
        return GrammarConstraint([self.xgrammar.GrammarMatcher(one) for one in compiled], self)

    def _compile(self, tools: Sequence[Tool]) -> Any:
        key = dump_json([tool.to_openai() for tool in tools])
        if key not in self._compiled:
            usable = {tool.name: self._usable_schema(tool) for tool in tools}
            self._compiled[key] = self.compiler.compile_structural_tag(json.dumps(turn_grammar(usable)))
        return self._compiled[key]

    def _usable_schema(self, tool: Tool) -> dict[str, Any]:
        """The schema of a tool's arguments; any object, with a warning, if it cannot be kept to."""
        schema = {"type": "object", **standard_schema(tool.parameters)}
        try:
            self.xgrammar.Grammar.from_json_schema(json.dumps(schema))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            warnings.warn(f"the arguments of {tool.name} are not constrained, its schema is no use: {reason}")
            return {"type": "object"}
        return schema


class GrammarConstraint:
    """Keeps rows to their grammars; see :class:`fc_lightning.generation.Constraint`."""

    def __init__(self, matchers: Sequence[Any], grammars: CallGrammars):
        self.matchers, self.grammars = matchers, grammars
        self.rows: Sequence[int] = range(len(matchers))
        self.seen: int | None = None  # columns of ids that the matchers have followed

    def start_leg(self, rows: Sequence[int]) -> None:
        """The rows of the coming calls, by their number among all."""
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(rows, vocabulary)`` after the ids so far, what is forbidden at minus infinity."""
        self.seen = input_ids.shape[1] if self.seen is None else self.seen
        new = input_ids[:, self.seen :].tolist()
        self.seen = input_ids.shape[1]
        mask = self.grammars.xgrammar.allocate_token_bitmask(len(self.rows), self.grammars.vocabulary)
        for place, row in enumerate(self.rows):
            matcher = self.matchers[row]
            for token in new[place]:
                if not matcher.is_terminated():  # what stands behind the end of a turn fills up the row
                    matcher.accept_token(token)
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(mask, place)
        # scores may be somebody else's tensor
        allowed = scores.clone()
        self.grammars.xgrammar.apply_token_bitmask_inplace(allowed, mask.to(scores.device))
        return allowed


def turn_grammar(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The grammar of a model turn for xgrammar: an optional think, then calls in the template's form or an answer.

    Args:
        schemas: For each tool on offer the schema of its arguments.
    """
    text = {"type": "any_text", "excludes": _TAGS}
    think = {"type": "tag", "begin": f"{THINK_OPEN}\n", "content": text, "end": f"\n{THINK_CLOSE}\n"}
    calls = [
        {
            "type": "tag",
            "begin": f'{CALL_OPEN}\n{{"name": {dump_json(name)}, "arguments": ',
            "content": {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1},
            "end": f"}}\n{CALL_CLOSE}",
        }
        for name, schema in schemas.items()
    ]
    several = {"type": "tags_with_separator", "tags": calls, "separator": "\n", "at_least_one": True}
    first = {"type": "regex", "pattern": r"[^\s<]"}  # so that an answer is not empty
    answer = {"type": "sequence", "elements": [first, text]}
    turn = {"type": "or", "elements": [several, answer]} if calls else answer
    optional = {"type": "optional", "content": think}
    return {"type": "structural_tag", "format": {"type": "sequence", "elements": [optional, turn]}}

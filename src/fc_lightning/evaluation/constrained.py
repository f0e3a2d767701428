"""Constrained decoding: a model turn can only follow the grammar, its calls can only be to the tools on offer.

xgrammar keeps track of what may come next; here stands which grammar a prompt has, and which row is where. A grammar
alone lets a list or a number go on for ever; a turn that has used most of its tokens is therefore brought to its end.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fc_lightning.conversation.parsing import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN, dump_json
from fc_lightning.conversation.types import Tool
from fc_lightning.evaluation.metrics import standard_schema
from fc_lightning.utils.pretrained import BaseModelError

_TAGS = [CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE]
_ENDING = 3  # in the last third of its tokens a turn is brought to its end


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
        self.closers = Closers(info.decoded_vocab, end_ids)
        self._compiled: dict[str, Any] = {}

    def constrain(self, tools: Sequence[Sequence[Tool]], limit: int) -> GrammarConstraint:
        """A constraint for rows, from the tools on offer to each, and how many tokens each may have."""
        compiled = [self._compile(some) for some in tools]
        return GrammarConstraint([self.xgrammar.GrammarMatcher(one) for one in compiled], self, limit)

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


class Closers:
    """Of the tokens that may come next, those that bring a turn nearer to its end.

    Args:
        vocabulary: The bytes of each token.
        end_ids: Ids that end a turn.
    """

    def __init__(self, vocabulary: Sequence[bytes], end_ids: Sequence[int]):
        def those(pattern: bytes) -> np.ndarray:
            matches = re.compile(pattern).fullmatch
            return np.array([matches(token) is not None for token in vocabulary])

        self.ends = np.isin(np.arange(len(vocabulary)), end_ids)
        self.tags = those(b"|".join(tag.encode() for tag in (CALL_CLOSE, THINK_CLOSE)))
        self.line, self.quote = those(rb"\n"), those(rb'"+')
        self.brackets, self.comma = those(rb"\s*[\]}][\]}\s]*"), those(rb",.*")

    def among(self, allowed: np.ndarray) -> np.ndarray:
        """The best of the allowed tokens ``(vocabulary,)``; all of them where there is no better one.

        Within text nearly everything is allowed; in a JSON text everything but a bare line break.
        """
        if allowed.sum() * 2 <= len(allowed):
            order = [self.ends, self.tags, self.brackets, self.quote, self.comma]
        elif (allowed & self.line).any():
            order = [self.ends, self.tags, self.line]
        else:
            order = [self.quote]
        return next((found for kind in order if (found := kind & allowed).any()), allowed)


class GrammarConstraint:
    """Keeps rows to their grammars; see :class:`fc_lightning.evaluation.generation.Constraint`."""

    def __init__(self, matchers: Sequence[Any], grammars: CallGrammars, limit: int):
        self.matchers, self.grammars, self.limit = matchers, grammars, limit
        self.rows: Sequence[int] = range(len(matchers))
        self.made = 0  # tokens of a row
        self.seen: int | None = None  # columns of ids that the matchers have followed

    def start_leg(self, rows: Sequence[int]) -> None:
        """The rows of the coming calls, by their number among all."""
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(rows, vocabulary)`` after the ids so far, what is forbidden at minus infinity."""
        self.seen = input_ids.shape[1] if self.seen is None else self.seen
        new = input_ids[:, self.seen :].tolist()
        self.made += input_ids.shape[1] - self.seen
        self.seen = input_ids.shape[1]
        mask = self.grammars.xgrammar.allocate_token_bitmask(len(self.rows), self.grammars.vocabulary)
        for place, row in enumerate(self.rows):
            matcher = self.matchers[row]
            for token in new[place]:
                if not matcher.is_terminated():  # what stands behind the end of a turn fills up the row
                    matcher.accept_token(token)
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(mask, place)
                if self.made * _ENDING >= self.limit * (_ENDING - 1):
                    self._bring_to_its_end(mask[place])
        allowed = scores.clone()  # they may be somebody else's
        self.grammars.xgrammar.apply_token_bitmask_inplace(allowed, mask.to(scores.device))
        return allowed

    def _bring_to_its_end(self, mask: Tensor) -> None:
        """Narrow down what is allowed, ``(vocabulary / 32,)`` words of a bit a token."""
        words = mask.numpy()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        size = self.grammars.vocabulary
        bits[:size] = self.grammars.closers.among(bits[:size].astype(bool))
        words[:] = np.packbits(bits, bitorder="little").view(np.int32)


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

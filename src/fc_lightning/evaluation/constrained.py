"""Constrained decoding: a model turn follows the grammar, and its calls go to the offered tools.

xgrammar keeps track of the tokens that may come next. This module gives each prompt its grammar and each row its state.
A grammar alone allows lists and numbers of unbounded length, so a turn that has used most of its token budget is forced
to close.
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

from fc_lightning.conversation.native_calls import NativeSyntax
from fc_lightning.conversation.parsing import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN, dump_json
from fc_lightning.conversation.types import Tool
from fc_lightning.evaluation.grammar_schema import IGNORED, arguments_schema, unenforced_keywords
from fc_lightning.evaluation.native_grammar import UNENFORCED, native_arguments
from fc_lightning.utils.pretrained import BaseModelError

_TAGS = [CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE]
_CLOSING = 3  # a turn is closed in the last 1/3 of its tokens


class CallGrammars:
    """Compiles the grammars of model turns and caches them.

    Args:
        tokenizer: The model's tokenizer, with the tags registered.
        vocabulary: Number of logits of the model.
        end_ids: Ids that end a turn.
        syntax: The native tool language; None for Hermes.

    Raises:
        BaseModelError: If xgrammar is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        end_ids: Sequence[int],
        syntax: NativeSyntax | None = None,
    ):
        try:
            import xgrammar
        except ImportError as error:
            raise BaseModelError("`model.constrained` needs xgrammar: pip install xgrammar") from error
        self.xgrammar = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=list(end_ids))
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self.vocabulary = vocabulary
        self.syntax = syntax
        self.closers = Closers(info.decoded_vocab, end_ids, syntax)
        self._compiled: dict[str, Any] = {}
        self._reported: set[str] = set()  # keywords that a warning has named

    def constrain(self, tools: Sequence[Sequence[Tool]], limit: int) -> GrammarConstraint:
        """A constraint for a batch, from the tools offered to each row and the limit of new tokens."""
        matchers = [self.xgrammar.GrammarMatcher(self._compile(offered)) for offered in tools]
        return GrammarConstraint(matchers, self, limit)

    def _compile(self, tools: Sequence[Tool]) -> Any:
        key = dump_json([tool.to_openai() for tool in tools])
        if key not in self._compiled:
            usable = {tool.name: self._usable_schema(tool) for tool in tools}
            self._compiled[key] = self.compiler.compile_structural_tag(json.dumps(turn_grammar(usable, self.syntax)))
        return self._compiled[key]

    def _usable_schema(self, tool: Tool) -> dict[str, Any]:
        """The schema of a tool's arguments; with a warning, any object if it cannot be used."""
        try:
            schema = arguments_schema(tool.parameters)
            if self.syntax:
                self.xgrammar.Grammar.from_ebnf(native_arguments(schema, self.syntax))
            else:
                self.xgrammar.Grammar.from_json_schema(json.dumps(schema))
            ignored = IGNORED | UNENFORCED if self.syntax else IGNORED
            unenforced = unenforced_keywords(schema, ignored) - self._reported
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:  # foreign schemas fail in many ways
            message = f"the arguments of {tool.name} are not constrained because its schema cannot be used: {error}"
            warnings.warn(message)
            return {"type": "object"}
        if unenforced:
            self._reported |= unenforced
            names = ", ".join(f"`{keyword}`" for keyword in sorted(unenforced))
            warnings.warn(f"constrained decoding does not enforce {names} (in the schema of {tool.name}, and others)")
        return schema


class Closers:
    """Of the tokens that may come next, those that bring a turn closer to its end.

    Args:
        vocabulary: Bytes of each token.
        end_ids: Ids that end a turn.
        syntax: The native tool language; None for Hermes.
    """

    def __init__(self, vocabulary: Sequence[bytes], end_ids: Sequence[int], syntax: NativeSyntax | None = None):
        def matching(pattern: bytes) -> np.ndarray:
            matches = re.compile(pattern).fullmatch
            return np.array([matches(token) is not None for token in vocabulary])

        self.ends = np.isin(np.arange(len(vocabulary)), end_ids)
        tags = (syntax.call_tags[1], syntax.think_tags[1].strip()) if syntax else (CALL_CLOSE, THINK_CLOSE)
        self.tags = matching(b"|".join(re.escape(tag.encode()) for tag in tags))
        self.line, self.quote = matching(rb"\n"), matching(re.escape(syntax.quote.encode()) if syntax else rb'"+')
        # A native string may have line breaks; its quote is not allowed in other text.
        self.in_text = [self.ends, *([self.quote] if syntax else []), self.tags, self.line]
        self.brackets, self.comma = matching(rb"\s*[\]}][\]}\s]*"), matching(rb",.*")

    def among(self, allowed: np.ndarray) -> np.ndarray:
        """The allowed tokens ``(vocabulary,)`` that close the most; all allowed tokens if none closes anything.

        In free text nearly every token is allowed; in a JSON string every token but a bare line break.
        """
        if allowed.sum() * 2 <= len(allowed):
            order = [self.ends, self.tags, self.brackets, self.quote, self.comma]
        elif (allowed & self.line).any():
            order = self.in_text
        else:
            order = [self.quote]
        return next((found for kind in order if (found := kind & allowed).any()), allowed)


class GrammarConstraint:
    """Keeps rows to their grammars; see :class:`fc_lightning.evaluation.generation.Constraint`."""

    def __init__(self, matchers: Sequence[Any], grammars: CallGrammars, limit: int):
        self.matchers, self.grammars, self.limit = matchers, grammars, limit
        self.rows: Sequence[int] = range(len(matchers))
        self.num_calls = [0] * len(matchers)  # for each row, one more than it has new tokens

    def set_rows(self, rows: Sequence[int]) -> None:
        """Set the rows of the following calls, as indices into all rows."""
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores ``(rows, vocabulary)`` of forbidden tokens to minus infinity; see ``Constraint``."""
        mask = self.grammars.xgrammar.allocate_token_bitmask(len(self.rows), self.grammars.vocabulary)
        for place, (row, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
            matcher, num_generated = self.matchers[row], self.num_calls[row]
            self.num_calls[row] += 1
            if num_generated and not matcher.is_terminated():  # padding follows the end of a turn
                matcher.accept_token(token)
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(mask, place)
                if num_generated * _CLOSING >= self.limit * (_CLOSING - 1):
                    self._keep_closers(mask[place])
        allowed = scores.clone()  # transformers may return the raw scores too
        self.grammars.xgrammar.apply_token_bitmask_inplace(allowed, mask.to(scores.device))
        return allowed

    def _keep_closers(self, mask: Tensor) -> None:
        """Keep only the closing tokens in a bit mask ``(vocabulary / 32,)`` of 32-bit words."""
        words = mask.numpy()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        size = self.grammars.vocabulary
        bits[:size] = self.grammars.closers.among(bits[:size].astype(bool))
        words[:] = np.packbits(bits, bitorder="little").view(np.int32)


def turn_grammar(schemas: dict[str, dict[str, Any]], syntax: NativeSyntax | None = None) -> dict[str, Any]:
    """The grammar of a model turn for xgrammar: an optional think block, then calls in the template's form or text.

    Args:
        schemas: For each offered tool, the schema of its arguments.
        syntax: The native tool language; None for Hermes.
    """
    if syntax:
        tags = [*syntax.tokens, *map(str.strip, syntax.think_tags)]
        think_tags, separator, end = syntax.think_tags, "", syntax.call_tags[1]
    else:
        tags = _TAGS
        think_tags, separator, end = (f"{THINK_OPEN}\n", f"\n{THINK_CLOSE}\n"), "\n", f"}}\n{CALL_CLOSE}"
    text = {"type": "any_text", "excludes": tags}
    think = {"type": "tag", "begin": think_tags[0], "content": text, "end": think_tags[1]}
    calls = [
        {"type": "tag", "begin": _call_start(name, syntax), "content": _arguments(schema, syntax), "end": end}
        for name, schema in schemas.items()
    ]
    call_list = {"type": "tags_with_separator", "tags": calls, "separator": separator, "at_least_one": True}
    first = {"type": "regex", "pattern": r"[^\s<]"}  # an answer is not empty
    answer = {"type": "sequence", "elements": [first, text]}
    turn = {"type": "or", "elements": [call_list, answer]} if calls else answer
    optional = {"type": "optional", "content": think}
    return {"type": "structural_tag", "format": {"type": "sequence", "elements": [optional, turn]}}


def _call_start(name: str, syntax: NativeSyntax | None) -> str:
    """The text of a call before its arguments."""
    if syntax:
        return f"{syntax.call_tags[0]}call:{name}"
    return f'{CALL_OPEN}\n{{"name": {dump_json(name)}, "arguments": '


def _arguments(schema: dict[str, Any], syntax: NativeSyntax | None) -> dict[str, Any]:
    if syntax:
        return {"type": "grammar", "grammar": native_arguments(schema, syntax)}
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}

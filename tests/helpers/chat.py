"""Conversations for tests of rendering: golden texts, strategies of hypothesis, and tokens shown as marked text."""

from itertools import groupby

from hypothesis import strategies as st

from fc_lightning.chat_template.template import ChatTemplate, Encoded, Rendered
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.types import Conversation, Tool, ToolCall

TINY = "tests/models/tiny_gemma2"
TOKENIZER, _ = load_tokenizer(TINY, None, tuple(SpecialToken))
TEMPLATE = ChatTemplate(TOKENIZER)
VERBATIM = ChatTemplate(TOKENIZER, "verbatim")

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "The weather's state.", SCHEMA)
CLOCK = Tool("clock")
PARIS = ToolCall("weather", {"city": "Paris"})
OSLO = ToolCall("weather", {"city": "Oslo", "days": 2, "exact": True, "unit": None})

# The head of the first turn and the calls, as the canonical template writes them.
HEAD = (
    "<tools>\n"
    '{"name": "weather", "description": "The weather\'s state.", "parameters": {"type": "object", '
    '"properties": {"city": {"type": "string"}}, "required": ["city"]}}\n'
    '{"name": "clock", "description": "", "parameters": {}}\n'
    "</tools>"
)
CALL_PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CALL_OSLO = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2, "exact": true, "unit": null}}\n'
    "</tool_call>"
)

# Pieces that stress what a text may hold. Tests of hostile text add the tags.
pieces = ["a", "Paris", " ", "  ", "\n", "é", "🙂", "<", "</", ">", "think>", "{", "}", '"', "'", "\\", "⟧", "0"]
texts = (
    st.lists(st.sampled_from(pieces), max_size=6)
    .map("".join)
    .map(str.strip)
    .filter(lambda text: not any(tag in text for tag in SpecialToken))
)
filled = texts.filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


def render(conversation: Conversation, template: ChatTemplate = TEMPLATE, **options) -> Rendered:
    return template.render(template.messages(conversation), conversation, **options)


def encode(conversation: Conversation, template: ChatTemplate = TEMPLATE, supervise="assistant") -> Encoded:
    return template.encode([render(conversation, template)], supervise)[0]


def mark(encoded: Encoded, tokenizer=TOKENIZER) -> str:
    """The tokens as text, with ⟦ and ⟧ around each run of supervised ones."""
    runs = groupby(zip(encoded.input_ids, encoded.supervised_mask, strict=True), key=lambda token: token[1])
    texts = [(flag, tokenizer.decode([token for token, _ in run])) for flag, run in runs]
    return "".join(f"⟦{text}⟧" if flag else text for flag, text in texts)

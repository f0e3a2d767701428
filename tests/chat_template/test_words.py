"""Encoding by words against the tokenizer itself, which takes each text as a whole.

To compare more rows, name files of JSON lines, and a base: ``FC_LIGHTNING_ROWS=a.jsonl:b.jsonl
FC_LIGHTNING_BASE=google/gemma-2-2b-it pytest tests/chat_template/test_words.py``.
"""

import json
import os
from array import array
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from fc_lightning.chat_template.template import ChatTemplate, Encoded, Rendered
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.chat_template.words import Words, word_pattern
from fc_lightning.conversation.value_matching import words
from fc_lightning.data.formats import RowError
from fc_lightning.data.sources import Source

BASE = os.environ.get("FC_LIGHTNING_BASE", "tests/models/tiny_gemma2")
TOKENIZER, _ = load_tokenizer(BASE, None, tuple(SpecialToken))
BACKEND = TOKENIZER.backend_tokenizer
TEMPLATE = ChatTemplate(TOKENIZER)
FILES = ["data/quickstart/train.jsonl", *filter(None, os.environ.get("FC_LIGHTNING_ROWS", "").split(os.pathsep))]

pieces = [" ", "  ", "▁", "\n", "\n\n", "\t", "\r", "\0", "a", "on", "ti", '"', ">", "</", "1", "é", "🙂", "\u2028"]
pieces += ["<end_of_turn>", "<tool_call>", "</tool_call>", "<eos>", "<unused1>", "<0x0A>", "<unk>", "[", "{'name': "]
texts = st.lists(st.sampled_from(pieces) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)
many = settings(max_examples=200, deadline=None)
WORDS = Words(BACKEND, word_pattern(BACKEND))


def tokenizer_of(vocabulary, merges, **options):
    """A tokenizer as Gemma's is, with a vocabulary of one's own."""
    vocabulary = ["<unk>", *dict.fromkeys("".join(vocabulary)), *vocabulary]
    numbers = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, **options))
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def by_words(table, text):
    return array("i", table.encode(text, 0, len(text))).tolist()


def whole(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@many
@given(texts)
def test_any_text_has_the_ids_that_the_tokenizer_gives(text):
    assert by_words(WORDS, text) == whole(BACKEND, text) == TOKENIZER(text, add_special_tokens=False).input_ids


# As Gemma 3 has `>▁</`: here ▁ follows > and b within tokens, x is in no token at all.
MERGES = [("a", "b"), (">", "▁"), ("b", "▁"), (">▁", "a"), ("▁", "▁"), ("▁", "a"), ("b▁", "▁a"), ("\n", "\n")]
REACHING = tokenizer_of(["\n", "▁", "a", "b", ">", *map("".join, MERGES)], MERGES)


@many
@given(st.text("ab> ▁\nx", max_size=20))
def test_cuts_keep_away_from_tokens_that_reach_over_a_space(text):
    assert by_words(Words(REACHING, word_pattern(REACHING)), text) == whole(REACHING, text)
    assert word_pattern(REACHING).findall("a a> b b a\n\na\n") == ["a", " a> b b a", "\n\n", "a", "\n", ""]


@many
@given(texts)
def test_cuts_are_where_words_end(text):
    cuts = {0, *accumulate(map(len, WORDS.pattern.findall(text)))}
    assert {place for place in range(len(text) + 1) if WORDS.is_cut(text, place)} == cuts


GEMMA = {"vocabulary": ["\n", "▁", "a", "b"], "merges": []}


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"merges": [("a", "\n")], "vocabulary": [*GEMMA["vocabulary"], "a\n"]}, None),
        ({"vocabulary": ["▁", "a"]}, None),
        ({"vocabulary": ["\n", "a"]}, None),
        ({"dropout": 0.1}, None),
        ({"ignore_merges": True}, None),
        ({"end_of_word_suffix": "</w>"}, None),
        ({"continuing_subword_prefix": "##"}, None),
        ({"vocabulary": [*GEMMA["vocabulary"], *(f"{letter}▁" for letter in "cdefghijklmnopqrst")]}, None),
        ({}, lambda backend: setattr(backend, "normalizer", normalizers.NFC())),
        ({}, lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Digits())),
        ({}, lambda backend: backend.add_tokens([AddedToken("<a>", lstrip=True)])),
        ({}, lambda backend: backend.add_tokens([AddedToken("<a>", single_word=True)])),
        ({}, lambda backend: backend.add_tokens([AddedToken("<a\n>")])),
        ({}, lambda backend: setattr(backend, "model", models.WordLevel({"a": 0}, "a"))),
    ],
)
def test_other_tokenizers_are_left_alone(options, change):
    assert word_pattern(tokenizer_of(**GEMMA))
    backend = tokenizer_of(**{**GEMMA, **options})
    if change:
        change(backend)
    assert word_pattern(backend) is None


def test_only_so_many_words_are_remembered(monkeypatch):
    monkeypatch.setattr(words, "_MAX_WORDS", 4)
    table = Words(BACKEND, WORDS.pattern)
    text = " ".join([*"abcdefghi", "x" * 1000]) * 3
    assert by_words(table, text) == whole(BACKEND, text)
    assert 0 < len(table) <= 4
    assert max(map(len, table)) < 1000


@many
@given(texts, st.data())
def test_supervised_tokens_are_those_that_start_in_the_ranges(text, data):
    places = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(places, places).map(sorted).map(tuple), max_size=3).map(sorted))
    breaks = tuple(sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=2)))) if text else ()
    rendered = Rendered(text, tuple(spans), breaks)
    (encoded,) = TEMPLATE.encode([rendered])
    ids, expected = [], []
    for start, end in zip((0, *breaks), (*breaks, len(text)), strict=True):
        piece = BACKEND.encode(text[start:end], add_special_tokens=False)
        ids += piece.ids
        # A character of several tokens belongs to the first of them: where it begins, they all do.
        expected += [any(a <= start + begin < b for a, b in spans) for begin, _ in piece.offsets]
    assert encoded.input_ids == ids
    assert encoded.supervised_mask == expected
    assert TEMPLATE.encode([rendered], "all") == [Encoded(ids, [(0, len(ids))] if ids else [])]


@pytest.mark.parametrize("path", FILES)
def test_rows_of_files(path):
    before = BACKEND.to_str()
    texts = []
    for place, row in Source(path).rows():
        conversation = Source(path).read(row, place)
        if not isinstance(conversation, RowError) and not conversation.defects:
            texts.append(TEMPLATE.render(TEMPLATE.messages(conversation), conversation))
    assert texts
    encoded = TEMPLATE.encode(texts)
    for start in range(0, len(texts), 500):
        rows = texts[start : start + 500]
        reference = TEMPLATE._encode_whole(rows)
        assert encoded[start : start + 500] == reference
        plain = [number for number, row in enumerate(rows) if not row.breaks]
        expected = TOKENIZER([rows[number].text for number in plain], add_special_tokens=False).input_ids
        assert [reference[number].input_ids for number in plain] == expected
    # What a run saves of the tokenizer is what it was.
    assert BACKEND.to_str() == before
    assert json.loads(before)["pre_tokenizer"] == words._state(BACKEND.pre_tokenizer)

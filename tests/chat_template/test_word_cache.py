"""The word cache against the tokenizer itself, which encodes each text as a whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from fc_lightning.chat_template import word_cache
from fc_lightning.chat_template.control_tokens import BREAK
from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.chat_template.word_cache import WordCache, word_pattern
from fc_lightning.data.sources import Source

TOKENIZER, _ = load_tokenizer("tests/models/tiny_gemma2", None, tuple(SpecialToken))
TEMPLATE = ChatTemplate(TOKENIZER)  # it makes the tokenizer remove breaks
BACKEND = TOKENIZER.backend_tokenizer

pieces = [" ", "  ", "▁", "\n", "\n\n", "\t", "\r", "\0", "a", "on", "ti", '"', ">", "</", "1", "é", "🙂", "\u2028"]
pieces += ["<end_of_turn>", "<tool_call>", "</tool_call>", "<eos>", "<unused1>", "<0x0A>", "<unk>", "[", BREAK]
texts = st.lists(st.sampled_from(pieces) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)
many = settings(max_examples=200, deadline=None)
CACHE = WordCache(BACKEND, word_pattern(BACKEND, BACKEND.get_vocab()))


def tokenizer_of(vocabulary, merges, **options):
    """A tokenizer like Gemma's, with a vocabulary of its own."""
    vocabulary = dict.fromkeys(["<unk>", *"".join(vocabulary), *vocabulary])
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, **options))
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def by_words(cache, text):
    (encoded,) = cache.encode([text], [[0, len(text)]])
    return encoded[0]


def whole(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@many
@given(st.lists(texts, max_size=4))
def test_ids_are_those_of_the_tokenizer(batch):
    encoded = CACHE.encode(batch, [[0, len(text)] if text else [0] for text in batch])
    assert [ids for ids, _ in encoded] == [whole(BACKEND, text) for text in batch]


# As Gemma 3 has `>▁</`: here ▁ follows > and b within tokens, x is in no token.
MERGES = [("a", "b"), (">", "▁"), ("b", "▁"), (">▁", "a"), ("▁", "▁"), ("▁", "a"), ("b▁", "▁a"), ("\n", "\n")]
REACHING = tokenizer_of(["\n", "▁", "a", "b", ">", *map("".join, MERGES)], MERGES)


@many
@given(st.text("ab> ▁\nx", max_size=20))
def test_words_do_not_end_inside_tokens(text):
    pattern = word_pattern(REACHING, REACHING.get_vocab())
    assert by_words(WordCache(REACHING, pattern), text) == whole(REACHING, text)
    assert pattern.findall("a a> b b a\n\na\n") == ["a", " a> b b a", "\n\n", "a", "\n", ""]


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
def test_other_tokenizers_have_no_word_pattern(options, change):
    same = tokenizer_of(**GEMMA)
    assert word_pattern(same, same.get_vocab())
    backend = tokenizer_of(**{**GEMMA, **options})
    if change:
        change(backend)
    assert word_pattern(backend, backend.get_vocab()) is None


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(word_cache, "_MAX_CHARACTERS", 100)
    cache = WordCache(BACKEND, word_pattern(BACKEND, BACKEND.get_vocab()))
    sizes = []
    for number in range(50):
        text = f"the word {number} and {'x' * number}\n"
        assert by_words(cache, text) == whole(BACKEND, text)
        sizes.append(sum(map(len, cache._ids)))
    assert 100 < max(sizes) < 100 + 70


def test_rows_have_the_ids_of_their_texts():
    source = Source("data/quickstart/train.jsonl")
    conversations = [source.read(row, place) for place, row in source.rows()]
    rendered = [TEMPLATE.render(TEMPLATE.messages(one), one) for one in conversations]
    by_word, by_text = TEMPLATE.encode(rendered), TEMPLATE.encode(rendered, starts=True)
    assert by_word == by_text
    assert not by_word[0].starts
    assert by_text[0].starts  # the texts were not encoded by words
    assert [one.input_ids for one in by_word] == TOKENIZER(
        [one.text for one in rendered], add_special_tokens=False
    ).input_ids

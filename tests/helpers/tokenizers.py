"""Small tokenizers in the chat formats of several model families."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fc_lightning.chat_template.tool_formats import CHAT_FORMATS


def tokenizer_of(
    format_name: str, bos: str | None, eos: str, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on the quickstart's questions, with a chat format's markers."""
    marks = next(each.marker_tokens for each in CHAT_FORMATS if each.name == format_name)
    rows = map(json.loads, Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[:60])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    texts = (turn["value"].replace("<", " ") for row in rows for turn in row["conversations"])
    backend.train_from_iterator(texts, trainer)
    named = {"eos_token": eos, "pad_token": "<pad>", **({"bos_token": bos} if bos else {})}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark != eos]})
    return tokenizer

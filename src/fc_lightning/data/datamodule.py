"""The DataModule: prepared documents, planned into micro-batches before they are dealt out to ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Sampler

from fc_lightning.chat_template.template import ChatTemplate, Render, Supervise
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.batches import Packs, lengths_of, prompt_loader
from fc_lightning.data.collator import PackingCollator
from fc_lightning.data.encoding import Preparation
from fc_lightning.data.order import check_order, order_of, place_of
from fc_lightning.data.prepare import Prepared, fingerprint, load_prepared, prepare
from fc_lightning.data.prompts import prompt_rows
from fc_lightning.data.reasoning import Thoughts
from fc_lightning.data.samplers import MicroBatch, MicroBatchSampler, plan_generation, shard_batches
from fc_lightning.data.sources import DataError, Source, weights_of
from fc_lightning.data.streaming import StreamCollator, StreamingPacks
from fc_lightning.utils.pretrained import cache_dir as default_cache_dir


class FunctionCallingDataModule(LightningDataModule):
    """Function-calling conversations, from any source to batches.

    Args:
        base: The model whose tokenizer is used: a hub id, a folder or a GGUF file. Follows ``model.base``.
        train: Sources to train on.
        validation: Sources to validate on, or the share of ``train`` to hold out for it.
        test: Sources to test on and to predict; those of ``validation`` if not given.
        revision: Revision of the base on the hub. Follows ``model.revision``.
        special_tokens: Tags that are one token each. Follows ``model.special_tokens``.
        supervise: What is learned. Follows ``model.supervise``.
        render: ``canonical`` writes tools and calls anew as JSON; ``verbatim`` keeps the text of the rows.
        chat_template: A Jinja file to use instead of the template that fits the tokenizer.
        thoughts: What becomes of thinking: ``keep`` leaves it as the rows have it, ``none`` leaves it out, ``template``
            writes a short rationale for each turn of the model that has none.
        thoughts_share: Share of the conversations that are to have thoughts, chosen by their ids; the others have none.
        max_length: Tokens of a row: a longer conversation is not used whole, a pack holds so many.
        too_long: What becomes of a longer conversation: ``drop`` it, or ``cut`` it behind the last model turn that
            fits.
        packing: Whether rows hold as many conversations as fit, or one.
        batch_size: Rows of a micro-batch.
        validation_prompts: How many of the validation's prompts are generated within ``fit``, evenly spread; all of
            them if not given. ``validate`` and ``test`` always take all.
        generation_batch_tokens: Prompts are generated together as long as they have fewer tokens than this, padding
            included.
        generation_batch_size: The most prompts that are generated together.
        num_workers: Processes that collate batches; 0 collates in the training process.
        seed: Orders the training data, together with the epoch; null keeps the order of the rows.
        streaming: Whether to read, encode and pack the training data while the model trains, instead of preparing it
            beforehand; memory does not grow with the data then. It has no end: give ``trainer.max_steps``.
        shuffle_buffer: Rows that are shuffled and packed together when data is streamed.
        preparation_processes: Processes that read, render and encode rows before training; by default one for each core
            if there is much to do (on Linux). What they prepare does not depend on it.
        max_unreadable: Training and evaluation do not start if a larger share of a split's rows cannot be used because
            of how they are written.
        audit_limits: Findings that a strict audit lets pass: for a kind of finding (``duplicate``,
            ``ungrounded_value``, …) the share of a split's rows that may have it; 0 where none is given.
        cache_dir: Where prepared data is kept; by default ``$FC_LIGHTNING_CACHE`` or ``~/.cache/fc-lightning``.
    """

    def __init__(
        self,
        base: str = "google/gemma-2-2b-it",
        train: list[Source] | None = None,
        validation: list[Source] | float | None = None,
        test: list[Source] | None = None,
        revision: str | None = None,
        special_tokens: list[str] | None = None,
        supervise: Supervise = "assistant",
        render: Render = "canonical",
        chat_template: str | None = None,
        thoughts: Thoughts = "keep",
        thoughts_share: float = 1.0,
        max_length: int = 2048,
        too_long: Literal["drop", "cut"] = "drop",
        packing: bool = True,
        batch_size: int = 1,
        validation_prompts: int | None = None,
        generation_batch_tokens: int = 8192,
        generation_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1024,
        preparation_processes: int | None = None,
        max_unreadable: float = 0.05,
        audit_limits: dict[str, float] | None = None,
        cache_dir: str | None = None,
    ):
        super().__init__()
        self.base, self.revision = base, revision
        self.special_tokens = list(SpecialToken) if special_tokens is None else special_tokens
        self.sources: dict[str, list[Source]] = {"train": train or []}
        self.held_out = float(validation) if isinstance(validation, int | float) else 0.0
        held_out_sources = self.sources["train"] if self.held_out else []
        self.sources["validation"] = validation if isinstance(validation, list) else held_out_sources
        self.sources["test"] = test or self.sources["validation"]
        self.supervise, self.thoughts, self.thoughts_share = supervise, thoughts, thoughts_share
        if render == "verbatim" and (thoughts != "keep" or thoughts_share < 1):
            raise DataError(
                "`data.thoughts`: verbatim rendering keeps the rows' own text; use `data.render: canonical`"
            )
        self.render, self.chat_template = render, chat_template
        self.max_length, self.too_long = max_length, too_long
        self.packing, self.batch_size, self.validation_prompts = packing, batch_size, validation_prompts
        self.generation_batch_tokens, self.generation_batch_size = generation_batch_tokens, generation_batch_size
        self.num_workers, self.seed, self.max_unreadable = num_workers, seed, max_unreadable
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self._stream: StreamingPacks | None = None
        self._sampler: MicroBatchSampler | None = None
        self._resumed: dict[str, Any] = {}  # what a checkpoint says of the data
        self.audit_limits, self.preparation_processes = audit_limits, preparation_processes
        self.prepared: dict[str, Prepared] = {}
        self._folders: dict[tuple[str, Preparation], Path] = {}
        self.asked: list[Conversation] | None = None  # to predict instead of the test split
        self._template: ChatTemplate | None = None

    @property
    def template(self) -> ChatTemplate:
        """The chat template, with its tokenizer."""
        if self._template is None:
            tokenizer, _ = load_tokenizer(self.base, self.revision, tuple(self.special_tokens))
            self._template = ChatTemplate(tokenizer, self.render, self.chat_template)
        return self._template

    def prepare_data(self) -> None:
        """Read, render and encode what is not in the cache yet. Lightning calls it in one process a machine."""
        for split in self._splits(getattr(self.trainer, "state", None) and self.trainer.state.fn):
            self._prepare(split)

    def setup(self, stage: str | None = None) -> None:
        """Open what ``prepare_data`` has written.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None for all of them.
        """
        endless = self.streaming and self.trainer is not None and not isinstance(self.trainer.limit_train_batches, int)
        if stage == "fit" and endless and self.trainer.max_steps == -1:
            raise DataError("`data.streaming` has no end: give `trainer.max_steps`")
        if self.streaming and self.seed is None:
            raise DataError("`data.streaming` shuffles: give `data.seed` a number")
        for split in self._splits(stage):
            if split not in self.prepared:
                self._prepare(split)
                self.prepared[split] = load_prepared(self._folder(split))
                lines = self.prepared[split].report.lines(split)
                if stage == "fit":  # the summary of the run has the first line
                    lines = [f"{split}:", *lines[1:]] if lines[1:] else []
                if lines:
                    rank_zero_info("\n".join(lines))
                if stage is not None:  # all splits at once are asked for by who wants to see what is wrong
                    self.prepared[split].report.check(split, self.max_unreadable)

    def preparation(self, split: str) -> Preparation:
        """How the conversations of a split become documents."""
        return Preparation(
            supervise=self.supervise,
            thoughts=self.thoughts,
            thoughts_share=self.thoughts_share,
            max_length=self.max_length,
            too_long=self.too_long,
            held_out=self.held_out,
            side="kept" if split == "train" else "held_out",
            prompts=split != "train",
        )

    def train_dataloader(self) -> DataLoader:
        """Micro-batches, shuffled anew each epoch; every rank gets equally many. If data is streamed, without end."""
        weights = weights_of(self.sources["train"])
        if self.streaming:
            return self._stream_loader(weights)
        documents = self.prepared["train"].documents
        if weights and (empty := set(range(len(weights))) - set(documents["source"][:])):
            raise DataError(f"`data.train`: {self.sources['train'][min(empty)].path} has a `weight`, but no usable row")
        self._sampler = MicroBatchSampler(
            lengths=lengths_of(documents),
            capacity=self.max_length if self.packing else None,
            batch_size=self.batch_size,
            num_replicas=self._world_size,
            rank=self._rank,
            seed=self.seed,
            sources=documents["source"][:] if weights else None,
            weights=weights,
        )
        self._go_to_place()
        return self._loader(documents, self._sampler)

    def val_dataloader(self) -> list[DataLoader]:
        """Two loaders: batches for the loss, and prompts to generate from."""
        return self._evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader]:
        """Two loaders, as for validation."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> DataLoader:
        """The prompts of the test split."""
        if self.asked is not None:
            return self._prompt_loader(prompt_rows(self.asked, self.template))
        return self._evaluation_loaders("test")[1]

    def _stream_loader(self, weights: list[float] | None) -> DataLoader:
        self._stream = StreamingPacks(
            sources=self.sources["train"],
            template=self.template,
            how=self.preparation("train"),
            batch_size=self.batch_size,
            packing=self.packing,
            buffer=self.shuffle_buffer,
            seed=self.seed or 0,
            max_unreadable=self.max_unreadable,
            weights=weights,
            num_replicas=self._world_size,
            rank=self._rank,
            num_workers=self.num_workers,
        )
        self._go_to_place()
        # Workers that lived on would not learn how far the model has come.
        return DataLoader(
            self._stream,
            batch_size=None,
            collate_fn=StreamCollator(self._collator),
            num_workers=self.num_workers,
            pin_memory=self._on_gpu,
            generator=torch.Generator(),  # of its own, as for prompts
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning calls it when the model takes a batch: a stream goes on behind those, not behind fetched ones."""
        if self._stream is not None and isinstance(batch, dict) and (stream := batch.pop("stream", None)):
            self._stream.consume(stream)
        return batch

    def place(self) -> dict[str, Any]:
        """Where this rank stands: behind the micro-batches that the model has taken, whatever was fetched beyond."""
        return {"stream": self._stream.place()} if self._stream else place_of(self.trainer)

    def state_dict(self, place: dict[str, Any] | None = None) -> dict[str, Any]:
        """What is trained on, and the place in it, now or another one, for a checkpoint; a collective."""
        if not (self._stream or self._sampler):
            return {}
        place = place or self.place()
        if self._stream:
            place = {"stream": self._stream.state_dict(place["stream"])}
        return {**place, "ranks": self._world_size, "order": order_of(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the same data, where a checkpoint was written; other data is a :class:`DataError`."""
        if self.trainer and self.trainer.state.fn != "fit":
            return
        check_order(state_dict.get("order", {}), order_of(self))
        self._resumed = state_dict
        if self._sampler or self._stream:  # where weights are sharded, checkpoints are read after the loader was made
            self._go_to_place()

    def _go_to_place(self) -> None:
        if self._stream is not None and "stream" in self._resumed:
            self._stream.load_state_dict(self._resumed["stream"])
        elif self._sampler is not None and "epoch" in self._resumed:
            self._sampler.resume(self._resumed["epoch"], self._resumed["batches"] * self._resumed["ranks"])

    def teardown(self, stage: str | None = None) -> None:
        """Say what became of streamed rows."""
        if self._stream is not None and stage == "fit":
            rank_zero_info("\n".join(self._stream.lines()))

    def _evaluation_loaders(self, split: str) -> list[DataLoader]:
        if split not in self.prepared:
            return []
        documents, prompts = self.prepared[split].documents, self.prepared[split].prompts
        sampler = MicroBatchSampler(
            lengths=lengths_of(documents),
            capacity=self.max_length if self.packing else None,
            batch_size=self.batch_size,
            num_replicas=self._world_size,
            rank=self._rank,
        )
        if (number := self.validation_prompts) and self.trainer and self.trainer.state.fn == "fit":
            number = min(number, len(prompts))
            prompts = prompts.select([place * len(prompts) // number for place in range(number)])
        return [self._loader(documents, sampler), self._prompt_loader(prompts)]

    def _prompt_loader(self, prompts: Any) -> DataLoader:
        ids = [row["input_ids"] for row in prompts]
        batches = plan_generation(ids, self.generation_batch_tokens, self.generation_batch_size)
        return prompt_loader(prompts, shard_batches(batches, self._world_size, self._rank))

    def _loader(self, documents: Dataset, sampler: Sampler[MicroBatch]) -> DataLoader:
        return DataLoader(
            Packs(documents),
            sampler=sampler,
            batch_size=None,
            generator=torch.Generator(),  # of its own, as for prompts
            collate_fn=self._collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._on_gpu,
        )

    def _splits(self, stage: str | None) -> list[str]:
        if stage == "predict" and self.asked is not None:
            return []
        splits = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"], "predict": ["test"]}
        wanted = splits.get(getattr(stage, "value", stage) or "", list(self.sources))  # Lightning says it in an enum
        needed = wanted[0]
        if stage is not None and not self.sources[needed]:
            raise DataError(f"nothing to read: give `data.{needed}` a list of sources, as `- path: FILE`")
        if self.streaming and self.held_out:
            raise DataError("`data.streaming`: no share can be held out of a stream; give `data.validation` sources")
        streamed = ["train"] if self.streaming and stage is not None else []
        return [split for split in wanted if self.sources[split] and split not in streamed]

    def _prepare(self, split: str) -> None:
        how, folder = self.preparation(split), self._folder(split)
        prepare(self.sources[split], self.template, how, folder, self.preparation_processes)

    def _folder(self, split: str) -> Path:
        key = (split, self.preparation(split))
        if key not in self._folders:  # it takes reading every file
            name = fingerprint(self.sources[split], self.template, self.preparation(split))
            self._folders[key] = self.cache_dir / "data" / name
        return self._folders[key]

    @property
    def _collator(self) -> PackingCollator:
        # Kernels that are compiled for a shape want rows of one length.
        pad_to = self.max_length if self.packing and self._on_gpu else 0
        return PackingCollator(self.template.tokenizer.pad_token_id or 0, pad_to)

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

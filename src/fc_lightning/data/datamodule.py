"""The DataModule: prepared documents, planned into micro-batches before they are sharded over ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from fc_lightning.chat_template.template import ChatTemplate, Render, Supervise
from fc_lightning.chat_template.token_parts import TokenWeights
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.chat_template.tool_formats import ToolFormat
from fc_lightning.data import dataloaders
from fc_lightning.data.augmentation import Augmentation, Perturbation
from fc_lightning.data.augmented_epochs import AugmentedSampler, EpochDataset
from fc_lightning.data.collator import PackingCollator
from fc_lightning.data.contamination import without_trained_questions
from fc_lightning.data.encoding import EncodingSettings
from fc_lightning.data.prepare import Prepared, fingerprint, load_prepared, prepare
from fc_lightning.data.reasoning import Thoughts
from fc_lightning.data.samplers import MicroBatchSampler, plan_generation, shard_batches
from fc_lightning.data.sources import DataError, Source, source_weights
from fc_lightning.data.streaming import StreamCollator, StreamingPacks
from fc_lightning.data.training_order import ResumableDataModule
from fc_lightning.utils.pretrained import cache_dir as default_cache_dir


class FunctionCallingDataModule(ResumableDataModule):
    """Function-calling conversations: reads, prepares, packs and batches any number of sources.

    Args:
        base: The model whose tokenizer is used: a Hub ID, a folder or a GGUF file. Follows ``model.base``.
        train: Sources to train on.
        validation: Sources to validate on, or the fraction of ``train`` to hold out.
        test: Sources for ``test`` and ``predict``; defaults to those of ``validation``.
        revision: Hub revision of the base. Follows ``model.revision``.
        tool_format: How tools and calls are written. Follows ``model.tool_format``.
        special_tokens: Tags that are one token each. Follows ``model.special_tokens``.
        supervise: Supervised tokens: the model's turns, or all. Follows ``model.supervise``.
        render: ``canonical`` parses tools and calls and writes them as JSON; ``verbatim`` keeps the text of the rows.
        chat_template: A Jinja file that replaces the template selected by the tokenizer.
        thoughts: How to handle reasoning: ``keep`` leaves rows unchanged, ``none`` removes it, ``template`` writes a
            short rationale for each model turn that has none.
        thoughts_share: Fraction of conversations, selected by ID, that have reasoning; the others have none.
        max_length: Length of a pack in tokens; ``too_long`` says what happens to a longer conversation.
        too_long: How to handle a conversation that is too long: ``drop`` it, or ``cut`` it after the last model turn
            that fits.
        packing: Whether a row holds as many conversations as fit, or one.
        batch_size: Rows per micro-batch.
        validation_prompts: Number of validation prompts to generate from during ``fit``, evenly spread; all by
            default. ``validate`` and ``test`` always use all.
        generation_batch_tokens: Largest generation batch in tokens, padding included.
        generation_batch_size: Largest generation batch in prompts.
        num_workers: Processes that collate batches; 0 collates in the training process.
        seed: Seed for shuffling the training data in each epoch; null keeps the order of the rows.
        streaming: Whether to read, encode and pack training data during training, in constant memory, instead of
            preparing it first. A stream is endless and requires ``trainer.max_steps``.
        shuffle_buffer: Rows that are shuffled and packed together when streaming.
        preparation_processes: Processes that prepare data; by default one per core if there is enough data (Linux
            only). The result does not depend on it.
        augmentation: Augmentations of training rows, redrawn in every epoch. Canonical rendering only.
        perturbations: Perturbations under which ``validate`` and ``test`` also evaluate each held-out turn.
            Canonical rendering only.
        token_weights: Weights of supervised tokens in the training loss. Follows ``model.token_weights``.
        pairs: Whether rejected turns are trained on too. Follows ``model.preference``.
        max_unreadable: Largest fraction of unreadable rows per split; a run with more does not start.
        audit_limits: Findings that a strict audit accepts: for a kind of finding (``duplicate``,
            ``ungrounded_value``, …) the fraction of a split's rows that may have it; 0 by default.
        cache_dir: Folder of prepared data; by default ``$FC_LIGHTNING_CACHE`` or ``~/.cache/fc-lightning``.
    """

    prompts: list[dict[str, Any]] | None = None  # encoded, to predict instead of the test split

    def __init__(
        self,
        base: str = "google/gemma-2-2b-it",
        train: list[Source] | None = None,
        validation: list[Source] | float | None = None,
        test: list[Source] | None = None,
        revision: str | None = None,
        tool_format: ToolFormat = "auto",
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
        generation_batch_tokens: int = 32768,
        generation_batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1024,
        preparation_processes: int | None = None,
        augmentation: Augmentation | None = None,
        perturbations: list[Perturbation] | None = None,
        token_weights: TokenWeights | None = None,
        pairs: bool = False,
        max_unreadable: float = 0.05,
        audit_limits: dict[str, float] | None = None,
        cache_dir: str | None = None,
    ):
        super().__init__()
        if render == "verbatim" and (thoughts != "keep" or thoughts_share < 1):
            raise DataError("`data.thoughts`: verbatim rendering keeps the rows' text; use `data.render: canonical`")
        if render == "verbatim" and (augmentation or perturbations):
            raise DataError(
                "`data.augmentation`, `data.perturbations`: verbatim rendering keeps the rows' text; use "
                "`data.render: canonical`"
            )
        self.base = base
        self.held_out = float(validation) if isinstance(validation, int | float) else 0.0
        train_sources = train or []
        own_sources = train_sources if self.held_out else []  # a fraction of them is held out
        self.sources: dict[str, list[Source]] = {
            "train": train_sources,
            "validation": validation if isinstance(validation, list) else own_sources,
            "test": test or (validation if isinstance(validation, list) else own_sources),
        }
        # Tokenizer and rendering
        self.revision = revision
        self.tool_format = tool_format
        self.special_tokens = list(SpecialToken) if special_tokens is None else special_tokens
        self.supervise = supervise
        self.render = render
        self.chat_template = chat_template
        self.thoughts = thoughts
        self.thoughts_share = thoughts_share
        self._template: ChatTemplate | None = None
        # Augmentation and weights
        self.augmentation = augmentation
        self.perturbations = tuple(perturbations or ())
        self.token_weights = token_weights
        self.pairs = pairs
        # Lengths and batches
        self.max_length = max_length
        self.too_long = too_long
        self.packing = packing
        self.batch_size = batch_size
        self.validation_prompts = validation_prompts
        self.generation_batch_tokens = generation_batch_tokens
        self.generation_batch_size = generation_batch_size
        # Loading and preparation
        self.num_workers = num_workers
        self.seed = seed
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.preparation_processes = preparation_processes
        self.max_unreadable = max_unreadable
        self.audit_limits = audit_limits
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.prepared: dict[str, Prepared] = {}
        self._folders: dict[tuple[str, EncodingSettings], Path] = {}

    @property
    def template(self) -> ChatTemplate:
        """The chat template, with its tokenizer."""
        if self._template is None:
            tokenizer, _ = load_tokenizer(self.base, self.revision, tuple(self.special_tokens), self.tool_format)
            self._template = ChatTemplate(tokenizer, self.render, self.chat_template, self.tool_format)
        return self._template

    def prepare_data(self) -> None:
        """Read, render and encode what is not in the cache. Lightning calls it in one process per machine."""
        for split in self._splits(getattr(self.trainer, "state", None) and self.trainer.state.fn):
            self._prepare(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared data.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; None for all of them.
        """
        endless = self.streaming and self.trainer is not None and not isinstance(self.trainer.limit_train_batches, int)
        if stage == "fit" and endless and self.trainer.max_steps == -1:
            raise DataError("`data.streaming` is endless: set `trainer.max_steps`")
        if self.streaming and self.seed is None:
            raise DataError("`data.streaming` always shuffles: `data.seed` must be an integer")
        for split in self._splits(stage):
            if split not in self.prepared:
                self._prepare(split)
                prepared = load_prepared(self._folder(split))
                self.prepared[split] = without_trained_questions(prepared, split, self.sources)
                lines = self.prepared[split].report.lines(split)
                if stage == "fit":  # the run's summary prints the first line
                    lines = [f"{split}:", *lines[1:]] if lines[1:] else []
                if lines:
                    rank_zero_info("\n".join(lines))
                if stage is not None:  # `audit` passes None: it reports problems itself
                    self.prepared[split].report.check(split, self.max_unreadable)

    def preparation(self, split: str) -> EncodingSettings:
        """How the conversations of a split are encoded."""
        return EncodingSettings(
            supervise=self.supervise,
            thoughts=self.thoughts,
            thoughts_share=self.thoughts_share,
            max_length=self.max_length,
            too_long=self.too_long,
            held_out=self.held_out,
            subset="kept" if split == "train" else "held_out",
            prompts=split != "train",
            perturbations=() if split == "train" else self.perturbations,
            token_parts=split == "train" and self.token_weights is not None,
            pairs=split == "train" and self.pairs,
        )

    def prepare_epoch(self, epoch: int) -> Path:
        """Prepare the augmented training documents of an epoch; returns their folder. Every rank may call it."""
        settings = self._augmented(epoch)
        folder = self._folder("train", settings)
        prepare(self.sources["train"], self.template, settings, folder, self.preparation_processes)
        return folder

    def train_dataloader(self) -> DataLoader:
        """Micro-batches, reshuffled each epoch, the same number on every rank; an endless stream if streaming."""
        weights = source_weights(self.sources["train"])
        if self.streaming:
            return self._stream_loader(weights)
        documents = self.prepared["train"].documents
        if weights and (empty := set(range(len(weights))) - set(documents["source"][:])):
            raise DataError(f"`data.train`: {self.sources['train'][min(empty)].path} has a `weight` but no usable row")
        order = {"seed": self.seed, "sources": documents["source"][:] if weights else None, "weights": weights}
        packs: Any = EpochDataset() if self.augmentation else dataloaders.PackDataset(documents)
        if self.augmentation:
            self._sampler = AugmentedSampler(self.prepare_epoch, **self._sampling, **order)
        else:
            self._sampler = self._micro_batches(documents, **order)
        self._restore_position()
        return self._document_loader(packs, self._sampler, self.token_weights)

    def val_dataloader(self) -> list[DataLoader]:
        """Two loaders: batches for the loss, and prompts to generate from."""
        return self._evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader]:
        """Two loaders, as for validation."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> DataLoader:
        """The prompts of the test split."""
        return self._evaluation_loaders("test")[1] if self.prompts is None else self._prompt_loader(self.prompts)

    def _stream_loader(self, weights: list[float] | None) -> DataLoader:
        self._stream = StreamingPacks(
            sources=self.sources["train"],
            template=self.template,
            settings=self._augmented(0),
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
        self._restore_position()
        collator = StreamCollator(self._collator(self.token_weights))
        # Workers are not persistent: those of a new iteration must start at the position that the model has reached.
        return dataloaders.loader(self._stream, collate_fn=collator, **self._workers)

    def _evaluation_loaders(self, split: str) -> list[DataLoader]:
        if split not in self.prepared:
            return []
        documents, prompts = self.prepared[split].documents, self.prepared[split].prompts
        if self.trainer and self.trainer.state.fn == "fit":
            prompts = dataloaders.without_perturbations(prompts)
            prompts = dataloaders.evenly_spread(prompts, self.validation_prompts or len(prompts))
        packs = dataloaders.PackDataset(documents)
        return [self._document_loader(packs, self._micro_batches(documents)), self._prompt_loader(prompts)]

    def _document_loader(
        self, packs: Any, sampler: MicroBatchSampler, weights: TokenWeights | None = None
    ) -> DataLoader:
        options = {"persistent_workers": self.num_workers > 0, **self._workers}
        return dataloaders.loader(packs, sampler=sampler, collate_fn=self._collator(weights), **options)

    @property
    def _workers(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": self._on_gpu}

    def _micro_batches(self, documents: Dataset, **order: Any) -> MicroBatchSampler:
        return MicroBatchSampler(lengths=dataloaders.token_counts(documents), **self._sampling, **order)

    @property
    def _sampling(self) -> dict[str, Any]:
        return {
            "capacity": self.max_length if self.packing else None,
            "batch_size": self.batch_size,
            "num_replicas": self._world_size,
            "rank": self._rank,
        }

    def _augmented(self, epoch: int) -> EncodingSettings:
        return replace(self.preparation("train"), augmentation=self.augmentation, seed=self.seed, epoch=epoch)

    def _prompt_loader(self, prompts: Any) -> DataLoader:
        ids = [row["input_ids"] for row in prompts]
        size = min(self.generation_batch_size, -(-len(ids) // self._world_size))  # so that every rank has some
        batches = plan_generation(ids, self.generation_batch_tokens, size)
        sampler = dataloaders.join_for_refill(shard_batches(batches, self._world_size, self._rank), self.trainer)
        dataset = dataloaders.PromptDataset(prompts, (self.generation_batch_tokens, self.generation_batch_size))
        return dataloaders.loader(dataset, sampler=sampler, collate_fn=lambda batch: batch)

    def _splits(self, stage: str | None) -> list[str]:
        if stage == "predict" and self.prompts is not None:
            return []
        splits = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"], "predict": ["test"]}
        wanted = splits.get(getattr(stage, "value", stage) or "", list(self.sources))  # Lightning passes an enum
        if stage is not None and not self.sources[wanted[0]]:
            raise DataError(f"nothing to read: set `data.{wanted[0]}` to a list of sources, such as `- path: FILE`")
        if self.streaming and self.held_out:
            raise DataError("`data.streaming`: nothing can be held out from a stream; set `data.validation` to sources")
        streamed = "train" if self.streaming and stage is not None else None
        return [split for split in wanted if self.sources[split] and split != streamed]

    def _prepare(self, split: str) -> None:
        settings = self.preparation(split)
        prepare(self.sources[split], self.template, settings, self._folder(split), self.preparation_processes)

    def _folder(self, split: str, settings: EncodingSettings | None = None) -> Path:
        key = (split, settings or self.preparation(split))
        if key not in self._folders:  # cached, because it reads every file
            name = fingerprint(self.sources[split], self.template, key[1])
            self._folders[key] = self.cache_dir / "data" / name
        return self._folders[key]

    def _collator(self, weights: TokenWeights | None = None) -> PackingCollator:
        by_part = None if weights is None else weights.by_part
        pad_id = self.template.tokenizer.pad_token_id or 0
        if not self._on_gpu:  # oneDNN generates kernels for each length, and keeps a limited number of them
            return PackingCollator(pad_id, weights=by_part, multiple_of=32)
        if self.packing:  # compiled kernels need rows of one length, or of few
            return PackingCollator(pad_id, self.max_length, by_part)
        return PackingCollator(pad_id, 128, by_part, few_lengths=True)  # flex attention needs 128 tokens

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

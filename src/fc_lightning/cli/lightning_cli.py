"""The command line: ``python main.py SUBCOMMAND --config …``, see :meth:`FunctionCallingCLI.subcommands`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils.logging import disable_progress_bar

from fc_lightning.callbacks import ExtraLogger
from fc_lightning.callbacks.failures import Failures
from fc_lightning.callbacks.preemption import Preemption
from fc_lightning.chat_template.template import ChatTemplateError
from fc_lightning.cli.errors import ConfigurationError, Parser, explain_trainer
from fc_lightning.commands.audit import AuditError, audit
from fc_lightning.commands.chat import chat
from fc_lightning.commands.distill import TeacherError, think
from fc_lightning.commands.export.folder import ExportError, export, find_checkpoint
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.formats import UnknownFormatError
from fc_lightning.data.prompts import read_prompts
from fc_lightning.evaluation.report import ReportError, read_run, write_report
from fc_lightning.training import distributed as ranks
from fc_lightning.training.checkpoint_io import CheckpointError
from fc_lightning.training.loggers import ignore_write_errors
from fc_lightning.training.module import FunctionCallingModule, NonFiniteError
from fc_lightning.training.resume import checkpoint_to_resume_from, make_resumable
from fc_lightning.utils.atomic_files import DiskError, wrap_os_errors, write_text
from fc_lightning.utils.environment import describe_environment
from fc_lightning.utils.malloc import keep_freed_memory
from fc_lightning.utils.pretrained import BaseModelError
from fc_lightning.utils.secrets import redact_config

# What a user can put right: told in one line, without a traceback.
USER_ERRORS = (
    AuditError,
    BaseModelError,
    ChatTemplateError,
    CheckpointError,
    ConfigurationError,
    DataError,
    DiskError,
    ExportError,
    NonFiniteError,
    ReportError,
    TeacherError,
    UnknownFormatError,
)
# What libraries tell each other of names that change; nobody who trains can do anything about it.
_AMONG_LIBRARIES = (r".*is_gradient_checkpointing. is deprecated", r".*isinstance\(treespec, LeafSpec\). is deprecated")
_LINKED = ("base", "revision", "special_tokens", "supervise")


class FunctionCallingTrainer(Trainer):
    """Lightning's Trainer with more to do, one method for each subcommand of ours."""

    @property
    def loggers(self) -> list[Logger]:
        """The loggers; none of them ends a run."""
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Logger] | None) -> None:
        self._loggers = loggers or []
        for logger in self._loggers:
            ignore_write_errors(logger)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Train.

        Args:
            model: The module.
            datamodule: The data.
            ckpt_path: A checkpoint file to go on from, or ``last``: the newest whole one of the newest run of this
                configuration, in whose folder the run goes on; if there is none yet, it starts from the beginning.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=checkpoint_to_resume_from(self, ckpt_path))

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        output: str,
        ckpt_path: str = "best",
        merge: bool = True,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        push_to_hub: str | None = None,
    ) -> None:
        """Write a folder that servers can open: weights, tokenizer, templates, generation config and model card.

        Args:
            model: The module.
            datamodule: Gives the chat template.
            output: The folder to write; it must not exist.
            ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run of this configuration.
            merge: Whether to merge the adapter into the base, or to write the adapter alone.
            dtype: Precision of the merged weights; auto is the base's own. They are merged in float32 and rounded once.
            push_to_hub: A repository on the hub, USER/NAME, to upload the folder to; a new one is private.
        """
        export(self, model, datamodule, output, ckpt_path, merge, dtype, push_to_hub)

    def audit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        output: str | None = None,
        examples: int = 2,
        strict: bool = False,
    ) -> None:
        """Read the data as training would, check it, and show what the model will see.

        Args:
            model: The module.
            datamodule: The data.
            output: The folder for audit.json and audit.html; by default one beside the runs.
            examples: Conversations to show of each split, with what is learned in colour.
            strict: Whether to fail on findings above `data.audit_limits`.
        """
        runs = self.logger.root_dir if self.logger else self.default_root_dir
        audit(datamodule, Path(output) if output else Path(runs) / "audit", examples, strict)

    def think(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        base_url: str,
        teacher: str,
        output: str,
        split: str = "train",
        concurrency: int = 8,
        api_key_env: str = "OPENAI_API_KEY",
        max_tokens: int = 200,
    ) -> None:
        """Have another model write the reasoning that leads to each known call, into a data file to train on.

        Args:
            model: The module.
            datamodule: The data.
            base_url: An OpenAI-compatible endpoint, as http://localhost:8000/v1.
            teacher: Name of the model at the endpoint.
            output: The JSONL file to write; what is answered in OUTPUT.answers.jsonl is not asked again.
            split: The split whose thoughts are missing.
            concurrency: Requests under way at the same time.
            api_key_env: The environment variable with the key, if the endpoint wants one.
            max_tokens: The most tokens of an answer.
        """
        think(datamodule, base_url, teacher, Path(output), split, concurrency, api_key_env, max_tokens)

    def predict(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        prompts: str | None = None,
        question: str | None = None,
        tools: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Generate and write ``predictions.jsonl``: for ``data.test``, for a file of prompts, or for one question.

        Args:
            model: The module.
            datamodule: The data.
            prompts: A file of rows with ``messages`` and ``tools``.
            question: One question.
            tools: A JSON file with the tools on offer, for the question and for rows that have none.
            ckpt_path: A checkpoint file, or ``best`` or ``last``; the untouched base if not given.
        """
        if prompts is not None or question is not None:
            datamodule.prompt_conversations = read_prompts(prompts, question, tools)
        super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False)

    def report(
        self, model: LightningModule, datamodule: LightningDataModule, runs: list[str], output: str = "report"
    ) -> None:
        """Put runs side by side: ``OUTPUT.html`` and ``OUTPUT.md``.

        Args:
            model: The module.
            datamodule: The data.
            runs: Folders of runs, as ``fit`` and ``test`` write them.
            output: Path of the two files, without a suffix.
        """
        command = f"python main.py report --config CONFIG --runs '[{', '.join(runs)}]' --output {output}"
        write_report([column for run in runs for column in read_run(Path(run))], Path(output), command=command)
        print(f"{output}.html\n{output}.md")

    def chat(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        tools: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Try a model in the terminal.

        Args:
            model: The module.
            datamodule: Gives the chat template.
            tools: A JSON file with a list of tools.
            ckpt_path: A checkpoint file, or ``best`` or ``last``; the untouched base if not given.
        """
        chat(self, model, datamodule, tools, ckpt_path)


class SaveConfig(SaveConfigCallback):
    """Saves a run's configuration without what is its subcommand's alone, so that every subcommand takes it."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any):
        self._again = config.get("ckpt_path") == "last"
        config = config.clone()
        for name in ("ckpt_path", "weights_only", "verbose", "return_predictions", "prompts", "question", "tools"):
            config.pop(name, None)
        for place in redact_config(config):
            rank_zero_info(f"{place} holds a secret: it is not written into config.yaml")
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, and what the run runs on; a run that goes on or starts again in its folder replaces its own."""
        self.overwrite = self._again or any(getattr(callback, "goes_on", False) for callback in trainer.callbacks)
        folder = trainer.log_dir  # asks all ranks
        with wrap_os_errors(Path(folder or ".") / self.config_filename):
            super().setup(trainer, pl_module, stage)
        if folder and trainer.is_global_zero:
            text = json.dumps(describe_environment() | {"ranks": trainer.world_size}, indent=2, ensure_ascii=False)
            write_text(Path(folder) / "environment.json", f"{text}\n")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give further loggers all settings; by itself Lightning gives them the module's only."""
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for callback in trainer.callbacks:
            if isinstance(callback, ExtraLogger):
                callback.logger.log_hyperparams(settings)


class FunctionCallingCLI(LightningCLI):
    """LightningCLI for one model and one data module, whose shared settings are given once, under ``model``."""

    def __init__(self, args: Any = None):
        super().__init__(
            FunctionCallingModule,
            FunctionCallingDataModule,
            save_config_callback=SaveConfig,
            trainer_class=FunctionCallingTrainer,
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,  # RunSummary says what of the model is trained
            },
            seed_everything_default=0,
            parser_kwargs={"default_env": True, "env_prefix": "FC"},
            parser_class=Parser,
            args=args,
        )

    def _parse_ckpt_path(self) -> None:
        """The configuration is what was given: Lightning would lay the checkpoint's hyper-parameters over it."""

    def before_instantiate_classes(self) -> None:
        """In a log file transformers' bars would be lines of their own."""
        if not sys.stderr.isatty():
            disable_progress_bar()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with what makes its processes end together and in order."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
            raise ConfigurationError(explain_trainer(error)) from error
        ranks.use_launcher(trainer)
        trainer.callbacks[:0] = [Failures(), Preemption()]  # before the user's: theirs may wait for other ranks
        return trainer

    def instantiate_classes(self) -> None:
        """Make trainer, module and data; whatever the configuration says, checkpoints are safe."""
        try:
            super().instantiate_classes()
        except USER_ERRORS:
            raise
        except ValueError as error:
            if "Given value type" not in str(error):
                raise
            raise ConfigurationError(explain_trainer(error)) from error
        make_resumable(self.trainer)

    def before_validate(self) -> None:
        """Find ``best`` and ``last`` among earlier runs: Lightning looks in this one, which has no checkpoint."""
        given = self.config_init[self.subcommand]
        if given.ckpt_path in ("best", "last"):
            given.ckpt_path = str(find_checkpoint(self.trainer, given.ckpt_path))

    before_test = before_predict = before_validate

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, with the arguments of the trainer's methods that are not given by the user."""
        names = ("export", "audit", "think", "report", "chat", "predict", "fit")
        ours = {name: {"model", "datamodule"} for name in names}
        return {**LightningCLI.subcommands(), **ours}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings that model and data share are linked when they are parsed."""
        for name in _LINKED:
            parser.link_arguments(f"model.{name}", f"data.{name}")


def main(args: Any = None) -> None:
    """Run the command line; a mistake of the user's ends it with one line and exit code 1.

    Args:
        args: Arguments instead of those of the process.
    """
    sys.path.insert(0, os.getcwd())  # so that a YAML file can name classes of the user's own
    keep_freed_memory()
    for message in _AMONG_LIBRARIES:
        warnings.filterwarnings("ignore", message)
    with ranks.together(USER_ERRORS):
        FunctionCallingCLI(args)

"""The command line: ``python main.py SUBCOMMAND --config …``; see :meth:`FunctionCallingCLI.subcommands`."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

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
from fc_lightning.callbacks.resumable import checkpoint_to_resume_from, make_resumable
from fc_lightning.cli.checks import check_config_file, check_environment, check_folder, check_values
from fc_lightning.cli.defaults import drop_impossible_defaults, trainer_defaults
from fc_lightning.cli.errors import ConfigurationError, explain_trainer
from fc_lightning.cli.help import SOURCES
from fc_lightning.cli.parser import Parser, config_files
from fc_lightning.cli.quiet import silence
from fc_lightning.cli.user_classes import GROUPS, load_class
from fc_lightning.commands.audit import audit as audit_command
from fc_lightning.commands.chat import chat as chat_command
from fc_lightning.commands.checkpoints import find_checkpoint
from fc_lightning.commands.distill import think as think_command
from fc_lightning.commands.export import export as export_command
from fc_lightning.commands.mine import mine as mine_command
from fc_lightning.commands.predict import predict as predict_command
from fc_lightning.commands.report import report as report_command
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.training import distributed as ranks
from fc_lightning.training.lightning_internals import replace_launcher, subcommand_parsers
from fc_lightning.training.loggers import make_robust
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.training.run_folders import runs_root
from fc_lightning.training.trainer_support import check_trainer
from fc_lightning.utils.atomic_files import wrap_os_errors, write_text
from fc_lightning.utils.environment import describe_environment
from fc_lightning.utils.errors import UserError, first_line
from fc_lightning.utils.hub import use_cache_if_offline
from fc_lightning.utils.malloc import keep_freed_memory, limit_kernel_cache
from fc_lightning.utils.secrets import redact_config

# Settings of the model that the data needs too: given once, under `model`.
_LINKED = ("base", "revision", "tool_format", "special_tokens", "supervise", "token_weights")
# Options of subcommands that save their configuration
_OPTIONS = (
    *("ckpt_path", "weights_only", "verbose", "return_predictions", "prompts", "question", "tools"),
    *("samples", "temperature"),
)


def _is_given(value: Any) -> bool:
    return value is not None


class FunctionCallingTrainer(Trainer):
    """Lightning's Trainer with one more method per subcommand."""

    export = export_command
    audit = audit_command
    mine = mine_command
    think = think_command
    predict = predict_command
    report = report_command
    chat = chat_command

    def fit(self, model: LightningModule, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Train.

        Args:
            model: The module.
            datamodule: The data.
            ckpt_path: A checkpoint file to resume from; ``last`` is the newest one of this configuration. The run
                continues in its folder; if there is no intact checkpoint yet, training starts from the beginning.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=checkpoint_to_resume_from(self, ckpt_path))

    def validate(self, model: LightningModule, datamodule: LightningDataModule, ckpt_path: str | None = None) -> Any:
        """Evaluate a checkpoint, or the base model, on ``data.validation``.

        Args:
            model: The module.
            datamodule: The data.
            ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run; the base model if not given.
        """
        return super().validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def test(self, model: LightningModule, datamodule: LightningDataModule, ckpt_path: str | None = None) -> Any:
        """Evaluate a checkpoint, or the base model, on ``data.test``.

        Args:
            model: The module.
            datamodule: The data.
            ckpt_path: A checkpoint file, or ``best`` or ``last`` of the newest run; the base model if not given.
        """
        return super().test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    @property
    def loggers(self) -> list[Logger]:
        """The loggers; a write error in one of them does not end the run."""
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Logger] | None) -> None:
        self._loggers = loggers or []
        for logger in self._loggers:
            make_robust(logger)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration of a run without the options of its subcommand, so that every subcommand accepts it."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any):
        self._resumes = config.get("ckpt_path") == "last"
        config = config.clone()
        for name in _OPTIONS:
            config.pop(name, None)
        for key in redact_config(config):
            rank_zero_info(f"{key} holds a secret: it is not written to config.yaml")
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration and the environment.

        A run that resumes in its folder overwrites its own, and one without a logger, which has no folder, the last.
        """
        resumes = self._resumes or any(getattr(one, "resumes_in_place", False) for one in trainer.callbacks)
        self.overwrite = resumes or not trainer.loggers
        folder = trainer.log_dir  # a collective
        with wrap_os_errors(Path(folder or ".") / self.config_filename):
            super().setup(trainer, pl_module, stage)
        if folder and trainer.is_global_zero:
            text = json.dumps(describe_environment() | {"ranks": trainer.world_size}, indent=2, ensure_ascii=False)
            write_text(Path(folder) / "environment.json", f"{text}\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exempt existing objects from garbage collection, which takes several percent of a training step on a CPU."""
        gc.collect()
        gc.freeze()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let these objects be collected again, since another run may follow in this process."""
        gc.unfreeze()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let these objects be collected at exit; otherwise some libraries print warnings after the error."""
        gc.unfreeze()

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the whole configuration to further loggers; Lightning only gives them the module's settings."""
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for callback in trainer.callbacks:
            if isinstance(callback, ExtraLogger):
                callback.logger.log_hyperparams(settings)


class FunctionCallingCLI(LightningCLI):
    """LightningCLI for one model and one data module, which share settings.

    Args:
        args: Arguments instead of those of the process.
    """

    def __init__(self, args: Any = None):
        arguments = sys.argv[1:] if args is None else args
        self._config_files = config_files(arguments)
        super().__init__(
            load_class("model", FunctionCallingModule, self._config_files, arguments),
            load_class("data", FunctionCallingDataModule, self._config_files, arguments),
            save_config_callback=SaveConfig,
            trainer_class=FunctionCallingTrainer,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # the module does it; see `model.optimizer`
            parser_kwargs={"default_env": True, "env_prefix": "FC"},
            parser_class=Parser,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, each with the arguments of the trainer's method that are not options."""
        names = ("fit", "validate", "test", "predict", "export", "audit", "mine", "think", "report", "chat")
        return {name: {"model", "datamodule"} for name in names}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults of the trainer, and link the settings that model and data share."""
        defaults = trainer_defaults(self._config_files)
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
        known = {action.dest for action in parser._actions}  # a user's class may fix a setting
        for name in _LINKED:
            if {f"model.{name}", f"data.{name}"} <= known:
                parser.link_arguments(f"model.{name}", f"data.{name}")
        if {"model.preference", "data.pairs"} <= known:
            parser.link_arguments("model.preference", "data.pairs", compute_fn=_is_given)
        for group in GROUPS:
            parser.add_argument(f"--{group}.class_path", type=str, default=SUPPRESS, help="A class of your own.")

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as given: Lightning would overwrite it with the checkpoint's hyperparameters."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check the arguments. Lightning would warn if the process has arguments too, as in tests."""
        check_environment(
            (action.dest for one in subcommand_parsers(self).values() for action in one._actions),
            list(subcommand_parsers(self)),
        )
        for file in self._config_files:
            check_config_file(Path(file))
        self.config = parser.parse_args(args)
        check_values(self.config[self.config.subcommand])

    def before_instantiate_classes(self) -> None:
        """Adapt to settings and machine: callbacks, the Hub, and bars, which are many lines in a log file."""
        config = self.config[self.subcommand]
        drop_impossible_defaults(config.trainer)
        sources = [source.path for split in SOURCES for source in _list(config.get(split))]
        use_cache_if_offline([config.get("model.base"), *sources])
        if not sys.stderr.isatty():
            disable_progress_bar()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, whose processes end together and in order."""
        for key, path in self._class_paths.items():
            self.config[self.subcommand][key] = path  # the saved configuration names it
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
            raise ConfigurationError(explain_trainer(error)) from error
        check_trainer(trainer)
        replace_launcher(trainer, ranks.Launcher)
        trainer.callbacks[:0] = [Failures(), Preemption()]  # before the user's, which may wait for other ranks
        return trainer

    def instantiate_classes(self) -> None:
        """Make trainer, module and data; checkpoints are atomic whatever the configuration says."""
        config = self.config[self.subcommand]
        keys = [f"{group}.class_path" for group in GROUPS if f"{group}.class_path" in config]
        self._class_paths = {key: config.pop(key) for key in keys}  # not arguments of these classes
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            if "Given value type" in str(error):
                raise ConfigurationError(explain_trainer(error)) from error
            if f"{os.sep}peft{os.sep}" not in traceback.extract_tb(error.__traceback__)[-1].filename:
                raise
            raise ConfigurationError(f"model.peft: {first_line(error)}") from error
        make_resumable(self.trainer)
        if self.subcommand in ("fit", "validate", "test", "predict", "mine"):
            check_folder(runs_root(self.trainer))

    def before_validate(self) -> None:
        """Find ``best`` and ``last`` among earlier runs: Lightning looks in this run, which has no checkpoint."""
        given = self.config_init[self.subcommand]
        if given.ckpt_path in ("best", "last"):
            given.ckpt_path = str(find_checkpoint(self.trainer, given.ckpt_path))

    before_test = before_predict = before_mine = before_validate


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _ParserReady(Exception):
    """Ends the construction of a command line once its parsers exist."""


class _ParserOnly(FunctionCallingCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> NoReturn:
        raise _ParserReady(parser, subcommand_parsers(self))


def make_parser(subcommand: str | None = None, arguments: Sequence[str] = ()) -> LightningArgumentParser:
    """The parser of the command line, or the one of a subcommand, without running anything.

    Args:
        subcommand: The name of the subcommand.
        arguments: Arguments that may name user-defined classes.
    """
    try:
        _ParserOnly(list(arguments))
    except _ParserReady as ready:
        parser, parsers = ready.args
    return parsers[subcommand] if subcommand else parser


def main(args: Any = None) -> None:
    """Run the command line; an error that the user can fix is printed in one line, with exit code 1.

    Args:
        args: Arguments instead of those of the process.
    """
    sys.path.insert(0, os.getcwd())  # so that a YAML file can name the user's own classes
    keep_freed_memory()
    limit_kernel_cache()
    silence()
    with ranks.exit_on_error():
        FunctionCallingCLI(args)

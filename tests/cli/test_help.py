"""Help and messages as a user sees them, against committed texts.

To update the texts after an intended change: ``FC_LIGHTNING_RENEW=1 python -m pytest tests/cli/test_help.py``. Review
the difference before committing it.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from tests.helpers.command_line import parser

from fc_lightning.chat_template.token_parts import TokenWeights
from fc_lightning.cli.help import SUBCOMMANDS, TRAINER, help_for, keys
from fc_lightning.cli.lightning_cli import FunctionCallingCLI, FunctionCallingTrainer, main
from fc_lightning.cli.main import main as start
from fc_lightning.data import Source
from fc_lightning.data.augmentation import Augmentation
from fc_lightning.models.preference_loss import Preference

SNAPSHOTS = Path("tests/cli/snapshots")
PROGRAM = "python main.py"
TINY = ("fit", "--config", "configs/debug/tiny.yaml")
CALLBACK = "trainer:\n  callbacks+:\n    - class_path: {}\n"

# What is wrong: arguments, and an overlay to lay over the tiny recipe.
MISTAKES = {
    "a mistyped key": (("--model.learning_rat=1",), ""),
    "a mistyped key in a file": ((), "data:\n  packing: false\n  max_lenght: 512\n"),
    "a mistyped group in a file": ((), "dta:\n  max_length: 512\n"),
    "a key in the wrong group": (("--data.learning_rate=1",), ""),
    "a mistyped key of Lightning": (("--trainer.max_epoch=3",), ""),
    "a mistyped callback": ((), CALLBACK.format("lightning.pytorch.callbacks.ModelCheckpont")),
    "a mistyped callback without its module": ((), CALLBACK.format("LearningRateMonitr")),
    "a mistyped argument of a callback": (
        (),
        CALLBACK.format("lightning.pytorch.callbacks.ModelCheckpoint") + "      init_args: {monitr: val/loss}\n",
    ),
    "a module that is not there": ((), CALLBACK.format("my_calbacks.Mine")),
    "a class that is not a callback": ((), CALLBACK.format("peft.LoraConfig")),
    "a mistyped class of adapter": (("--model.peft=peft.LoraConfg",), ""),
    "a mistyped argument of the adapter": (("--model.peft.init_args.lora_alfa=4",), ""),
    "a mistyped choice": (("--data.render=canonicl",), ""),
    "a value of the wrong type": (("--data.max_length=many",), ""),
    "a mistyped key of a source": (("--data.train=[{pth: train.jsonl}]",), ""),
    "a mistyped configuration file": (("--config=configs/quickstrat.yaml",), ""),
    "a file that is not valid YAML": ((), "data: [a\n"),
    "a file with the subcommand in it": ((), "fit:\n  data:\n    max_length: 512\n"),
    "a mistyped strategy": (("--trainer.strategy=dpp",), ""),
    "a recipe for a GPU where there is none": (("--trainer.accelerator=gpu",), ""),
    "a mistyped accelerator": (("--trainer.accelerator=cpuu",), ""),
    "a value that a callback refuses": (
        (),
        CALLBACK.format("lightning.pytorch.callbacks.ModelCheckpoint") + "      init_args: {mode: maxx}\n",
    ),
}


def check(name: str, text: str) -> None:
    """The text is the committed one."""
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("FC_LIGHTNING_RENEW"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("subcommand", [*SUBCOMMANDS, ""])
def test_help_at_each_level(subcommand):
    text = help_for([subcommand, "--help"] if subcommand else ["--help"], PROGRAM)
    check(f"help_{subcommand or 'program'}", f"{text}\n")
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("part", ["messages", pytest.param("more_messages", marks=pytest.mark.slow)])
def test_messages(part, capsys, tmp_path, monkeypatch):
    """All in one file, so that it reads as one text; each is a single line that begins with `error:`."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    told = []
    names = list(MISTAKES)[::2] if part == "messages" else list(MISTAKES)[1::2]
    for name, (arguments, overlay) in ((name, MISTAKES[name]) for name in names):
        file = tmp_path / "overlay.yaml"
        file.write_text(overlay)
        with pytest.raises(SystemExit) as exit_:
            main([*TINY, *(["--config", str(file)] if overlay else []), *arguments])
        assert exit_.value.code in (1, 2)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, name
        assert len(lines[0]) < 320
        told.append(f"{name}\n    {lines[0].replace(str(tmp_path), '.')}\n")
    check(part, "\n".join(told))


@pytest.mark.parametrize("subcommand", [name for name in SUBCOMMANDS if name != "init"])
def test_the_short_help_has_every_key_of_ours(subcommand):
    """Read from the source on one side, built by jsonargparse from the imported classes on the other."""
    actions = parser()._subcommands_action.choices[subcommand]._actions
    known = {action.dest: action for action in actions if not action.dest.endswith(".help")}
    shown = {key.name: key for members in keys(subcommand).values() for key in members}
    linked = {
        f"data.{name}"
        for name in ("base", "revision", "tool_format", "special_tokens", "supervise", "token_weights", "pairs")
    }
    ours = {name for name in known if name.partition(".")[0] in ("model", "data") and "." in name}
    lightnings = {"help", "config", "print_config", "seed_everything", "optimizer", "lr_scheduler", "model", "data"}
    lightnings |= {"trainer", "weights_only", "verbose", "return_predictions"}
    own = {name for name in known if "." not in name} - lightnings
    assert ours - linked == {name for name in shown if name.startswith(("model.", "data."))}
    assert own == {name for name in shown if "." not in name}
    for name, key in shown.items():
        assert key.text, name
        if key.default and re.fullmatch(r"[\d.e-]+", key.default):
            assert known[name].default == float(key.default)


def test_every_subcommand_is_in_the_short_help():
    assert set(FunctionCallingCLI.subcommands()) == set(SUBCOMMANDS) - {"init"}
    assert set(TRAINER) <= set(FunctionCallingTrainer.__init__.__wrapped__.__code__.co_varnames)


def test_help_of_one_key_and_a_mistyped_one():
    text = help_for(["fit", "--help", "data.batch_size"], PROGRAM)
    assert text == "--data.batch_size  (int, default 1)\n  Rows per micro-batch."
    assert "did you mean data.batch_size?" in help_for(["fit", "--help=data.batchsize"], PROGRAM)
    assert help_for(["fit", "--help", "all"], PROGRAM) is None
    assert help_for(["fit", "--config", "x.yaml"], PROGRAM) is None


def test_help_of_a_key_of_sources_shows_the_fields_of_a_source():
    text = help_for(["fit", "--help", "data.train"], PROGRAM)
    for field in fields(Source):
        assert f"\n  {field.name:<10}" in text
    assert "--data.train a.jsonl b.jsonl" in text


@pytest.mark.parametrize("arguments", [("--help",), ("fit", "--help")])
def test_nothing_is_said_where_nobody_reads_any_further(arguments):
    """As behind ``| head -3``, which closes the pipe."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "main.py", *arguments], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error(monkeypatch):
    def broken(*_):
        raise BrokenPipeError("of a data worker")

    monkeypatch.setattr("fc_lightning.cli.main.help_for", broken)
    with pytest.raises(BrokenPipeError, match="of a data worker"):
        start(["--help"])


def test_help_and_a_mistyped_subcommand_take_no_time():
    """Under three seconds each, and without any of the libraries that take so long to import."""
    for arguments, code in ((["--help"], 0), (["fit", "--help"], 0), (["--version"], 0), (["fitt"], 2)):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "main.py", *arguments], capture_output=True, text=True, check=False)
        assert time.perf_counter() - started < 3
        assert done.returncode == code
        assert done.stdout or done.stderr == "error: fitt: unknown subcommand; did you mean fit?\n"
    script = (
        "import sys; import fc_lightning.cli.main; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


@pytest.mark.parametrize("topic", ["data.augmentation", "model.preference", "model.token_weights"])
def test_help_of_a_key_with_keys_of_its_own_shows_them(topic):
    text = help_for(["fit", "--help", topic], PROGRAM)
    expected = {
        "data.augmentation": Augmentation,
        "model.preference": Preference,
        "model.token_weights": TokenWeights,
    }[topic]
    assert all(re.search(rf"^  {field.name}\b", text, re.MULTILINE) for field in fields(expected))

"""Callbacks from YAML: ours, the examples of the documentation, one that is missing and one that raises."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from fc_lightning.callbacks import EvaluationReport, PredictionWriter, SaveAdapter
from fc_lightning.callbacks.adapter import save_adapter
from fc_lightning.conversation.types import ToolCall
from fc_lightning.evaluation.metrics import evaluate_turn
from fc_lightning.training.checkpoint_io import CheckpointError

QUICK = ("--data.train=[{path: data/quickstart/train.jsonl, limit: 4}]", "--data.packing=false")


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.syspath_prepend("examples/callbacks")


def overlay(tmp_path, *callbacks, key="callbacks+"):
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump({"trainer": {key: list(callbacks)}}))
    return ("--config", str(file))


def test_wrong_calls_are_posted_to_a_file(run):
    folder = run("fit", "--config", "examples/callbacks/wrong_calls.yaml", *QUICK)
    posted = json.loads((folder / "wrong_calls.json").read_text())
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert posted["step"] == 2
    assert [turn["id"] for turn in posted["wrong"]] == [line["id"] for line in lines if not line["exact_match"]]
    assert posted["wrong"]


def test_a_run_ends_when_a_category_falls(run, capsys, monkeypatch):
    import falling_category

    # The tiny model never gets anything right: the shares come from here.
    hook = falling_category.StopWhenACategoryFalls.on_tool_calls_evaluated
    rounds = iter([(4, 4), (4, 5), (2, 5)])  # right turns of six, of categories a and b

    def pretend(self, trainer, module, evaluated):
        turns = []
        for category, right in zip("ab", next(rounds), strict=True):
            turns += [
                evaluate_turn("Hi.", [] if n < right else [ToolCall("f", {})], category=category) for n in range(6)
            ]
        hook(self, trainer, module, turns)

    monkeypatch.setattr(falling_category.StopWhenACategoryFalls, "on_tool_calls_evaluated", pretend)
    folder = run(
        *("fit", "--config", "examples/callbacks/falling_category.yaml", *QUICK),
        *("--trainer.max_epochs=9", "--trainer.accumulate_grad_batches=4"),
    )
    assert "stopped: a fell from 0.667 to 0.333" in capsys.readouterr().out
    assert "3,3," not in (folder / "metrics.csv").read_text()  # no fourth epoch
    assert next(rounds, None) is None


def test_report_and_samples(run, capsys, tmp_path):
    ours = [{"class_path": f"fc_lightning.callbacks.{name}"} for name in ("EvaluationReport", "SampleTable")]
    folder = run("fit", *overlay(tmp_path, *ours), *QUICK, "--trainer.num_sanity_val_steps=-1")
    out = capsys.readouterr().out
    assert out.index("samples, step 0") < out.index("samples, step 2")  # the base's and the model's
    first = json.loads((folder / "predictions.jsonl").open().readline())
    before = [json.loads(line) for line in (folder / "predictions_before.jsonl").open()]
    after = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert [turn["id"] for turn in before] == [turn["id"] for turn in after]
    share = sum(turn["exact_match"] for turn in before) / len(before)
    assert out.index(f"before:     exact match {share:.3f} on {len(before)} turns\n") < out.index("  step 2")
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (html, markdown):
        assert "before training" in text
        assert first["expected"][0]["name"] in text.replace("\\", "")
    assert ">Loss: mean cross-entropy of supervised tokens</figcaption>" in html
    for said in (
        "tests/models/tiny_gemma2, 56,128 parameters",
        "data/quickstart/train.jsonl (4 rows)",
        " UTC",
        " cores",
    ):
        assert said in html
        assert said in markdown.replace("\\", "")
    # The same from what lies in the folder, by the subcommand.
    run("report", f"--runs=[{folder}]", f"--output={tmp_path / 'again'}")
    table = markdown[markdown.index("## Metrics") : markdown.index("## Failures")]
    assert table.replace("\\", "").replace("after training", folder.name) in (
        tmp_path / "again.md"
    ).read_text().replace("\\", "")


def test_what_was_measured_before_training_stays_so_when_a_run_goes_on(run, capsys):
    """From a checkpoint at the end of an epoch, before which Lightning would validate again."""
    quick = (*QUICK, "--trainer.num_sanity_val_steps=-1", "--model.learning_rate=0.05")
    folder = run("fit", *quick)
    first = (folder / "predictions_before.jsonl").read_text()
    assert first != (folder / "predictions.jsonl").read_text()
    capsys.readouterr()
    assert run("fit", *quick, "--trainer.max_epochs=2", "--ckpt_path=last") == folder
    out = capsys.readouterr().out
    assert "\nbefore:" not in out
    assert re.search(r"all +│ \d+ +│ 0.000 +│ 0.000", out)
    assert (folder / "predictions_before.jsonl").read_text() == first
    with (folder / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["val/exact_match"]]
    assert steps == sorted(set(steps), key=int)
    assert len(steps) == 3
    assert steps[0] == "0"


def test_a_run_without_any_callback_of_ours(run, tmp_path):
    folder = run("fit", *overlay(tmp_path, key="callbacks"), *QUICK)
    assert "val/exact_match" in (folder / "metrics.csv").read_text()
    assert not (folder / "predictions.jsonl").exists()


def test_a_callback_that_raises_ends_the_run_with_its_own_traceback(run, tmp_path, monkeypatch):
    (tmp_path / "raising.py").write_text(
        "from lightning import Callback\n\nclass Raising(Callback):\n"
        "    def on_tool_calls_evaluated(self, trainer, pl_module, evaluated):\n        raise RuntimeError('mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="mine") as caught:
        run("fit", *overlay(tmp_path, {"class_path": "raising.Raising"}), *QUICK)
    assert Path(caught.traceback[-1].path).name == "raising.py"


def test_perturbed_turns_are_measured_reported_and_kept_apart(run, tmp_path):
    ours = [{"class_path": f"fc_lightning.callbacks.{name}"} for name in ("EvaluationReport", "PredictionWriter")]
    plain = run("validate", *overlay(tmp_path, *ours))
    folder = run("validate", *overlay(tmp_path, *ours), "--data.perturbations=[mask_names, shuffle_tools, drop_tool]")
    turns, perturbed = (
        [json.loads(line) for line in (folder / f"predictions{name}.jsonl").open()] for name in ("", "_perturbed")
    )
    assert turns == [json.loads(line) for line in (plain / "predictions.jsonl").open()]
    assert {turn["perturbation"] for turn in turns} == {""}
    assert {turn["perturbation"] for turn in perturbed} == {"mask_names", "shuffle_tools", "drop_tool"}
    assert not (plain / "predictions_perturbed.jsonl").exists()
    logged = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    names = {"val/exact_match/masked", "val/exact_match/shuffled", "val/abstention/dropped"}
    assert {*names, "val/verdict_changed/masked"} <= set(logged)
    for kind in ("html", "md"):
        assert "Robustness" in (folder / f"report.{kind}").read_text()
        assert "Robustness" not in (plain / f"report.{kind}").read_text()
    run("report", f"--runs=[{folder}]", f"--output={tmp_path / 'again'}")
    assert "abstention/dropped" in (tmp_path / "again.md").read_text()
    trained = run("fit", *overlay(tmp_path, *ours), *QUICK, "--data.perturbations=[mask_names]")
    assert not (trained / "predictions_perturbed.jsonl").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/../../x", "checkpoints", "checkpoints/x"])
@pytest.mark.parametrize(
    ("callback", "key"), [(SaveAdapter, "folder"), (PredictionWriter, "filename"), (EvaluationReport, "filename")]
)
def test_names_stay_inside_of_the_runs_folder(callback, key, name):
    """An adapter's folder is replaced as a whole: it must not be the folder of the run or of the checkpoints."""
    with pytest.raises(ValueError, match=f"{key} must be a name inside the run's folder"):
        callback(**{key: name})
    assert getattr(callback(**{key: "a/b"}), key) == "a/b"


def test_a_folder_that_is_no_adapter_is_not_replaced(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists and is not an adapter"):
        save_adapter(None, tmp_path / "adapter", {})
    assert (tmp_path / "adapter" / "thesis.txt").read_text() == "mine"

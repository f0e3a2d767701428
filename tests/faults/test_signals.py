"""A signal to any rank, in the midst of anything, stops all of them with a checkpoint to go on from."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers.processes import injected, sample, start

WHO = ((0,), (1,), (0, 1))
MOMENTS = ("step", "validation", "generation", "saving")
# In this order a sample of few has different ranks and different moments.
CASES = [(WHO[(number + number // 4) % 3], MOMENTS[number % 4]) for number in range(12)]


def checked(path: Path) -> dict:
    """A checkpoint that can be read, of trained weights that are all numbers."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert state["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())
    assert state["optimizer_states"][0]["state"]
    assert (path.with_suffix(".adapter") / "adapter_model.safetensors").is_file()
    return state


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ranks", "moment"), sample(CASES, 2, 30))
def test_a_signal_stops_all_ranks_with_a_checkpoint(tmp_path, number, ranks, moment):
    stop = signal.SIGINT if number % 5 == 4 else signal.SIGTERM
    step = 1 + number % 5
    run = start(tmp_path, callbacks=injected("Moment", folder=tmp_path, moment=moment, step=step))
    files = [tmp_path / str(rank) for rank in ranks]
    # A checkpoint is made on all ranks, but a callback like this one is asked on each of them.
    run.wait_for(*files)
    for file in files:
        os.kill(int(file.read_text()), stop)
    code, seconds = run.ended(60)
    assert code == 128 + stop, run.output
    assert seconds < 20
    state = checked(run.version / "checkpoints" / "last.ckpt")
    assert step <= state["global_step"] <= 12
    assert f"{stop.name}: stopped after {state['global_step']} optimizer steps" in run.output
    assert "Traceback" not in run.output
    print(f"{stop.name} to {ranks} in {moment}: {seconds:.1f} s", file=sys.stderr)
    if number == 1:  # in a validation: it goes on with that validation, and to the end
        seen = int((tmp_path / "validations").read_text())
        last = run.version / "checkpoints" / "last.ckpt"
        again = start(
            tmp_path, f"--ckpt_path={last}", callbacks=injected("Moment", folder=tmp_path, moment="none", step=99)
        )
        code, _ = again.ended(300)
        assert code == 0, again.output
        (resumed,) = (tmp_path / "runs" / "tiny").glob("version_1")
        assert torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
        assert int((tmp_path / "validations").read_text()) == 4 - seen + 1


@pytest.mark.nightly
def test_ranks_that_share_the_weights_stop_at_the_same_evaluation_batch(tmp_path):
    """Each batch is a collective: a rank that went on alone would wait for the others forever."""
    config = tmp_path / "fsdp2.yaml"
    text = Path("configs/trainer/fsdp2.yaml").read_text()
    config.write_text(text.replace(": 8", ": 2").replace(": gpu", ": cpu"))
    moment = injected("Moment", folder=tmp_path, moment="validation", step=1)
    run = start(tmp_path, f"--config={config}", callbacks=moment)
    run.wait_for(tmp_path / "0")
    os.kill(int((tmp_path / "0").read_text()), signal.SIGTERM)
    code, seconds = run.ended(60)
    assert code == 128 + signal.SIGTERM, run.output
    assert seconds < 20
    checked(run.version / "checkpoints" / "last.ckpt")


def test_the_methods_of_lightning_that_are_replaced_are_there():
    """They are not part of its public interface: another version of it may have none of them."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
    from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

    assert {"_broadcast_sigterm_tensor", "_should_check_val_fx"} <= vars(_TrainingEpochLoop).keys()
    assert {"_sigterm_notifier_fn", "_slurm_sigusr_handler_fn", "register_signal_handlers"} <= vars(
        _SignalConnector
    ).keys()
    assert {"launch", "_call_children_scripts"} <= vars(_SubprocessScriptLauncher).keys()

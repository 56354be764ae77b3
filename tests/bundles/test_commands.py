"""The command lines of a bundle, each a process of its own, from another directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
TRACED = ("transformer_transfer",)  # MONAI's Swin blocks cannot be scripted
TOYS = Path(__file__).parents[1] / "toys"


@pytest.fixture
def call(tmp_path, cache):
    def call(*arguments, launcher=("-m", "monai.bundle")):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        command = [sys.executable, *launcher, *map(str, arguments)]
        places = os.pathsep.join([str(TOYS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": places}
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return call


def test_the_four_runs_from_another_directory(call, written):
    configs = written / "configs"
    before = ["pretrain.json"] if (configs / "pretrain.json").is_file() else []
    for files in (*before, "train.json", ["train.json", "evaluate.json"], "inference.json"):
        paths = str(configs / files) if isinstance(files, str) else str([str(configs / file) for file in files])
        call("run", "--config_file", paths, "--bundle_root", written)
    assert (written / "eval" / "imagesTr" / "example_005" / "example_005_pred.nii.gz").is_file()


def test_the_network_fits_its_metadata_and_exports(call, written, source, tmp_path):
    configs = written / "configs"
    meta = ("--meta_file", configs / "metadata.json", "--config_file", configs / "inference.json")
    call("verify_net_in_out", "--net_id", "network_def", *meta)
    weights = ("--ckpt_file", written / "models" / "model.pt", "--filepath", tmp_path / "model.ts")
    side = 64 if source.name in TRACED else 32
    traced = ("--use_trace", "True", "--input_shape", f"[1,1,{side},{side}]") if source.name in TRACED else ()
    call("ckpt_export", "--net_id", "network_def", *weights, *meta, *traced)
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    assert scripted(torch.zeros(2, 1, side, side)).shape == (2, 6, side, side)


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_two_processes_write_one_checkpoint_and_one_finished_run(call, written, stage):
    from mlflow.tracking import MlflowClient

    configs = written / "configs"
    if not (configs / f"{stage}.json").is_file():
        pytest.skip("this bundle pre-trains nothing")
    files = str([str(configs / f"{stage}.json"), str(configs / f"multi_gpu_{stage}.json")])
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle")
    call("run", "--config_file", files, "--bundle_root", written, launcher=launcher)
    file = "pretrained.pt" if stage == "pretrain" else "model.pt"
    weights = torch.load(written / "models" / file, weights_only=True)
    assert not [name for name in weights if name.startswith("module.")]
    client = MlflowClient(f"sqlite:///{written / 'eval' / 'mlruns.db'}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in found] == ["FINISHED"]
    assert len(list((written / "eval" / "checkpoints").glob("*/*.pt"))) == 2

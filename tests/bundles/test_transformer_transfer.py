"""The supervised source, and the ways from it into encoder and decoder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from medcl_monai.bundles import run_bundle, size_rule

BUNDLE = Path(__file__).parents[2] / "bundles" / "transformer_transfer"
TINY = {"pixel_spacing": 4.0, "steps": 4, "epochs": 2, "batch_size": 4, "checkpoint_interval": 2}


@pytest.fixture(scope="module")
def knobs(population):
    common = {**TINY, "dataset_dir": str(population)}
    heads = {"network_def::projector_width": 16, "network_def::projection_dim": 8, "sample_size": [64, 64]}
    return {
        "pretrain.json": {**common, **heads, "network_def::backbone::embed_dim": 8},
        "train.json": {**common, "network_def::embed_dim": 8},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / BUNDLE.name
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("eval", "models"))
    return root


@pytest.fixture(scope="module")
def source(root, knobs):
    """The segmenter of the other task."""
    files = [root / "configs" / file for file in ("train.json", "source.json")]
    run_bundle(files, bundle_root=str(root), val_interval=2, **knobs["train.json"])
    return root / "eval" / "source.pt"


def test_the_source_learns_parcels_and_leaves_the_models_alone(source, root):
    weights = torch.load(source, weights_only=True)
    assert all(name.startswith(("swinViT.", "norm.")) for name in weights)  # what a classifier would give
    assert "norm.weight" in weights
    assert not (root / "models" / "model.pt").exists()
    people = json.loads((root / "eval" / "source" / "split.json").read_text(encoding="utf-8"))
    assert people["training"]


def test_pre_training_starts_from_the_encoder_of_the_source(source, root, knobs):
    overrides = {**knobs["pretrain.json"], "initial_weights": str(source)}
    run_bundle([root / "configs" / "pretrain.json"], bundle_root=str(root), **overrides)
    weights, shared = (torch.load(path, weights_only=True) for path in (source, root / "models" / "pretrained.pt"))
    stem = "swinViT.patch_embed.proj.weight"
    assert torch.equal(weights[stem], shared[stem])  # frozen
    assert len(shared) == 119
    assert not torch.equal(weights["norm.weight"], shared["norm.weight"])


@pytest.mark.parametrize(("mirror", "carried"), [(True, 119 + 78), (False, 119)])
def test_fine_tuning_takes_the_encoder_and_on_request_the_mirror(source, root, knobs, mirror, carried):
    from monai.bundle import create_workflow

    overrides = {**knobs["train.json"], "pretrained": str(source), "transfer::layout::mirror": mirror}
    weights = torch.load(source, weights_only=True)
    kept = {name: value for name, value in weights.items() if name.startswith(("swinViT.", "norm."))}
    torch.save(kept, root / "encoder.pt")
    overrides["pretrained"] = str(root / "encoder.pt")
    workflow = create_workflow(
        config_file=str(root / "configs" / "train.json"), workflow_type="train", logging_file=False,
        bundle_root=str(root), **overrides,
    )
    report = workflow.parser.get_parsed_content("transfer")
    assert len(report.carried) == carried
    network = workflow.parser.get_parsed_content("network_def")
    blocks = network.decoder.layers_up[0].blocks[0], network.swinViT.layers3[0].blocks[0]
    assert torch.equal(*(block.mlp.linear1.weight for block in blocks)) == mirror


def test_sizes_that_the_windows_do_not_tile_are_refused_with_weights_and_taken_without(source, root, knobs):
    overrides = {**knobs["pretrain.json"], "view_size": [48, 48], "bundle_root": str(root)}
    with pytest.raises(RuntimeError) as error:
        run_bundle([root / "configs" / "pretrain.json"], initial_weights=str(source), **overrides)
    assert "window 4 does not tile the stage grids 24, 12, 6, 3 of side 48" in str(error.value.__cause__)
    run_bundle([root / "configs" / "pretrain.json"], **{**overrides, "steps": 2})


def test_inspect_suggests_sizes_that_the_windows_tile():
    assert size_rule(BUNDLE).multiple == 64

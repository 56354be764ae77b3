"""A bundle from end to end in one process, in a folder of its own."""

import functools
import json
import re
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medcl_monai import load_pretrained
from medcl_monai.bundles import read_plan, set_knobs
from medcl_monai.commands.demo import demo
from medcl_monai.commands.inspect import inspect
from medcl_monai.overrides import ids

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def test_training_leaves_bare_weights_with_records_and_nothing_else(trained):
    weights = {"pretrained.pt", "model.pt"} if (trained / "configs" / "pretrain.json").is_file() else {"model.pt"}
    assert {path.name for path in (trained / "models").iterdir()} == {*weights, "manifest.json"}
    assert {path.name for path in trained.iterdir()} == {"LICENSE", "configs", "docs", "models", "eval"}
    for file in weights:
        tensors = torch.load(trained / "models" / file, weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
        assert not [name for name in tensors if name.startswith("module.")]
    records = json.loads((trained / "models" / "manifest.json").read_text(encoding="utf-8"))
    assert set(records) == weights
    prepared = records["model.pt"]["prepared"]
    assert (prepared["pixel_spacing"], prepared["spatial_dims"]) == (4.0, 2)
    assert set(prepared["intensity"]) == {"percentiles", "scale"}
    assert (trained / "eval" / "split.json").is_file()


def test_the_split_beside_a_run_lists_what_the_run_used(trained, run, training_knobs, tmp_path):
    people = json.loads((trained / "eval" / "split.json").read_text(encoding="utf-8"))
    used = people["training"][:1]
    knobs = {**training_knobs, "output_dir": str(tmp_path), "train::dataset::data": used, "validate::dataset::data": []}
    run(trained, "train.json", only_parse=True, **knobs).parser.get_parsed_content("run#0")
    written = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert written == {**people, "training": used, "validation": []}


@pytest.mark.usefixtures("pre_trains")
def test_the_pre_trained_tensors_load_into_the_segmenter(trained, run, tiny, training_knobs):
    workflow = run(trained, "train.json", only_parse=True, **training_knobs)
    network = workflow.parser.get_parsed_content("network_def")
    report = load_pretrained(trained / "models" / "pretrained.pt", network, 0.5)
    assert not report.unused
    assert set(report.carried) == set(torch.load(trained / "models" / "pretrained.pt", weights_only=True))
    parser = run(trained, "pretrain.json", only_parse=True, **tiny).parser
    assert set(report.carried) == set(parser.get_parsed_content("network_def").shared_parts())


@pytest.mark.usefixtures("pre_trains")
def test_a_part_of_the_pre_trained_tensors_can_be_carried(trained, run, training_knobs):
    prefixes = run(trained, "train.json", only_parse=True, **training_knobs).parser["encoder_prefixes"]
    knobs = {**training_knobs, "carry": prefixes[-1], "coverage": 0.0}
    parser = run(trained, "train.json", only_parse=True, **knobs).parser
    report = parser.get_parsed_content("transfer")
    assert report.carried
    assert all(name.startswith(prefixes[-1]) for name in report.carried)


@pytest.mark.parametrize("files", [["pretrain.json"], ["train.json"], ["train.json", "evaluate.json"]])
def test_every_property_that_monai_asks_of_training_is_there(trained, run, tiny, training_knobs, files):
    if not (trained / "configs" / files[0]).is_file():
        pytest.skip("this bundle pre-trains nothing")
    knobs = training_knobs if "train.json" in files else tiny
    assert run(trained, *files, only_parse=True, **knobs).check_properties() == []


def test_every_property_that_monai_asks_of_inference_is_there(trained, run, tiny, inference_knobs):
    knobs = {**inference_knobs, "dataset_dir": tiny["dataset_dir"]}
    workflow = run(trained, "inference.json", workflow_type="infer", only_parse=True, **knobs)
    assert workflow.check_properties() == []


def test_evaluation_needs_the_segmenter_alone_and_scores_held_out_people(trained, run, tiny, training_knobs, tmp_path):
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval", "pretrained.pt"))
    run(root, "train.json", "evaluate.json", output_dir=str(tmp_path / "scores"), **training_knobs)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert scores["cases"] == len((tmp_path / "scores" / "cases.csv").read_text(encoding="utf-8").splitlines()) - 1
    assert {"dice", "hausdorff95", "mean_iou", "overall_accuracy"} <= set(scores["mean over cases"])
    lines = (tmp_path / "scores" / "mean_dice_raw.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert "example_005" in lines[1]


def test_evaluation_refuses_people_that_training_saw(trained, run, tiny, training_knobs, tmp_path):
    place = Path(tiny["dataset_dir"])
    files = {key: str(place / f"{key}sTr" / "example_000.nii.gz") for key in ("image", "label")}
    knobs = {**training_knobs, "validate::dataset::data": [{**files, "subject": "example_000"}]}
    with pytest.raises(RuntimeError, match="validate::evaluator") as error:
        run(trained, "train.json", "evaluate.json", output_dir=str(tmp_path), **knobs)
    assert "trained on 1 of the subjects to be scored: ['example_000']" in str(error.value.__cause__)


def test_inference_from_a_zip_gives_a_label_map_on_the_image_s_own_grid(trained, run, tiny, inference_knobs, tmp_path):
    archive = tmp_path / f"{trained.name}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in trained.rglob("*"):
            if "eval" not in path.relative_to(trained).parts:
                file.write(path, path.relative_to(trained.parent))
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "elsewhere")
    image = nibabel.load(Path(tiny["dataset_dir"]) / "imagesTr" / "example_005.nii.gz")
    turned = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1, :, 3:], image.affine @ np.diag([-1, 1, 1, 1]))
    (tmp_path / "in").mkdir()
    nibabel.save(turned, tmp_path / "in" / "turned.nii.gz")
    nibabel.save(turned.slicer[:, :, 9:10], tmp_path / "in" / "slice.nii.gz")
    root = tmp_path / "elsewhere" / trained.name
    knobs = {**inference_knobs, "dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    run(root, "inference.json", workflow_type="infer", **knobs)
    for name, given in (("turned", turned), ("slice", turned.slicer[:, :, 9:10])):
        found = nibabel.load(tmp_path / "out" / name / f"{name}_pred.nii.gz")
        assert found.shape == given.shape
        np.testing.assert_allclose(found.affine, given.affine, atol=1e-4)
        assert set(np.unique(np.asarray(found.dataobj))) <= set(range(6))


@pytest.mark.usefixtures("pre_trains")
def test_a_killed_pre_training_resumes_to_the_same_weights(trained, run, tiny, tmp_path):
    from ignite.engine import Events

    knobs = {**tiny, "tracking_uri": f"sqlite:///{tmp_path / 'runs.db'}"}
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval"))
    workflow = run(root, "pretrain.json", only_parse=True, output_dir=str(tmp_path / "killed"), **knobs)
    trainer = workflow.parser.get_parsed_content("train::trainer")

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def kill(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workflow.run()
    (root / "models" / "pretrained.pt").unlink()
    resume = str(tmp_path / "killed" / "checkpoints" / "pretraining")
    run(root, "pretrain.json", output_dir=str(tmp_path / "resumed"), resume=resume, **knobs)
    whole, resumed = (torch.load(folder / "models" / "pretrained.pt", weights_only=True) for folder in (trained, root))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # and what is not shared: heads, momentum copy, queue
    last = f"checkpoints/pretraining/checkpoint_{tiny['steps']}.pt"
    first, second = (torch.load(run / last, weights_only=True) for run in (trained / "eval", tmp_path / "resumed"))
    assert all(torch.equal(value, second["network"][name]) for name, value in first["network"].items())


@pytest.mark.usefixtures("pre_trains")
def test_dicom_series_pre_train_as_nifti_does(trained, run, tiny, save, tmp_path):
    """Whole-number volumes, once as NIfTI and once as folders of DICOM series: the same weights, bit for bit."""
    weights = {}
    for form, ending in (("nifti", ".nii.gz"), ("dicom", "")):
        place = tmp_path / form
        for path in sorted(Path(tiny["dataset_dir"]).glob("imagesTr/*.nii.gz"))[:3]:
            volume = nibabel.load(path)
            array = np.rint(volume.get_fdata()).astype(np.int16)
            save(place / "scans" / (path.name.split(".")[0] + ending), array, volume.affine)
        root = tmp_path / "bundles" / form
        shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval", "models"))
        run(root, "pretrain.json", **{**tiny, "dataset_dir": str(place), "steps": 2})
        weights[form] = torch.load(root / "models" / "pretrained.pt", weights_only=True)
    assert all(torch.equal(value, weights["dicom"][name]) for name, value in weights["nifti"].items())


def test_results_of_two_volumes_of_one_name_lie_side_by_side(trained, run, tiny, inference_knobs, tmp_path):
    image = Path(tiny["dataset_dir"]) / "imagesTr" / "example_005.nii.gz"
    for place in ("x", "y"):
        (tmp_path / "in" / place).mkdir(parents=True)
        shutil.copy(image, tmp_path / "in" / place / "t1.nii.gz")
    out = tmp_path / "out"
    knobs = {**inference_knobs, "dataset_dir": str(tmp_path / "in"), "output_dir": str(out)}
    run(trained, "inference.json", workflow_type="infer", **knobs)
    assert {str(path.relative_to(out)) for path in out.rglob("*.nii.gz")} == {
        "x/t1/t1_pred.nii.gz", "y/t1/t1_pred.nii.gz",
    }
    one = {**knobs, "dataset_dir": str(tmp_path / "in" / "x" / "t1.nii.gz"), "output_dir": str(tmp_path / "one")}
    run(trained, "inference.json", workflow_type="infer", **one)
    assert (tmp_path / "one" / "t1" / "t1_pred.nii.gz").is_file()


def test_a_training_shorter_than_its_interval_keeps_its_model(trained, run, tiny, training_knobs, tmp_path):
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval", "model.pt"))
    run(root, "train.json", **{**training_knobs, "steps": 1, "epochs": 1, "val_interval": 5})
    assert (root / "models" / "model.pt").is_file()


def test_a_training_without_volumes_to_validate_on_keeps_its_last_weights(trained, run, tiny, training_knobs, tmp_path):
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval", "model.pt"))
    with pytest.warns(UserWarning, match="is empty"):
        workflow = run(root, "train.json", **{**training_knobs, "validate::dataset::data": []})
    saved = torch.load(root / "models" / "model.pt", weights_only=True)
    state = workflow.parser.get_parsed_content("network_def").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in state.items())


@pytest.mark.usefixtures("pre_trains")
def test_the_seed_decides_the_first_weights(trained, run, tiny):
    """Whatever a process drew before: two runs of one seed start from the same network, two seeds from others."""

    def first_weights(seed):
        torch.rand(7)
        workflow = run(trained, "pretrain.json", only_parse=True, seed=seed, **tiny)
        return torch.nn.utils.parameters_to_vector(workflow.parser.get_parsed_content("network").parameters())

    zero, again, one = first_weights(0), first_weights(0), first_weights(1)
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)


@pytest.mark.usefixtures("pre_trains")
def test_from_scratch_is_from_scratch(trained, run, tiny, training_knobs):
    """What `--pretrained none` starts from differs from the shared weights, in every tensor that they carry."""
    knobs = {**training_knobs}
    shared = torch.load(trained / "models" / "pretrained.pt", weights_only=True)
    carried, scratch = (
        run(trained, "train.json", only_parse=True, **word, **knobs).parser.get_parsed_content("network").state_dict()
        for word in ({}, {"pretrained": "none"})
    )
    frozen = ("swinViT.patch_embed.proj.",)  # random in pre-training and from scratch alike
    kernels = [name for name, value in shared.items() if value.ndim > 1 and not name.startswith(frozen)]
    assert all(torch.equal(carried[name], shared[name]) for name in kernels)
    assert not any(torch.equal(scratch[name], shared[name]) for name in kernels)


def test_every_arm_from_scratch_learns_at_one_rate(trained, run, tiny, training_knobs):
    """Whatever the scale of carried tensors: a control must not learn at a tenth of the other arm's rate."""
    whole = json.loads((trained / "configs" / "train.json").read_text(encoding="utf-8"))["pretrained"]
    plan = read_plan(trained).arms
    arms = {name: knobs for name, knobs in plan.items() if knobs.get("pretrained", whole) in (None, "none")}
    assert arms
    for arm in arms.values():
        knobs = {**training_knobs, **arm, "carried_lr_scale": 0.1}
        workflow = run(trained, "train.json", only_parse=True, **knobs)
        groups = workflow.parser.get_parsed_content("optimizer").param_groups
        assert {group["lr"] for group in groups} == {workflow.parser.get_parsed_content("learning_rate")}


@pytest.mark.usefixtures("pre_trains")
def test_carried_tensors_learn_at_the_scaled_rate(trained, run, tiny, training_knobs):
    knobs = {**training_knobs, "learning_rate": 0.01, "carried_lr_scale": 0.1}
    parser = run(trained, "train.json", only_parse=True, **knobs).parser
    rates = {
        id(value): group["lr"] for group in parser.get_parsed_content("optimizer").param_groups
        for value in group["params"]
    }
    named = dict(parser.get_parsed_content("network").named_parameters())
    carried = set(parser.get_parsed_content("transfer").carried) & set(named)
    assert carried >= set(torch.load(trained / "models" / "pretrained.pt", weights_only=True)) & set(named)
    for name, value in named.items():
        assert rates[id(value)] == pytest.approx(0.001 if name in carried else 0.01)


@pytest.mark.usefixtures("pre_trains")
def test_the_control_without_copies_has_the_rates_of_the_weights_and_the_values_of_scratch(
    trained, run, tiny, training_knobs
):
    arms = {"weights": {}, "control": {"copy_pretrained": False}, "scratch": {"pretrained": "none"}}
    knobs = {**training_knobs, "carried_lr_scale": 0.1}
    networks, rates = {}, {}
    for name, arm in arms.items():
        parser = run(trained, "train.json", only_parse=True, **knobs, **arm).parser
        networks[name] = parser.get_parsed_content("network").state_dict()  # at once: the run before set the seed
        groups = parser.get_parsed_content("optimizer").param_groups
        rates[name] = [(group["lr"], [value.shape for value in group["params"]]) for group in groups]
    assert all(torch.equal(value, networks["scratch"][name]) for name, value in networks["control"].items())
    assert rates["control"] == rates["weights"] != rates["scratch"]


@pytest.mark.parametrize("pretrained", [{}, {"pretrained": "none"}], ids=["weights", "random"])
def test_a_linear_probe_reads_an_encoder_with_statistics(trained, run, tiny, training_knobs, pretrained, tmp_path):
    """Those of the weights, or of unlabelled slices for a random encoder: else its features vanish."""
    if not (trained / "configs" / "linear_probe.json").is_file():
        pytest.skip("this bundle has no linear probe")
    knobs = {**training_knobs, "output_dir": str(tmp_path), "model_file": str(tmp_path / "probe.pt")}
    knobs = {name.replace("network_def::", "network_def::backbone::"): value for name, value in knobs.items()}
    run(trained, "train.json", "linear_probe.json", **knobs, **pretrained)
    probe = torch.load(tmp_path / "probe.pt", weights_only=True)
    shared = torch.load(trained / "models" / "pretrained.pt", weights_only=True)
    frozen = ("swinViT.patch_embed.proj.",)  # random in pre-training and from scratch alike
    kernels = [name for name in shared if shared[name].ndim > 1 and not name.startswith(frozen)]
    assert {torch.equal(probe[name], shared[name]) for name in kernels} == {not pretrained}
    means = {name: value for name, value in probe.items() if name.endswith("running_mean")}
    assert all(bool(value.any()) for value in means.values())
    assert all(torch.equal(value, shared[name]) for name, value in means.items()) == (not pretrained or not means)


def test_label_values_need_not_be_consecutive(trained, run, tiny, training_knobs):
    """A class for each value up to the largest: label maps keep their values."""
    knobs = {**training_knobs, "structures": {"1": "a", "3": "b", "7": "c"}}
    workflow = run(trained, "train.json", only_parse=True, **knobs)
    assert workflow.parser.get_parsed_content("num_classes") == 8


def test_the_three_dimensional_knobs_run(trained, run, tiny, training_knobs, three_dimensional, tmp_path):
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval", "models"))
    knobs = {"spatial_dims": 3, "batch_size": 2, "steps": 2}
    pretraining, training = three_dimensional
    if (root / "configs" / "pretrain.json").is_file():
        run(root, "pretrain.json", **{**tiny, **knobs, **pretraining})
    run(root, "train.json", **{**training_knobs, **knobs, **training})
    assert (root / "models" / "model.pt").is_file()


def test_the_names_of_carried_and_missing_tensors_are_stored_with_the_run(trained, run, training_knobs, tmp_path):
    from mlflow.tracking import MlflowClient

    knobs = {**training_knobs, "output_dir": str(tmp_path), "model_file": str(tmp_path / "model.pt"), "steps": 2}
    workflow = run(trained, "train.json", **knobs)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    text = Path(client.download_artifacts(found.info.run_id, "transfer.txt", str(tmp_path))).read_text(encoding="utf-8")
    assert text == workflow.parser.get_parsed_content("transfer").listing()
    assert "missing: " in text


@pytest.mark.usefixtures("pre_trains")
def test_monai_s_own_tracking_leaves_one_finished_run(trained, run, tiny, tmp_path):
    from mlflow.tracking import MlflowClient

    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval"))
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    run(root, "pretrain.json", tracking="mlflow", output_dir=str(tmp_path / "out"), tracking_uri=uri, **tiny)
    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in found] == ["FINISHED"]


@pytest.mark.parametrize(
    ("file", "knob", "value", "said"),
    [
        ("pretrain.json", "steps", "many", "steps"),
        ("pretrain.json", "batch_size", "4x", "batch_size"),
        ("pretrain.json", "view_size", 128, "size"),
        ("pretrain.json", "seed", 1.5, "seed"),
        ("pretrain.json", "learning_rate", "high", "learning_rate"),
        ("pretrain.json", "dataset_dir", "/nowhere", "/nowhere is no folder"),
        ("pretrain.json", "monitor_interval", 0, "at least 1 step, got 0"),
        ("pretrain.json", "checkpoint_interval", 0, "interval 0 and keep 2 must be at least 1"),
        ("train.json", "roi_size", "big", "size"),
        ("train.json", "freeze_encoder_epochs", "a", "FrozenEncoder.__init__"),
        ("train.json", "label_fraction", 0.0, "label_fraction must be above 0"),
    ],
)
def test_a_wrong_knob_is_named_with_its_value(trained, run, tiny, training_knobs, tmp_path, file, knob, value, said):
    if not (trained / "configs" / file).is_file():
        pytest.skip("this bundle pre-trains nothing")
    knobs = {**(training_knobs if file == "train.json" else tiny), knob: value}
    with pytest.raises(RuntimeError, match=r"Failed to instantiate") as error:
        run(trained, file, output_dir=str(tmp_path), **knobs)
    assert said in str(error.value.__cause__)
    assert str(value) in str(error.value.__cause__)


def test_a_wrong_weights_file_ends_with_its_name(trained, run, tiny, training_knobs, tmp_path):
    torch.save({"foreign.weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    knobs = {**training_knobs, "pretrained": str(tmp_path / "foreign.pt")}
    with pytest.raises(RuntimeError, match="load_pretrained") as error:
        run(trained, "train.json", output_dir=str(tmp_path), **knobs)
    assert "foreign.pt" in str(error.value.__cause__)
    assert re.search("0 carried|unknown layout; the first names are .'foreign.weight'", str(error.value.__cause__))


def test_a_federation_trains_the_weights_that_it_was_sent(trained, tiny, training_knobs, tmp_path):
    from monai.fl.client.monai_algo import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems
    from monai.fl.utils.exchange_object import ExchangeObject

    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval"))
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "steps": 2, "epochs": 1}
    set_knobs(root / "configs" / "train.json", {**training_knobs, **still})
    algo = MonaiAlgo(bundle_root=str(root), local_epochs=1)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path)})
    zeros = {name: np.zeros_like(value.numpy()) for name, value in algo.trainer.network.state_dict().items()}
    for _ in range(2):
        algo.train(ExchangeObject(weights=zeros), extra={})
        found = algo.get_weights().weights
    norms = ("running_mean", "running_var", "num_batches_tracked")
    moved = [name for name, value in found.items() if np.abs(value).sum() > 0 and not name.endswith(norms)]
    assert moved == []
    algo.finalize()


def test_inspect_reads_what_weights_make_of_a_data_set(trained, written, population, tmp_path):
    """Of every bundle, also of one that pre-trains nothing."""
    text = inspect(str(population), str(written / "models" / "model.pt"), str(written), str(tmp_path), samples=8)
    assert "0 missing" in text
    assert "effective rank" in text
    assert {path.name for path in tmp_path.iterdir()} >= {"similarity.png", "spectrum.png"}


@pytest.mark.slow
def test_the_demo_of_a_bundle_runs_what_the_bundle_says(written, population, tmp_path, monkeypatch, capfd):
    """Two arms side by side in processes of their own, on a copy of the bundle for the data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "toys"))
    demo(str(written), str(population), labelled=2)
    arms = list(read_plan(written).arms)
    said = capfd.readouterr().out
    assert f"{arms[0]} minus {arms[1]}, paired over 1 subjects" in said
    copy = tmp_path / "demo" / written.name
    assert (copy / "models" / "model.pt").is_file()
    assert (copy / "eval" / "demo.png").is_file()
    before = [config for run in read_plan(written).before for config in run.configs]
    assert (copy / "models" / "pretrained.pt").is_file() == ("pretrain.json" in before)


@pytest.mark.parametrize("file", ["pretrain.json", "train.json"])
def test_every_knob_that_is_null_or_a_limit_takes_the_word_none(trained, run, tiny, training_knobs, file, tmp_path):
    if not (trained / "configs" / file).is_file():
        pytest.skip("this bundle pre-trains nothing")
    knobs = {**(training_knobs if file == "train.json" else tiny), "output_dir": str(tmp_path)}
    config = json.loads((trained / "configs" / file).read_text(encoding="utf-8"))
    words = {name: "none" for name in ids(config) if functools.reduce(_member, name.split("::"), config) is None}
    words = {name: word for name, word in words.items() if name != "dataset_dir"} | {"clip": "none", "run_name": "none"}
    assert {"resume", "subjects", "subject_pattern"} <= set(words)
    trainer = run(trained, file, only_parse=True, **knobs, **words).parser.get_parsed_content("train::trainer")
    assert trainer.clip is None
    assert trainer.resume is None


def _member(config, name):
    return config[int(name)] if isinstance(config, list) else config[name]

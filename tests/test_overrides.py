import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from medcl_monai.bundles import run_bundle
from medcl_monai.overrides import check_command_line, check_overrides, merged

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundles" / "jcl" / "configs"


@pytest.fixture(scope="module")
def config():
    return merged([CONFIGS / "pretrain.json"])


@pytest.mark.parametrize(
    "name",
    [
        "steps", "loss::temperature", "loss#temperature", "views::rotation", "network_def::backbone::features",
        "network_def::corner_aligned", "network_def::backbone::dropout", "train::handlers#0#warm_up", "tracking",
        "tracking_uri", "+steps", "train::trainer::key_train_metric", "network::non_blocking",
        "train::handlers::1::_disabled_", "train::dataset::blank", "meta_file",
    ],
)
def test_what_a_config_has_or_its_component_accepts_is_taken(config, name):
    check_overrides(config, [name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step", "'step': do you mean 'steps'"), ("loss::temprature", "do you mean 'loss::temperature'"),
        ("network_def::stage", "do you mean 'network_def::stages'"), ("temperature", "do you mean"),
        ("views::rotation::x", "no config has the knob"), ("train::handlers#9#warm_up", "no config has the knob"),
        ("network_def::backbone::dropuot", "do you mean 'network_def::backbone::dropout'"),
        ("zzzzzz", "python -m medcl_monai knobs BUNDLE lists"),
    ],
)
def test_what_nobody_takes_is_refused_with_the_nearest_name(config, name, said):
    with pytest.raises(ValueError, match="no config has the knob") as error:
        check_overrides(config, [name])
    assert said in str(error.value)


def of_monai(*arguments):
    return ["/x/site-packages/monai/bundle/__main__.py", "run", *map(str, arguments)]


def test_the_command_line_of_monai_is_checked_and_no_other(monkeypatch):
    files = f"['{CONFIGS / 'train.json'}','{CONFIGS / 'evaluate.json'}']"
    arguments = ("--config_file", files, "--steps", 3, "--model_file=x", "--bundle_root", ".")
    monkeypatch.setattr(sys, "argv", of_monai(*arguments))
    check_command_line()
    monkeypatch.setattr(sys, "argv", of_monai("--config_file", files, "--step=3"))
    with pytest.raises(SystemExit, match=r"^error: no config has the knob 'step'"):
        check_command_line()
    monkeypatch.setattr(sys, "argv", of_monai("--config_file", CONFIGS / "train.json", "--clip", "None"))
    with pytest.raises(SystemExit, match="MONAI drops an override of None; write --clip none"):
        check_command_line()
    monkeypatch.setattr(sys, "argv", of_monai("-config-file", CONFIGS / "train.json", "-step", "3"))
    with pytest.raises(SystemExit, match=r"^error: no config has the knob 'step'"):
        check_command_line()
    for fine in (("--batch-size", "4"), ("--tracking", "None"), ("--seed", "-1"), ("--run_name", "x")):
        monkeypatch.setattr(sys, "argv", of_monai("--config_file", files, *fine))
        check_command_line()
    monkeypatch.setattr(sys, "argv", ["/x/other/__main__.py", "run", "--config_file", files, "--step", "3"])
    check_command_line()
    monkeypatch.setattr(sys, "argv", ["/x/monailabel/main.py", "run", "--step", "3"])
    check_command_line()


def test_a_file_of_arguments_is_checked_too(monkeypatch, tmp_path):
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")]
    for arguments, wrong in (({"steps": 3, "subjects": None}, False), ({"step": 3}, True)):
        (tmp_path / "args.json").write_text(json.dumps({"config_file": files, **arguments}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", of_monai("--args_file", tmp_path / "args.json"))
        with pytest.raises(SystemExit, match=r"^error: no config has the knob 'step'") if wrong else nullcontext():
            check_command_line()


def test_arguments_of_a_component_that_another_override_replaces_are_taken(config):
    check_overrides(config, ["optimizer::_target_", "optimizer::betas", "loss", "loss::sigmoid"])
    with pytest.raises(ValueError, match="no config has the knob 'optimizer::betas'"):
        check_overrides(config, ["optimizer::betas"])


def test_python_code_that_runs_a_bundle_is_checked_too():
    with pytest.raises(ValueError, match=r"no config has the knob 'stpes': do you mean 'steps'"):
        run_bundle([CONFIGS / "pretrain.json"], stpes=3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("queue_size", "'network_def::queue_size'"), ("group_size", "'network_def::whiten::group_size'"),
        ("momentum", "'network_def::momentum' or 'optimizer::momentum'"), ("loss::temprature", "'loss::temperature'"),
        ("step", "'steps'"),
    ],
)
def test_the_hint_goes_by_the_last_part_of_an_id(name, hint):
    config = merged([CONFIGS.parents[1] / "decorrelated_moco" / "configs" / "pretrain.json"])
    with pytest.raises(ValueError, match=rf"no config has the knob '{name}': do you mean {hint}\?"):
        check_overrides(config, [name])


def test_tracking_ids_are_taken_by_configs_that_do_not_hold_them():
    check_overrides(merged([CONFIGS / "inference.json"]), ["run_name", "experiment_name", "tracking_uri"])


def test_the_optimiser_s_own_rate_is_refused_because_the_groups_have_theirs(config):
    with pytest.raises(ValueError, match="optimizer::lr has no effect: learning_rate sets the rate"):
        check_overrides(config, ["optimizer::lr"])


def test_none_from_python_is_none_and_not_the_value_of_the_file(monkeypatch):
    import monai.bundle

    given = {}

    class StopError(Exception):
        pass

    def take(**arguments):
        given.update(arguments)
        raise StopError

    monkeypatch.setattr(monai.bundle, "create_workflow", take)
    with pytest.raises(StopError):
        run_bundle([CONFIGS / "train.json"], clip=None, steps=3)
    assert (given["clip"], given["steps"]) == ("none", 3)

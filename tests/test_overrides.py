import sys
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
        "tracking_uri", "+steps", "train::handlers::1::_disabled_", "train::dataset::blank", "meta_file",
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
    with pytest.raises(ValueError, match="no config has the knob 'step'"):
        check_command_line()
    monkeypatch.setattr(sys, "argv", of_monai("--config_file", CONFIGS / "train.json", "--clip", "None"))
    with pytest.raises(ValueError, match="MONAI drops an override of None; write --clip none"):
        check_command_line()
    monkeypatch.setattr(sys, "argv", ["/x/monailabel/main.py", "run", "--step", "3"])
    check_command_line()


def test_python_code_that_runs_a_bundle_is_checked_too():
    with pytest.raises(ValueError, match=r"no config has the knob 'stpes': do you mean 'steps'"):
        run_bundle([CONFIGS / "pretrain.json"], stpes=3)

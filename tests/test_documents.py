"""What the documents say is run, and what the package exports is what they can rely on."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medcl_monai
from medcl_monai.bundles import value_span
from medcl_monai.commands.knobs import knobs
from medcl_monai.overrides import check_overrides

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES += sorted(ROOT.glob("bundles/*/docs/*.md"))
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
MODULES = [module.name for module in pkgutil.walk_packages(medcl_monai.__path__, "medcl_monai.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_of_a_page_run_and_print_what_they_say(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(page), "exec"), {})
        said = re.findall(r"print\(.*?\)\s*(?:\n# (.*)|  # (.*))$", block, re.M)
        printed = capsys.readouterr().out
        for expected in filter(None, (first or second for first, second in said)):
            assert expected in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for file in re.findall(r"(?<![\w/])(bundles/\w+/configs/\w+\.json)", text):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_knobs_on_command_lines_exist(page):
    import json

    knobs = {"config_file", "bundle_root", "net_id", "filepath", "ckpt_file", "meta_file", "standalone"}
    knobs |= {"nproc_per_node", "weights", "bundle", "dataset", "help", "use_trace", "input_shape"}
    for file in ROOT.glob("bundles/*/configs/*.json"):
        knobs |= set(json.loads(file.read_text(encoding="utf-8")))
    blocks = " ".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    ours = " ".join(line for line in blocks.splitlines() if not line.strip().startswith(("monailabel", "curl", "pip")))
    named = set(re.findall(r"(?<=\s)--([\w:]+)", ours)) - {"backend", "write"}
    texts = [file.read_text(encoding="utf-8") for file in ROOT.glob("bundles/*/configs/*.json")]
    nested = {name for name in named if "::" in name and any(value_span(text, name.split("::")) for text in texts)}
    others = {name for name in named - knobs - nested if any(takes(json.loads(text), name) for text in texts)}
    assert named <= knobs | nested | others


def takes(config, name):
    """Whether a class that the config names takes an argument which the config leaves out."""
    if name.split("::")[0] not in config:
        return False
    try:
        check_overrides(config, [name])
    except ValueError:
        return False
    return True


def test_an_argument_that_no_class_takes_is_no_knob():
    import json

    config = json.loads((ROOT / "bundles" / "jcl" / "configs" / "pretrain.json").read_text(encoding="utf-8"))
    assert takes(config, "loss::gather")
    assert not takes(config, "loss::gathers")
    assert not takes(config, "lost::gather")


@pytest.mark.parametrize("verb", ["example_data", "demo", "inspect", "transfer", "knobs", "bundle"])
def test_each_verb_explains_itself(verb):
    command = [sys.executable, "-W", "ignore", "-m", "medcl_monai", verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PAGER": "cat"})
    assert done.returncode == 0
    assert "FLAGS" in done.stdout + done.stderr


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_page_of_a_method_explains_every_knob(bundle):
    page = (ROOT / "docs" / "methods" / f"{bundle.name}.md").read_text(encoding="utf-8")
    begin, end = (f"<!-- {edge} knobs {bundle.name} -->" for edge in ("begin", "end"))
    table = re.search(rf"{begin}\n(.*?)\n{end}", page, re.S).group(1)
    assert table == knobs(str(bundle), markdown=True)
    for name, meaning in re.findall(r"^\| `([\w:]+)` \| .* \| (.*) \|$", table, re.M):
        assert meaning.strip(), f"{name} has no meaning"


def test_the_public_names_exist_and_stand_once():
    assert len(set(medcl_monai.__all__)) == len(medcl_monai.__all__)
    assert all(getattr(medcl_monai, name) is not None for name in medcl_monai.__all__)
    assert f"version = {medcl_monai.__version__}" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_repository_names_no_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    odd = re.compile(r"(?<![\w.])/(tmp|work|root|home|mnt)/")
    texts = [ROOT / name for name in listed if name.endswith((".py", ".md", ".json", ".cfg", ".toml", ".txt", ".sh"))]
    found = [path.name for path in texts if path != Path(__file__) and odd.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_at_most_sixteen_dependencies_each_with_its_reason():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = config["options"]["install_requires"].strip().splitlines()
    assert len(needed) <= 16
    assert all("#" in line for line in needed)

"""The committed results, and what the pages say of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def between(page, mark):
    text = page.read_text(encoding="utf-8")
    return re.search(rf"<!-- begin {re.escape(mark)} -->\n(.*?)\n<!-- end {re.escape(mark)} -->", text, re.S).group(1)


def row(start, rate, scale, draw, dice, people="validation", data="example"):
    values = {"bundle": "jcl", "data": data, "start": start, "rate": rate, "scale": scale, "draw": draw}
    return {key: str(value) for key, value in {**values, "people": people, "dice": dice}.items()}


def test_a_start_chooses_by_validation_people_alone_and_data_sets_count_alike():
    import recipe

    rows = [row("scratch", 0.001, 1.0, draw, 0.6) for draw in range(4)]
    rows += [row("scratch", 0.003, 1.0, draw, 0.5) for draw in range(4)]
    assert recipe.choice(rows, "jcl", "scratch") == (0.001, 1.0)
    rows += [row("scratch", 0.003, 1.0, draw, 0.99, people="test") for draw in range(4)]
    assert recipe.choice(rows, "jcl", "scratch") == (0.001, 1.0)
    rows += [row("scratch", 0.001, 1.0, 0, 0.2, data="other"), row("scratch", 0.003, 1.0, 0, 0.4, data="other")]
    assert recipe.choice(rows, "jcl", "scratch") == (0.003, 1.0)
    with pytest.raises(ValueError, match="no draw of validation people in all cells for longer of jcl"):
        recipe.choice(rows, "jcl", "longer")


def test_the_draws_are_counted_beforehand():
    import recipe

    assert len(recipe.DRAWS) >= 5


def test_the_page_of_the_recipe_shows_the_committed_results():
    import recipe

    for bundle in recipe.BUNDLES:
        page = between(recipe.PAGE, f"studies/recipe.py {bundle}")
        assert page == "\n".join(recipe.tables(recipe.read_rows(recipe.RESULTS), bundle))
        assert "minus scratch" in page or "runs are done" in page


def test_the_page_of_decorrelated_moco_shows_the_committed_results_against_every_control():
    import decorrelated_moco

    page = between(decorrelated_moco.PAGE, "studies/decorrelated_moco.py")
    rows = decorrelated_moco.read_rows(decorrelated_moco.RESULTS)
    assert page == "\n".join(decorrelated_moco.tables(rows))
    held = {row["arm"] for row in rows}
    for control in set(decorrelated_moco.CONTROLS) & held:
        label = decorrelated_moco.LABELS[control]
        others = [arm for arm in decorrelated_moco.ARMS if arm in held and arm not in decorrelated_moco.CONTROLS]
        assert all(f"| {decorrelated_moco.LABELS[arm]} minus {label} |" in page for arm in others)


def test_the_demo_and_the_defaults_are_what_the_starts_chose():
    import json

    import recipe

    rows = recipe.read_rows(recipe.RESULTS)
    done = sum(row["people"] == "validation" and row["start"] in recipe.STARTS[:2] for row in rows)
    if done < len(recipe.BUNDLES) * recipe.WHOLE:
        pytest.skip("the study of the recipe is not complete")
    for bundle in recipe.BUNDLES:
        configs = ROOT / "bundles" / bundle / "configs"
        train, demo = (json.loads((configs / name).read_text(encoding="utf-8")) for name in ("train.json", "demo.json"))
        chosen = recipe.choice(rows, bundle, "pretrained")
        assert (train["learning_rate"], train["carried_lr_scale"]) == chosen
        scratch = demo["arms"].pop("scratch")
        assert scratch == {"pretrained": "none", "learning_rate": recipe.choice(rows, bundle, "scratch", (1.0,))[0]}
        same_rates = {"random weights": {"copy_pretrained": False}}
        assert demo["arms"] == {"pre-trained": {}} | ({} if chosen[1] == 1 else same_rates)


def test_the_readme_shows_the_committed_demos_with_the_arms_that_the_bundles_have():
    import json

    import demos

    rows = demos.read_rows(demos.RESULTS)
    assert between(demos.PAGE, "studies/demos.py") == "\n".join(demos.table(rows))
    for bundle, data in {(row["bundle"], row["data"]) for row in rows}:
        plan = json.loads((ROOT / "bundles" / bundle / "configs" / "demo.json").read_text(encoding="utf-8"))
        arms = {row["arm"]: None for row in rows if (row["bundle"], row["data"]) == (bundle, data)}
        assert list(arms) == list(plan["arms"])


def test_the_page_of_pdcr_and_uafs_shows_the_committed_results_and_the_default_is_what_the_sweep_prefers():
    import json

    import pdcr_uafs

    rows = pdcr_uafs.read_rows(pdcr_uafs.RESULTS)
    assert between(pdcr_uafs.PAGE, "studies/pdcr_uafs.py") == "\n".join(pdcr_uafs.tables(rows))
    form, weight = pdcr_uafs.CELLS[pdcr_uafs.preferred(rows)]
    train = json.loads((ROOT / "bundles" / "pdcr_uafs" / "configs" / "train.json").read_text(encoding="utf-8"))
    assert train["loss"]["pair_loss"] == pdcr_uafs.FORMS[form]
    assert train["loss"]["intra_weight"] == weight
    assert len(pdcr_uafs.DRAWS) >= 3


def test_a_setting_replaces_the_default_only_if_it_is_clearly_better():
    import pdcr_uafs

    def sweep(gain):
        draws = [(data, draw) for data in ("a", "b") for draw in range(3)]
        base = {key: 0.6 + 0.01 * key[1] for key in draws}
        sweep = {"stage": "sweep"}
        return [
            {**sweep, "arm": arm, "data": data, "draw": str(draw), "dice": str(base[data, draw] + change[draw])}
            for arm, change in {"plain": [0] * 3, **dict.fromkeys(pdcr_uafs.CELLS, [0] * 3), "pdcr 0.1": gain}.items()
            for data, draw in draws
        ]

    assert pdcr_uafs.preferred(sweep([0.05, 0.04, 0.05])) == "pdcr 0.1"
    assert pdcr_uafs.preferred(sweep([0.3, -0.1, 0.0])) == pdcr_uafs.DEFAULT
    with pytest.raises(ValueError, match="the sweep is not complete"):
        pdcr_uafs.preferred(sweep([0, 0, 0])[:5])


def test_a_variant_is_shown_when_all_of_its_runs_are_done_and_counted_before():
    import recipe

    cells = [(rate, scale) for rate in recipe.RATES for scale in recipe.SCALES]
    rows = [
        row(start, *cell, draw, 0.5 + 0.01 * draw**2 * len(start), data=data)
        for start in recipe.STARTS[:2] for cell in cells for draw in recipe.DRAWS for data in ("example", "other")
    ]
    part = [row("no_blank", *cell, 0, 0.6) for cell in cells]
    text = "\n".join(recipe.tables([*rows, *part], "jcl"))
    assert "pre-trained without blank slices: 4 of 20 runs are done." in text
    assert "| rate, scale | scratch | pre-trained |" in text
    whole = [row("no_blank", *cell, draw, 0.6 - 0.02 * draw) for cell in cells for draw in recipe.DRAWS]
    text = "\n".join(recipe.tables([*rows, *whole], "jcl"))
    assert "| rate, scale | scratch | pre-trained | pre-trained without blank slices |" in text
    assert "pre-trained without blank slices minus scratch" in text
    assert "of 20 runs" not in text


@pytest.mark.parametrize("name", ["transformer_transfer", "swin_arms", "decoder_contrast"])
def test_the_page_of_transformer_transfer_shows_the_committed_results(name):
    import importlib

    study = importlib.import_module(name)
    assert between(study.PAGE, f"studies/{name}.py") == "\n".join(study.tables(study.read_rows(study.RESULTS)))


def test_a_profile_reaches_the_bars_on_retrieval_dice_and_alarms_together():
    import transformer_transfer as study

    def rows(**changes):
        base = {"retrieval": "0.02", "retrieval_before": "0.01", "linear_dice": "0.5", "alarms": "0", "draw": "0"}
        start = {**base, "cell": "source", "linear_dice": "0.45"}
        return [start, {**start, "cell": "random", "linear_dice": "0.6"}, {**base, "cell": "default", **changes}]

    assert study.reaches(rows(), "default")
    assert not study.reaches(rows(alarms="1"), "default")
    assert not study.reaches(rows(retrieval="0.01"), "default")
    assert not study.reaches(rows(linear_dice="0.44"), "default")
    assert not study.reaches(rows(cell="from random"), "from random")
    assert study.reaches(rows(cell="from random", linear_dice="0.6"), "from random")
    assert not study.reaches(rows()[1:], "default")  # the start of the draw was not measured


def test_the_leakage_of_a_decoder_is_shown_before_and_after_with_every_way():
    import decoder_contrast as study

    found = {"before": [0.2, 0.2, 0.2], "after": [0.3, 0.31, 0.32]}
    rows = [
        {"data": "x", "variant": variant, "draw": str(draw), "when": when, "all": str(values[draw]),
         "skips": str(0.2 + 0.01 * draw), "deepest": "0.07", "chance": "0.0625"}
        for variant in study.VARIANTS for draw in range(3) for when, values in found.items()
    ]
    text = "\n".join(study.tables(rows))
    assert all(text.count(f"| {label}") == 2 for label in study.VARIANTS.values())
    assert "| 0.062 [0.062, 0.062] |" in text
    assert "minus before | **+0.110 [+0.085, +0.135]** | +0.000" in text

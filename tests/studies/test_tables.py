import pytest

ARMS = {"scratch": "scratch", "moco": "MoCo v2", "local": "+ local"}


def rows(**values):
    return [
        {"arm": arm, "draw": str(draw), "dice": str(dice)}
        for arm, found in values.items() for draw, dice in enumerate(found)
    ]


def test_each_arm_is_compared_with_every_control_draw_by_draw():
    from tables import differences

    held = rows(scratch=[0.5, 0.6, 0.7], moco=[0.6, 0.6, 0.9], local=[0.61, 0.71, 0.82])
    lines, cells = differences(held, ARMS, ["scratch", "moco"], {"dice": "Dice"})
    assert lines[2:] == [
        "| MoCo v2 minus scratch | +0.100 [-0.148, +0.348] |",
        "| + local minus scratch | **+0.113 [+0.099, +0.128]** |",
        "| + local minus MoCo v2 | +0.013 [-0.223, +0.249] |",
    ]
    assert len(cells) == 3


def test_the_number_of_comparisons_is_counted_from_the_cells():
    from tables import counted

    said = counted(["**+0.1 [+0.1, +0.2]**", "+0.1 [-0.1, +0.2]"])
    assert said.startswith("2 comparisons; the 95 % interval of 1 of them")


def test_draws_that_one_arm_lacks_are_left_out_and_two_rows_of_a_draw_are_refused():
    from tables import differences

    held = rows(scratch=[0.5, 0.6], moco=[0.6, 0.6, 0.9])
    lines, _ = differences(held, {"scratch": "s", "moco": "m"}, ["scratch"], {"dice": "Dice"})
    assert "+0.050 [-0.585, +0.685]" in lines[2]
    with pytest.raises(ValueError, match="more than one row of a draw"):
        differences([*held, held[0]], {"scratch": "s", "moco": "m"}, ["scratch"], {"dice": "Dice"})


def test_a_table_replaces_what_stands_between_its_marks_and_nothing_else(tmp_path):
    from tables import replace_between

    page = tmp_path / "page.md"
    page.write_text("above\n<!-- begin x -->\nold\n<!-- end x -->\nbelow\n", encoding="utf-8")
    replace_between(page, "x", ["new", "lines"])
    assert page.read_text(encoding="utf-8") == "above\n<!-- begin x -->\nnew\nlines\n<!-- end x -->\nbelow\n"
    with pytest.raises(ValueError, match="has no marks"):
        replace_between(page, "y", [])

"""Tables of a study from its rows: means, and the difference of each arm to every control, with their number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medcl_monai.commands.demo_report import t_interval

Row = Mapping[str, str]
NOTHING = "No run of this study is committed yet."


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and Student's 95 % interval over draws; bold where signed values exclude 0."""
    if not values:
        return "none"
    mean, low, high = t_interval(np.array(values))
    text = f"{mean:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if len(values) > 1 else "")
    return f"**{text}**" if sign and len(values) > 1 and not low <= 0 <= high else text


def by_draw(rows: Sequence[Row], column: str, **wanted: str) -> dict[str, float]:
    """Draw to value, of the rows with the wanted entries."""
    kept = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if len({row["draw"] for row in kept}) != len(kept):
        raise ValueError(f"{wanted}: more than one row of a draw")
    return {row["draw"]: float(row[column]) for row in kept}


def means(rows: Sequence[Row], arms: Mapping[str, str], columns: Mapping[str, str], **wanted: str) -> list[str]:
    """Markdown: a row per arm, a column per figure, mean [95 % t interval over draws].

    Args:
        rows: with `arm`, `draw` and the columns.
        arms: name to label.
        columns: name to label.
        wanted: entries that rows must have.
    """
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    for arm, label in arms.items():
        values = [list(by_draw(rows, column, arm=arm, **wanted).values()) for column in columns]
        lines.append(f"| {label} | " + " | ".join(interval(column) for column in values) + " |")
    return lines


def differences(
    rows: Sequence[Row], arms: Mapping[str, str], controls: Sequence[str], columns: Mapping[str, str], **wanted: str
) -> tuple[list[str], list[str]]:
    """Markdown: the paired difference, draw by draw, of each arm to every control that the rows hold.

    Args:
        rows: with `arm`, `draw` and the columns.
        arms: name to label.
        controls: names of the arms that the others are compared with; the difference of two controls is shown once.
        columns: name to label.
        wanted: entries that rows must have.

    Returns:
        The table's lines, and its cells that hold a comparison.
    """
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    cells = []
    for place, control in enumerate(controls):
        for arm, label in arms.items():
            if arm in controls[: place + 1]:
                continue
            row = []
            for column in columns:
                ours, theirs = (by_draw(rows, column, arm=name, **wanted) for name in (arm, control))
                row.append(interval([value - theirs[draw] for draw, value in ours.items() if draw in theirs], "+"))
            lines.append(f"| {label} minus {arms[control]} | " + " | ".join(row) + " |")
            cells += [cell for cell in row if cell != "none"]
    return lines, cells


def counted(cells: Sequence[str]) -> str:
    """How many comparisons are shown, how many intervals exclude 0, and how many would by chance."""
    clear = sum(cell.startswith("**") for cell in cells)
    return (
        f"{len(cells)} comparisons; the 95 % interval of {clear} of them excludes 0 (bold), where chance alone would "
        f"give about {len(cells) * 0.05:.1f}. None is corrected for their number."
    )


def show(lines: Sequence[str], page: Path, mark: str, write: bool) -> None:
    """Print a study's tables; if `write`, put them into a page, between its marks."""
    print("\n".join(lines))
    if write:
        replace_between(page, mark, lines)


def replace_between(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Write `lines` into a page between ``<!-- begin MARK -->`` and ``<!-- end MARK -->``.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {mark} -->\n", f"<!-- end {mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no marks {begin.strip()!r} and {end!r}")
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    page.write_text(head + begin + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")

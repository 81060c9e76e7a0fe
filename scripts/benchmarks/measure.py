"""Figures: several rounds of a measurement, their median, and what they are compared with."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured.
        unit: of its values.
        values: one for each round.
        goal: what the median should reach; None: nothing is promised.
        most: the goal is the most it may be, not the least.
    """

    name: str
    unit: str
    values: Sequence[float] = field(repr=False)
    goal: float | None = None
    most: bool = False

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.most else self.median >= self.goal

    def as_json(self) -> dict[str, object]:
        """Give it for a JSON file."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "values": list(self.values),
            "goal": self.goal,
            "goal_is_upper_limit": self.most,
            "reached": self.reached,
        }


def ratio(
    name: str,
    values: Sequence[float],
    others: Sequence[float],
    goal: float | None = None,
    *,
    most: bool = False,
) -> Figure:
    """Give one measurement in terms of another, round by round."""
    pairs = [value / other for value, other in zip(values, others, strict=True)]
    return Figure(name, "ratio", pairs, goal, most=most)


def format_table(title: str, figures: Sequence[Figure]) -> str:
    """Give a section of the report, in Markdown.

    Figures whose names are `ROW | COLUMN` are a table of their own: medians, before the others.
    """
    lines = [f"### {title}", ""]
    cells = [figure for figure in figures if " | " in figure.name]
    if cells:
        lines += [*_format_cells(cells), ""]
    lines += ["| what | median | from - to | goal |", "|---|---|---|---|"]
    for figure in figures:
        if " | " in figure.name:
            continue
        bound = "" if figure.goal is None else f"{'<=' if figure.most else '>='} {figure.goal:g}"
        if figure.reached is False:
            bound += " (missed)"
        spread = f"{_number(min(figure.values))} - {_number(max(figure.values))}"
        lines.append(
            f"| {figure.name} | {_number(figure.median)} {figure.unit} | {spread} | {bound} |"
        )
    return "\n".join(lines) + "\n"


def _format_cells(figures: Sequence[Figure]) -> list[str]:
    rows: dict[str, dict[str, Figure]] = {}
    columns: dict[str, str] = {}
    for figure in figures:
        row, _, column = figure.name.partition(" | ")
        rows.setdefault(row, {})[column] = figure
        columns[column] = figure.unit
    heads = [f"{column}, {unit}" for column, unit in columns.items()]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for row, found in rows.items():
        medians = [_number(found[name].median) if name in found else "" for name in columns]
        lines.append(f"| {row} | {' | '.join(medians)} |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""
What a run has found: as a table, a plot, and the page docs/performance.md.

    python benchmarks/report.py .cache/bench/bench.json           # the table again
    python benchmarks/report.py .cache/bench/bench.json --docs    # docs/performance.md and docs/performance.svg
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from bench import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Values = dict[str, dict[str, list[float]]]
DOCS = Path(__file__).parent.parent / "docs"
NEAR = 1.1  # times its floor: a figure is at it
HEAD, SERVICE = "performance.head.md", "performance.service.md"  # what is said before the table and after it, by hand


@dataclass
class Row:
    figure: Figure
    stock: list[float]
    ours: list[float]
    note: str = ""  # why it is not there, or not whole
    floor: float | None = None  # the least that `reached` could be here, as far as this was measured

    @property
    def reached(self) -> float | None:
        """What the bar is held against: the ratio to the stock kernel, or our own value."""
        if not self.ours or not (self.stock or self.figure.by == "value"):
            return None
        if self.figure.by == "value":
            return median(self.ours)
        middle = high if self.figure.by == "p99" else median
        return middle(self.ours) / middle(self.stock)

    @property
    def verdict(self) -> str:
        if self.figure.bar is None or self.reached is None:
            return ""
        if round(self.reached, 2) <= self.figure.bar:
            return "met"
        if self.floor is None:
            return "not met"
        if self.reached <= NEAR * self.floor:
            return f"at its floor {number(self.floor)}"
        if self.figure.bar < self.floor:
            return f"not met, nor by any kernel; {self.reached / self.floor:.2f} × the floor {number(self.floor)}"
        return f"not met; floor {number(self.floor)}"

    @property
    def missed(self) -> bool:
        return self.verdict.startswith("not met")

    def cells(self) -> tuple[str, ...]:
        reached, bar = self.reached, self.figure.bar
        return (
            f"{self.figure.title}, {self.figure.unit}",
            spread(self.stock, self.figure),
            spread(self.ours, self.figure),
            "" if reached is None or self.figure.by == "value" else f"{reached:.2f}",
            "" if bar is None else f"≤ {bar:g}",
            "; ".join(filter(None, (self.verdict, self.note if self.ours else f"not taken: {self.note}"))),
        )


COLUMNS = ("figure", "stock", "isolated", "ratio", "bar", "")


@dataclass
class Results:
    about: dict[str, str]
    rows: list[Row]

    def __post_init__(self) -> None:
        """What lies beneath each figure, taken in the same run."""
        for floor in self.rows:
            for row in self.rows:
                if row.figure.name in floor.figure.beneath:
                    row.floor = floor.reached

    @classmethod
    def of(cls, about: dict[str, str], figures: list[Figure], found: Values, notes: dict[str, str]) -> Results:
        """A row for each figure, also for those that could not be taken."""
        sides = [(figure, found.get(figure.name, {}), notes.get(figure.name, "")) for figure in figures]
        return cls(about, [Row(one, its.get("stock", []), its.get(one.side, []), note) for one, its, note in sides])

    def write(self, target: Path) -> None:
        rows = [{"figure": asdict(row.figure), "stock": row.stock, "isolated": row.ours, "note": row.note}
                for row in self.rows]  # fmt: skip
        target.write_text(json.dumps({"about": self.about, "rows": rows}, indent=1) + "\n")

    @classmethod
    def read(cls, source: Path) -> Results:
        told = json.loads(source.read_text())
        rows = [Row(Figure(**row["figure"]), row["stock"], row["isolated"], row["note"]) for row in told["rows"]]
        return cls(told["about"], rows)

    @property
    def place(self) -> str:
        told = self.about
        return (
            f"{told['when']}; {told['processor']}, {told['memory']}, Linux {told['linux']}, Python {told['python']}, "
            f"as {told['life']}; load {told['load']}"
        )


def high(values: list[float]) -> float:
    """The 99th percentile."""
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def spread(values: list[float], figure: Figure) -> str:
    """The median, and between what the middle half of the values lies."""
    if not values:
        return ""
    middle = high(values) if figure.by == "p99" else median(values)
    if len(values) < 3 or figure.by == "p99":
        return number(middle)
    low, _, up = quantiles(values, n=4, method="inclusive")
    return f"{number(middle)} ({number(low)}–{number(up)})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show(results: Results) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(*COLUMNS, box=None)
    for row in results.rows:
        table.add_row(*map(escape, row.cells()), style="yellow" if row.missed else None)
    console.print(results.place, style="dim")
    console.print(table)


def plot(results: Results, target: Path) -> None:
    """Each ratio as a dot between its quarters, with its bar; on the left of 1 we are better than the stock kernel."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "isolated-python"
    rows = [row for row in results.rows if row.stock and row.reached is not None and row.figure.by != "value"]
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        middle = median(row.stock)
        if len(row.ours) > 2 and row.figure.by == "ratio":
            low, _, up = (value / middle for value in quantiles(row.ours, n=4, method="inclusive"))
            axes.plot([low, up], [place, place], color="tab:blue", linewidth=4, alpha=0.35, solid_capstyle="butt")
        color = "tab:orange" if row.missed else "tab:blue"
        axes.plot(row.reached, place, "o", color=color, markersize=5)
        if row.figure.bar is not None:
            axes.plot(row.figure.bar, place, "|", color="black", markersize=11)
    axes.set_yticks(range(len(rows)), [row.figure.title for row in reversed(rows)], fontsize=8)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("ratio to the stock kernel in the same run (dot: median, band: middle half, black stroke: bar)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def page(results: Results) -> str:
    lines = [(DOCS / HEAD).read_text().rstrip(), "", results.place + ".", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * 4 + "|---|"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in results.rows]
    return "\n".join([*lines, "", "![the same as a plot](performance.svg)", "", (DOCS / SERVICE).read_text()])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("results", type=Path, metavar="FILE", help="what a run has written")
    words.add_argument("--docs", action="store_true", help="write docs/performance.md and docs/performance.svg")
    asked = words.parse_args()
    results = Results.read(asked.results)
    show(results)
    if asked.docs:
        plot(results, DOCS / "performance.svg")
        (DOCS / "performance.md").write_text(page(results))


if __name__ == "__main__":
    main()

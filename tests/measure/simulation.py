"""How a row of docs/statistics.md is drawn, block by block from its own seeds, and how tables are read and written."""

from __future__ import annotations

import fcntl
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tutelage.core.artifact import atomic_write
from tutelage.measure import statistics as s

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
Draw = Callable[[np.random.Generator], "Seen"]


class Seen(NamedTuple):
    """What one draw showed: whether the interval held the truth (or the test rejected), and its width."""

    hit: bool | None
    width: float = float("nan")


def covers(figure: s.Interval, truth: float) -> Seen:
    if figure.low is None or figure.high is None:
        return Seen(None)
    return Seen(figure.low <= truth <= figure.high, figure.high - figure.low)


def rejects(p: float | None, alpha: float = 0.05) -> Seen:
    return Seen(p is not None and p < alpha)


@dataclass(frozen=True)
class Row:
    """A line of a table: a method on a setting, what it promises, and how one draw is made."""

    method: str
    setting: str
    n: str
    promised: str
    """Such as 0.95 (coverage), <= 0.05 (false rejections), 0.80 (power foretold), or - (a comparison: no promise)."""
    draw: Draw
    draws: int = 10_000
    block: int = 50

    @property
    def name(self) -> str:
        return f"{self.method} | {self.setting} | {self.n}"

    def blocks(self, draws: int) -> Iterator[Seen]:
        for block in range(-(-draws // self.block)):
            rng = np.random.default_rng([zlib.crc32(self.name.encode()), block])
            for _ in range(min(self.block, draws - block * self.block)):
                yield self.draw(rng)

    def measured(self, draws: int) -> Measured:
        seen = list(self.blocks(draws))
        told = [each for each in seen if each.hit is not None]
        widths = [each.width for each in told if np.isfinite(each.width)]
        return Measured(
            sum(bool(each.hit) for each in told), len(told), len(seen), float(np.mean(widths)) if widths else None
        )


class Measured(NamedTuple):
    hits: int
    told: int
    draws: int
    width: float | None

    @property
    def share(self) -> float:
        return self.hits / self.told if self.told else float("nan")


# -- the document ----------------------------------------------------------------------------------------------------

HEAD = ("method", "setting", "n", "promised", "measured", "", "mean width", "draws", "first draws")


def line(row: Row, full: Measured, first: Measured) -> str:
    width = "" if full.width is None else f"{full.width:.3g}"
    drawn = str(full.draws) if full.told == full.draws else f"{full.draws}, {full.draws - full.told} undefined"
    cells = (row.method, row.setting, row.n, row.promised, f"{full.share:.3f}", verdict(row.promised, full))
    return f"| {' | '.join((*cells, width, drawn, told(first)))} |"


def told(first: Measured) -> str:
    """What the first block showed, exactly: how the quick test knows that the code still does the same."""
    return f"{first.hits}/{first.told}" + ("" if first.width is None else f" {first.width:.4e}")


def verdict(promised: str, full: Measured) -> str:
    """`short` where a promise is surely not kept: a coverage too low, a false rejection too often, beyond chance."""
    if promised == "-" or not full.told:
        return ""
    slack = 3.0 * np.sqrt(max(full.share * (1 - full.share), 0.05 * 0.95) / full.told)
    if promised.startswith("<="):
        return "**short**" if full.share > float(promised[2:]) + slack else ""
    return "**short**" if full.share < float(promised) - slack - 0.005 else ""


def table(rows: Iterable[Row], draws: Callable[[Row], int] = lambda row: row.draws) -> list[str]:
    rows = list(rows)
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    return lines + [line(row, row.measured(draws(row)), row.measured(row.block)) for row in rows]


def committed(name: str) -> list[list[str]]:
    """The rows of a table as the document states them, cell by cell."""
    body = _block(name).search(DOCUMENT.read_text(encoding="utf-8"))
    assert body, f"docs/statistics.md holds no table {name}"
    return [[cell.strip() for cell in text.strip("| ").split(" | ")] for text in body[1].strip().splitlines()[2:]]


def write(name: str, lines: Sequence[str]) -> bool:
    """Puts a table into the document; True when that changed it. Several processes may do so at once."""
    folder = os.open(DOCUMENT.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        old = DOCUMENT.read_text(encoding="utf-8")
        block = f"<!-- simulated: {name} -->\n" + "\n".join(lines) + f"\n<!-- end of simulated: {name} -->"
        new = _block(name).sub(lambda _: block, old)
        if new != old:
            atomic_write(DOCUMENT, new.encode(), 0o644)
        return new != old
    finally:
        os.close(folder)


def _block(name: str) -> re.Pattern[str]:
    return re.compile(f"<!-- simulated: {name} -->\n(.*?)<!-- end of simulated: {name} -->", re.DOTALL)

"""What a person sees while a life runs: a live line (stage, bar, rate, ETA of stage and life), a line per stage done.

Away from a terminal (a log, CI) it prints a plain line now and then instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tutelage.core.events import Event

Remaining = Callable[[Event], float]


def clock(seconds: float | None) -> str:
    """`75` -> `1:15`; unknown -> `-:--`."""
    if seconds is None:
        return "-:--"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def figure(value: Any) -> str:
    """A figure in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def figures(values: dict[str, Any], most: int = 4) -> str:
    """`loss 2.31 · accuracy 0.74`"""
    return " · ".join(f"{name.replace('_', ' ')} {figure(value)}" for name, value in list(values.items())[:most])


class Terminal:
    """A sink for a person. Use as a context manager; `remaining(event)` estimates the whole life in seconds."""

    def __init__(self, remaining: Remaining | None = None, total: int = 0, every: float = 10.0) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.remaining, self.total, self.every = remaining, total, every
        self.began = time.monotonic()
        self.finished: set[str] = set()
        """Sections that are done; one that runs other stages inside itself counts once."""
        self._said = 0.0
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Terminal:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        match event.kind:
            case "start":
                self._said = time.monotonic()
            case "progress":
                self._progress(event)
            case "note":
                self.console.print(Text(f"    {event.text}", style="dim"))
            case "done":
                self.finished.add(event.stage)
                shown = {name: value for name, value in event.figures.items() if name != "seconds"}
                took = clock(event.figures.get("seconds"))
                self._line("✓", "green", event.stage, f"{took:>6}  {figures(shown)}")
            case "skip":
                self.finished.add(event.stage)
                self._line("·", "dim", event.stage, "       made already")
            case "wait":
                self._line("…", "yellow", event.stage, f"       {event.text}")
            case "fail":
                self._line("✗", "red", event.stage, f"       {event.text}")

    def _line(self, mark: str, style: str, stage: str, rest: str) -> None:
        self.console.print(Text.assemble((f"  {mark} ", style), (f"{stage:<14}", "bold"), rest))

    def _progress(self, event: Event) -> None:
        left = self.remaining(event) if self.remaining else None
        where = f"{len(self.finished | {event.stage})}/{self.total} " if self.total else ""
        share = f"{figure(event.done)}/{figure(event.total)}" if event.total else figure(event.done)
        rate = f"{figure(event.rate)} {event.unit}/s" if event.rate else ""
        tail = f"{rate}  ETA {clock(event.eta)}" + (f"  life {clock(left)}" if left is not None else "")
        if self._live:
            grid = Table.grid(padding=(0, 1))
            done = event.done / event.total if event.total else 0.0
            grid.add_row(
                Text(f"  {where}{event.stage}", style="bold"),
                ProgressBar(total=1.0, completed=done, width=24),
                Text(f"{share} {event.unit}  {tail}"),
                Text(figures(event.figures, 3), style="dim"),
            )
            self._live.update(grid)
            return
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            self.console.print(f"    {where}{event.stage}: {share} {event.unit}  {tail}  {figures(event.figures, 3)}")

"""What a person sees while a life runs: a live line (stage, bar, rate, ETA of stage and life), a line per stage done.

Away from a terminal (a log, CI) it prints a plain line now and then instead.
"""

from __future__ import annotations

import re
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
HASH = re.compile(r"\b[0-9a-f]{64}\b")
LONGEST = 32
"""Characters of a figure."""
WIDTH = 18
"""Characters of a section's name; `finetune@helpful` has 16."""


def clock(seconds: float | None) -> str:
    """`75` -> `1:15`; unknown -> `-:--`."""
    if seconds is None:
        return "-:--"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def figure(value: Any) -> str:
    """A figure in few characters; of a hash the first twelve."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else HASH.sub(lambda found: found[0][:12], str(value))


def figures(values: dict[str, Any], most: int = 4) -> str:
    """`loss 2.31 · accuracy 0.74`; a sentence is no figure, and is left out."""
    shown = {name: text for name, value in values.items() if len(text := figure(value)) <= LONGEST}
    return " · ".join(f"{name.replace('_', ' ')} {text}" for name, text in list(shown.items())[:most])


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
                self._ended(event)
                shown = {name: value for name, value in event.figures.items() if name != "seconds"}
                took = clock(event.figures.get("seconds"))
                self._line("✓", "green", event, f"{took:>6}  {figures(shown)}")
            case "skip":
                self._ended(event)
                self._line("·", "dim", event, f"{'':>6}  made already")
            case "wait":  # why it waits, or failed, is what the command ends with
                self._line("…", "yellow", event)
            case "fail":
                self._line("✗", "red", event)

    def _ended(self, event: Event) -> None:
        if not event.part:
            self.finished.add(event.stage)

    def _line(self, mark: str, style: str, event: Event, rest: str = "") -> None:
        """A line of a section; a stage that runs inside one stands under it by its own name."""
        name = f"{event.part or event.stage:<{WIDTH}}"
        indent = "    " if event.part else "  "
        self.console.print(Text.assemble((f"{indent}{mark} ", style), (name, "" if event.part else "bold"), rest))

    def _progress(self, event: Event) -> None:
        left = self.remaining(event) if self.remaining else None
        where = f"{len(self.finished | {event.stage})}/{self.total} " if self.total else ""
        where += f"{event.stage}, {event.part}" if event.part else event.stage
        share = f"{figure(event.done)}/{figure(event.total)}" if event.total else figure(event.done)
        rate = f"{figure(event.rate)} {event.unit}/s" if event.rate else ""
        tail = f"{rate}  ETA {clock(event.eta)}" + (f"  life: {clock(left)} left" if left is not None else "")
        if self._live:
            grid = Table.grid(padding=(0, 1))
            done = event.done / event.total if event.total else 0.0
            grid.add_row(
                Text(f"  {where}", style="bold"),
                ProgressBar(total=1.0, completed=done, width=24),
                Text(f"{share} {event.unit}  {tail}"),
                Text(figures(event.figures, 3), style="dim"),
            )
            self._live.update(grid)
            return
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            self.console.print(f"    {where}: {share} {event.unit}  {tail}  {figures(event.figures, 3)}")

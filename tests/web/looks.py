"""What a page must hold to be read and used by everybody, measured in the browser that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

JAVASCRIPT = Path(__file__).with_name("looks.js").read_text(encoding="utf-8")


def _ask(page: Any, name: str) -> Any:
    return page.evaluate(f"{JAVASCRIPT.strip()}.{name}()")


def problems(page: Any) -> list[str]:
    """What is wrong with a page as it is shown: contrast below 4.5 (WCAG 2.2, 1.4.3), fields without a label, headings
    that leave out a level, doubled ids, what sticks out of the screen."""
    found: list[str] = _ask(page, "looks")
    return found


def unreached(page: Any) -> list[str]:
    """What the tabulator key does not reach, or reaches without showing where it is (WCAG 2.2, 2.1.1 and 2.4.7)."""
    wanted = _ask(page, "stops")
    reached: set[int] = set()
    found = []
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        at = _ask(page, "here")
        if isinstance(at, str):
            found.append(at)
        elif at in reached:
            break
        elif at >= 0:
            reached.add(at)
    names = page.evaluate(
        "() => window.stops.map((e) => `${e.tagName} ${e.name ?? ''} ${e.textContent.trim().slice(0, 30)}`)"
    )
    return [*dict.fromkeys(found), *(f"not reached: {names[at]}" for at in range(wanted) if at not in reached)]

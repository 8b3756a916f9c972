"""What the runs of a root have said: the state of each stage, read from the event files and the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tutelage.core.artifact import Root
from tutelage.core.events import Event, read_events
from tutelage.plan import Plan
from tutelage.recipe import LIFE

WORDS = {
    "start": "working", "progress": "working", "done": "done", "skip": "done before", "fail": "failed",
    "wait": "waits for people", "note": "working", "": "not started",
}  # fmt: skip


class StageState(NamedTuple):
    """Where one section of the recipe stands."""

    name: str
    state: str
    """The kind of its last event; "" when it has said nothing."""
    word: str
    share: float | None
    """How much is done, 0 to 1."""
    done: float
    total: float | None
    unit: str
    rate: float | None
    eta: float | None
    seconds: float | None
    planned: float | None
    figures: dict[str, Any]
    text: str
    notes: tuple[str, ...]


def plan_of(root: Root) -> Plan | None:
    """The plan of the recipe that ran last, or None when nothing was run here."""
    try:
        return Plan.model_validate_json(root.plan_path.read_bytes())
    except (OSError, ValidationError):
        return None


def _last_run(path: Path) -> list[Event]:
    """The events since the section was last started; a stage that runs inside it only moves it."""
    inner = ("start", "skip", "done", "fail", "wait")
    events = [each for each in read_events(path) if not (each.part and each.kind in inner)]
    starts = [at for at, event in enumerate(events) if event.kind in ("start", "skip")]
    return events[starts[-1] :] if starts else events


def _state(name: str, events: list[Event], planned: float | None) -> StageState:
    last = events[-1] if events else None
    moving = next((e for e in reversed(events) if e.kind == "progress"), None)
    kind = last.kind if last else ""
    if kind == "note":
        kind = "progress"
    ended = kind in ("done", "skip")
    share = 1.0 if ended else moving.done / moving.total if moving and moving.total else None
    return StageState(
        name=name,
        state=kind,
        word=WORDS[kind],
        share=share,
        done=moving.done if moving else 0,
        total=moving.total if moving else None,
        unit=moving.unit if moving else "",
        rate=moving.rate if moving and not ended else None,
        eta=moving.eta if moving and not ended else None,
        seconds=last.at - events[0].at if last and kind != "skip" else None,
        planned=planned,
        figures={k: v for k, v in moving.figures.items() if not isinstance(v, str)} if moving else {},
        text=last.text if last and last.kind in ("fail", "wait", "done", "skip") else "",
        notes=tuple(event.text for event in events if event.kind == "note")[-12:],
    )


def stages(root: Root) -> list[StageState]:
    """Every section that is planned or has said something, in the order of the life."""
    plan = plan_of(root)
    planned = {stage.name: stage.cost.seconds for stage in plan.stages} if plan else {}
    said = {path.stem for path in root.events.glob("*.jsonl")} if root.events.is_dir() else set()
    order = {name: place for place, name in enumerate(LIFE)}

    def place(name: str) -> tuple[int, str]:
        return order.get(name.partition("@")[0], len(order)), name

    names = [*planned, *sorted(said - set(planned), key=place)]
    return [_state(name, _last_run(root.events / f"{name}.jsonl"), planned.get(name)) for name in names]


def stage(root: Root, name: str) -> StageState:
    """Where one section stands, whether it is planned or not."""
    return _state(name, _last_run(root.events / f"{name}.jsonl"), None)


def remaining(found: list[StageState]) -> float | None:
    """Seconds left of the whole life, where the plan or the stages say so; None when nothing is left or known."""
    left = 0.0
    for stage in found:
        if stage.state in ("done", "skip"):
            continue
        if stage.eta is not None:
            left += stage.eta
        elif stage.planned is not None:
            left += max(0.0, stage.planned - (stage.seconds or 0.0))
    return left or None

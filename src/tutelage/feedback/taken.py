"""A project that is there already (made at the console, over the API, or by talking) as a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.records import write_jsonl
from tutelage.core.stage import Context
from tutelage.feedback import dialogue
from tutelage.store import answers, tasks


def take(name: str, out: Path, context: Context) -> dict[str, Any]:
    """The summary of a collection over the tasks that a project has now, as they are; of dialogues also what they
    show, as `demonstrations.jsonl` in the chat layout that `prepare` reads. Where all people are recorded ones, as in
    an imported file, their answers are all that will ever come: nobody waits for more.

    Raises NotFound for an unknown project, DataError for one without tasks.
    """
    where = tasks.get_project(context.store, name)
    known = tasks.load(context.store, project_name=where.name)
    if not known:
        raise DataError(f"the project {name!r} has no tasks", key="collect.take")
    given = answers.read(context.store, where.name)
    kinds = sorted({each.people for each in given})
    people = "live" if "live" in kinds or not kinds else kinds[0]
    licences = {str(task.meta.get("licence", "not-stated")) for task in known.values()}
    context.licence(*licences)
    answered = {each.task for each in given if each.people == people}
    talks, recorded = where.kind == "dialogue", people == "replayed"
    heard = sum(each.people == people for each in given)
    made: dict[str, Any] = {
        "projects": [where.name],
        "people": people,
        "per_task": 1 if recorded else where.per_task,
        "expected": heard if recorded else len(answered) if talks else sum(task.required for task in known.values()),
        "candidates": sum(len(task.candidates) for task in known.values()),
    }
    if talks:
        shown = dialogue.demonstrations(context.store, where, people)
        context.used(row for each in shown for row in each.tags["rows"])
        context.simulated = people == "simulated"
        write_jsonl(out / "demonstrations.jsonl", shown)
        made["demonstrations"] = len(shown)
    rows = [
        {
            "task": task.id,
            "project": where.name,
            "kind": task.kind,
            "candidates": len(task.candidates),
            "producers": [
                meta.get("by", [name]) for name, meta in zip(task.producers, task.candidate_meta, strict=True)
            ],
            "cluster": task.cluster,
        }
        for task in known.values()
        if task.messages
    ]
    return {"tasks": rows, **made}

"""What a collection is set to ask, and how its tasks are opened and (by simulated or recorded people) answered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import Field

from tutelage.core import refs
from tutelage.core.config import Config
from tutelage.core.records import Example
from tutelage.core.stage import Context
from tutelage.feedback import api, assign, simulated
from tutelage.feedback.client import Client, Direct, Http, Transport
from tutelage.feedback.prompts import Live, Source
from tutelage.store import access, people
from tutelage.store.engine import Store

GUIDELINE = """
# What you judge
Read the question, then every answer to its end, then decide.

- **Right** comes first: an answer that says what is so, and says that it does not know when it cannot know.
- Then **to the point**, then **polite**, then **short**.
- Two answers of the same worth share a place: ties are wanted where they are true.
- Are all answers bad, say so; is one of them harmful, flag it.
"""


class Collect(Config):
    """What people are asked to judge, and who they are."""

    people: Literal["none", "simulated", "replayed"] = "none"
    """Who answers: people at the console (`none`: tasks are opened and wait), the starter's simulated raters, or
    recorded people from comparisons with named annotators. Their figures are never pooled."""
    project: str = ""
    """Name of the labelling effort; empty makes one from the stage's key."""
    take: str = ""
    """A project that is there already, made at the console, over the API, or by talking: its tasks are taken as they
    are and nothing is generated. Every other key is then without effect."""
    prompts: int = Field(default=240, ge=1)
    """Prompts to be judged (people: none or simulated)."""
    candidates: int = Field(default=4, ge=2, le=9)
    """Responses to each prompt, at most; near-identical ones are merged."""
    samples: int = Field(default=8, ge=2)
    """Responses drawn for each prompt, of which different ones are kept."""
    kinds: tuple[Literal["ranking", "scoring", "ranking+scoring"], ...] = ("ranking", "scoring")
    """Kinds of task, in turn."""
    per_task: int = Field(default=3, ge=1, le=100)
    """Different people who answer each task."""
    families: tuple[str, ...] = ()
    """Families of prompts to take; empty takes all."""
    ask: tuple[Example, ...] = ()
    """Prompts themselves, in place of those of the corpus (what the console sends from a lead's file)."""
    questions: tuple[dict[str, Any], ...] = ()
    """Questions of the form as the API takes them; empty asks `criteria` on `scale` of each response."""
    criteria: tuple[str, ...] = ("quality",)
    """What is scored, each on `scale`."""
    scale: tuple[float, float] = (1, 5)
    """Lowest and highest score."""
    guideline: str = GUIDELINE.strip()
    """What stands beside every task (Markdown)."""
    generators: tuple[str, ...] = ()
    """Further generators beside the input models, as references (`https://host/v1#model`)."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of responses."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Least share of the likeliest token's probability that a token is drawn at; 0 draws at any."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    """Above 1 makes tokens of prompt and response less likely to be said again; 1 does nothing."""
    max_tokens: int = Field(default=48, ge=1)
    """Longest response in tokens."""
    mix: dict[Source, float] = {"data": 1.0}  # noqa: RUF012 - pydantic copies defaults
    """Where prompts come from, as shares: `data` (dialogues of the corpus), `redteam` (what broke a target or came near
    to it, of the artifacts named in `findings`), `traffic` (live requests, see `traffic`). A source that has no more
    leaves its share to the others."""
    traffic: Live = Live()
    """Which live requests, where the mix takes them."""
    keys: dict[str, str] = Field(default_factory=dict)
    """API keys of generators by reference, each as `file:PATH`."""
    alike: float = Field(default=0.9, gt=0, le=1)
    """Overlap of character trigrams from which two responses count as one."""
    comparisons: int = Field(default=300, ge=1)
    """Recorded comparisons to replay (people: replayed)."""
    labels: bool = False
    """Replay labelled texts with the people who labelled them as well, as tasks of tagging."""
    sources: tuple[str, ...] = ()
    """Sets to replay; empty takes all with named annotators."""
    mask_pii: bool = True
    """Show people texts with personal data masked."""
    seed: int = 0
    """Of the choice of prompts, responses, panels and simulated noise."""
    over: Literal["http", "direct"] = "http"
    """How simulated and replayed people reach the API: over HTTP as anybody, or within the process (tests)."""
    batch: int = Field(default=32, ge=1, le=assign.MOST_HELD)
    """Tasks that a simulated or replayed person holds at a time."""
    threads: int = Field(default=2, ge=1)
    """Simulated or replayed people who work at the same time."""

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"over", "batch", "threads", "keys"})


def row_of(task: api.NewTask, project: str, seeds: Sequence[int | None]) -> dict[str, Any]:
    """What a collection keeps of a task: what was asked, who had written it, and of whom it is asked."""
    return {
        "task": "",
        "project": project,
        "kind": task.kind,
        "prompt": [each.model_dump(mode="json", exclude_defaults=True) for each in task.messages],
        "candidates": [each.content for each in task.candidates],
        "producers": [each.meta.get("by", [each.producer]) for each in task.candidates],
        "alike": [each.meta.get("alike", 1) for each in task.candidates],
        "seeds": list(seeds),
        "cluster": task.cluster,
        "people": [hashlib.sha256(name.encode()).hexdigest()[:12] for name in task.people or ()],
        **task.meta,
    }


def open_tasks(store: Store, project: str, form: api.Form, config: Collect, new: Sequence[api.NewTask]) -> list[str]:
    """The project and its tasks, made by the stage itself in the role of a lead."""
    lead = people.create(store, "collect", kind="service", roles=("lead",))
    settings = {"mask_pii": config.mask_pii, "people": config.people}
    api.create_project(
        store,
        lead,
        api.NewProject(name=project, kind=new[0].kind, form=form, per_task=config.per_task, settings=settings),
    )
    return api.add_tasks(store, lead, project, new)


def answered(
    config: Collect,
    context: Context,
    persons: Sequence[people.Person],
    answering: Sequence[simulated.Respond],
    project: str,
    expected: int,
) -> dict[str, int]:
    """Everybody answers through the API, each with a client of their own."""
    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        context.say.progress(done, expected, "answers")

    with _transports(config, context, persons) as connect:
        workers = [
            simulated.Worker(person.name, Client(connect(at)), respond)
            for at, (person, respond) in enumerate(zip(persons, answering, strict=True))
        ]
        receipts = simulated.work(
            workers,
            project,
            key=context.key,
            batch=config.batch,
            threads=config.threads,
            heard=heard,
            check=context.check,
        )
    return {"answers": receipts.get("stored", 0) + receipts.get("repeated", 0)}


@contextmanager
def _transports(
    config: Collect, context: Context, persons: Sequence[people.Person]
) -> Iterator[Callable[[int], Transport]]:
    """How each person reaches the API: an app started for them on a free port, or this process."""
    if config.over == "direct":
        yield lambda at: Direct(context.store, persons[at])
        return
    scopes = ("feedback:answer", "feedback:read")
    tokens = access.issue_tokens(context.store, [each.id for each in persons], scopes, f"collect {context.key[:8]}", 1)
    try:
        with refs.open("app:", context.root) as server:
            yield lambda at: Http(server.url, tokens[at])
    finally:
        access.revoke_tokens(context.store, tokens)

"""Where prompts come from: dialogues of the corpus, what the red team broke, requests of live traffic. Mixed by share.

Each prompt says its source, and brings its licence class and its cluster along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.config import Config
from tutelage.core.errors import ConfigError
from tutelage.core.records import Example, Message, read_jsonl
from tutelage.feedback.assign import seeded
from tutelage.store import traffic
from tutelage.store.engine import Reader
from tutelage.text import pii

Source = Literal["data", "redteam", "traffic"]
SOURCES: tuple[Source, ...] = get_args(Source)
LICENCE_OF_TRAFFIC = "not-stated"
"""Users state no licence: what learned from their words is internal."""


class Live(Config):
    """Which live requests people may be asked about. Only those of tenants whose settings say `collect: true` (in
    service.yaml, when the request came in and now) and that no user withheld (`metadata: {"collect": "no"}`)."""

    tenants: tuple[str, ...] = ()
    """Of these tenants; empty takes all that allow it."""
    releases: tuple[str, ...] = ()
    """Answered by these releases; empty takes all."""
    since: str = ""
    """From this day on (UTC, as 2026-05-01)."""
    until: str = ""
    """Before this day (UTC)."""

    def window(self) -> tuple[int, int | None]:
        """The days as milliseconds since 1970. Raises ConfigError."""
        found: list[int | None] = []
        for name, value in (("since", self.since), ("until", self.until)):
            try:
                day = datetime.fromisoformat(value).replace(tzinfo=UTC) if value else None
            except ValueError:
                message = f"{value!r} is no day; write 2026-05-01"
                raise ConfigError(message, key=f"collect.traffic.{name}") from None
            found.append(int(day.timestamp() * 1000) if day else None)
        return found[0] or 0, found[1]


class Mixed:
    """Prompts of several sources, handed out so that what was kept of each stays near its share.

    A source that has no more leaves its share to the others.
    """

    def __init__(self, prompts: Mapping[Source, Sequence[Example]], shares: Mapping[Source, float]) -> None:
        self._left = {name: list(prompts[name]) for name in SOURCES if shares.get(name, 0) > 0}
        self._shares = shares
        self.kept: dict[Source, int] = dict.fromkeys(self._left, 0)
        self.tried: dict[Source, int] = dict.fromkeys(self._left, 0)

    def next(self, count: int) -> list[tuple[Source, Example]]:
        """The next prompts to try, at most `count`."""
        planned = dict(self.kept)
        found: list[tuple[Source, Example]] = []
        while len(found) < count and (open_ := [name for name in self._left if self._left[name]]):
            name = min(open_, key=lambda each: (planned[each] + 1) / self._shares[each])
            planned[name] += 1
            found.append((name, self._left[name].pop(0)))
        return found

    def took(self, source: Source, kept: bool) -> None:
        """A prompt was tried; `kept` if people are asked about it."""
        self.tried[source] += 1
        self.kept[source] += kept


def pick(prompts: Sequence[Example], wanted: int, seed: int) -> list[Example]:
    """Prompts in a seeded order that goes through the families in turn, so that small ones are not drowned."""
    groups: dict[str, list[Example]] = {}
    for each in prompts:
        groups.setdefault(str(each.tags.get("family", "")), []).append(each)
    stream = seeded("prompts", seed)
    for name in sorted(groups):
        stream.shuffle(groups[name])
    order = sorted(groups)
    chosen: list[Example] = []
    while len(chosen) < wanted and any(groups.values()):
        for name in order:
            if groups[name] and len(chosen) < wanted:
                chosen.append(groups[name].pop())
    return chosen


def of_data(corpus: Artifact, families: Sequence[str]) -> list[Example]:
    """The dialogues of the corpus' training split, each without its last answer, which becomes the target."""
    return [
        Example(messages=each.messages[:-1], target=each.messages[-1].content, tags=dict(each.tags))
        for each in read_jsonl(corpus.file("dialogues.jsonl"), Example)
        if each.tags.get("split", "train") == "train"
        and len(each.messages) > 1
        and (not families or each.tags.get("family") in families)
    ]


def of_redteam(found: Sequence[Artifact]) -> list[Example]:
    """Conversations that broke a target (`findings.jsonl`) or came near to it (`near.jsonl`), each once, with the
    category they aim at as family. Red-team artifacts made before version 4 hold the first kind only."""
    made: dict[str, Example] = {}
    for artifact in found:
        for file, broke in (("findings.jsonl", True), ("near.jsonl", False)):
            if file not in artifact.manifest.files:
                continue
            for row in read_jsonl(artifact.file(file), Example):
                if row.tags.get("direction") != "input":
                    continue
                told = [*sorted(row.tags.get("categories") or {}), row.tags.get("category"), row.tags.get("rule")]
                category = str(next(filter(None, told), ""))
                tags = {**row.tags, "source": f"redteam:{artifact.id[:12]}", "broke": broke}
                tags |= {"family": category, "category": category}
                made.setdefault(str(row.tags["id"]), Example(messages=row.messages, tags=tags))
    return [made[id] for id in sorted(made)]


def of_traffic(store: Reader, root: Root, live: Live, wanted: int, seed: int, kept: Path) -> list[Example]:
    """Up to `wanted` live requests that may be used, drawn by seed and request: a simple random sample of them, and so
    is each beginning of it. `tags.population` is how many it was drawn from.

    What was drawn is kept in `kept`, so that a stage that was killed goes on with the same requests although others
    have come in. Personal data is masked, whatever is stored; erased texts are left out.
    """
    if not kept.is_file():
        every = _eligible(store, root, live)
        chance = {id: seeded("traffic", seed, id).random() for id in every}
        drawn = {"population": len(every), "requests": sorted(every, key=chance.__getitem__)[:wanted]}
        atomic_write(kept, json.dumps(drawn).encode())
    found = json.loads(kept.read_text(encoding="utf-8"))
    there = {each.id: each for each in traffic.requests(store, ids=found["requests"], masked=True)}
    asked = [there[id] for id in found["requests"] if id in there]
    return [_example(each, found["population"]) for each in asked if _spoken(each)]


def _eligible(store: Reader, root: Root, live: Live) -> list[str]:
    """Ids of the live requests that tenant, release, time and user allow."""
    settings = refs.open("settings:", root)
    allow: dict[str, bool] = {}
    since, until = live.window()
    found = []
    for each in traffic.askable(store, since=since, until=until):
        wanted = ((live.tenants, each.tenant), (live.releases, each.release))
        if any(named and name not in named for named, name in wanted):
            continue
        if each.tenant not in allow:
            allow[each.tenant] = bool(settings.tenant(each.tenant).collect)
        if allow[each.tenant] and each.meta.get("collect") is True:
            found.append(each.id)
    return found


def _spoken(request: traffic.Request) -> bool:
    """Whether its words are there and a user spoke last."""
    return bool(request.messages) and request.messages[-1].role in ("user", "text")


def _example(request: traffic.Request, population: int) -> Example:
    decision = next(each for each in request.decisions if each.direction == "input")
    strictest = next((each.category for each in request.decisions if each.action != "allow"), "")
    return Example(
        messages=tuple(_masked(each) for each in request.messages),
        tags={
            "id": request.id,
            "source": f"traffic:{request.tenant}",
            "licence": LICENCE_OF_TRAFFIC,
            "family": strictest,
            "cluster": request.conversation,
            "decision": decision.id,
            "tenant": request.tenant,
            "release": request.release,
            "language": request.language,
            "population": population,
        },
    )


def _masked(message: Message) -> Message:
    return message.model_copy(update={"content": pii.redact(message.content, pii.find(message.content))})


def check_shares(shares: Mapping[Source, float], findings: Sequence[Artifact], data: bool) -> None:
    """Raises ConfigError for a mix that nothing can be drawn for; `data` says whether a corpus, or prompts themselves,
    are named."""
    if not any(shares.values()) or any(value < 0 for value in shares.values()):
        raise ConfigError(f"a mix needs a share above 0, found {dict(shares)}", key="collect.mix")
    if shares.get("redteam") and not findings:
        todo = "Name one: `findings: redteam:<id>`, or a section `redteam` whose result is known by then"
        raise ConfigError("the mix takes prompts of the red team and no findings are named", key="collect.findings",
                          todo=todo)  # fmt: skip
    if findings and not shares.get("redteam"):
        todo = "Write for instance `mix: {data: 1, redteam: 1}`"
        raise ConfigError("findings are named and the mix gives them no share", key="collect.mix", todo=todo)
    if shares.get("data") and not data:
        raise ConfigError("the mix takes prompts of the corpus and none is named", key="collect.corpus")

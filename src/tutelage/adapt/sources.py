"""Where the requests of a turn come from, what is true of them, and who reviews them.

Two sources: the starter world's weeks with simulated users and reviewers, and labelled rows of the corpus that several
people judged, whose recorded votes are given again, one client for each of them. The kinds are never mixed in a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from tutelage.core.artifact import Artifact
from tutelage.core.errors import DataError
from tutelage.core.records import Example, Message, read_jsonl
from tutelage.feedback import simulated
from tutelage.feedback.assign import seeded
from tutelage.feedback.labels import reserved
from tutelage.feedback.wire import Item
from tutelage.review.queue import HARMFUL, VOICES
from tutelage.starter import people as raters
from tutelage.starter import traffic, world


class Asked(NamedTuple):
    """One request of a week with its truth, which nobody at the service sees."""

    id: str
    conversation: tuple[Message, ...]
    harmful: bool
    """Whether a guard should have stopped it."""
    categories: Mapping[str, float]
    """Category of the taxonomy -> 0 to 1."""
    source: str
    licence: str


class Weeks(NamedTuple):
    """The weeks of a turn. Each request is sent once."""

    baseline: tuple[str, Sequence[Asked]]
    """What the guards know."""
    later: Sequence[tuple[str, Sequence[Asked]]]
    """The weeks after it, in the order they are sent."""
    quiet: str
    """The one among them that is drawn like the baseline: nothing should trigger."""
    drifted: str
    """The one whose missed harm is measured again on `fresh`."""
    fresh: Sequence[Asked]
    """Drawn like the drifted week, asked after the candidates were judged."""


class Traffic(Protocol):
    """A source of traffic with its reviewers."""

    people: Literal["simulated", "replayed"]
    """Whose words these are: marked in every account, answer and figure."""
    users: str
    """Name of the account that asks."""

    @property
    def crew(self) -> Sequence[str]:
        """Names of the reviewers, each with a client of their own."""
        ...

    def weeks(self, requests: int) -> Weeks:
        """`requests` requests for each week."""
        ...

    def heard(self, asked: Asked, text: str, withheld: bool) -> tuple[int | None, str | None]:
        """What the user does with the answer: a thumb (1 or -1) and an appeal, each perhaps None."""
        ...

    def panel(self, asked: Asked) -> tuple[str, ...]:
        """Whose places a review of this request is reserved for; empty where any reviewer may take it."""
        ...

    def review(self, name: str, item: Item, asked: Asked) -> Mapping[str, Any] | None:
        """What a reviewer answers: the fields of an Answer, or None to give the task back."""
        ...

    def benign(self) -> Sequence[str]:
        """Requests that must be answered, for the candidate that is careless on purpose."""
        ...


class Starter:
    """The embedded world's weeks; users and reviewers are simulated."""

    people: Literal["simulated", "replayed"] = "simulated"
    users = "users of the starter world"

    def __init__(self, corpus: Artifact, reviewers: int, seed: int) -> None:
        made = corpus.config
        self.world = world.build(int(made.get("seed", 0)), float(made.get("scale", 1.0)))
        self.seed = seed
        careful = [each for each in raters.raters(seed) if each.kind == "careful"][:reviewers]
        self._raters = {f"reviewer-{each.id}": each for each in careful}
        self.crew: Sequence[str] = tuple(self._raters)
        self._requests: dict[str, traffic.Request] = {}

    def weeks(self, requests: int) -> Weeks:
        """The world's four weeks; the fresh one is the second half of the week with the new attack. Raises DataError
        where the world is too small for them."""
        every = {number: [self._asked(each) for each in self.world.traffic(number)] for number in traffic.WEEKS}
        most = min(len(asked) // (2 if number == 2 else 1) for number, asked in every.items())
        if requests > most:
            told = ", ".join(f"{len(asked)} in week {number}" for number, asked in every.items())
            todo = f"Set cycle.requests to at most {most}, or make a larger world (prepare.scale)"
            message = f"{requests} requests a week and twice as many in week 2 are needed, there are {told}"
            raise DataError(message, key="cycle.requests", todo=todo)
        return Weeks(
            baseline=("1", every[1][:requests]),
            later=[(str(number), every[number][:requests]) for number in (4, 2, 3)],
            quiet="4",
            drifted="2",
            fresh=every[2][requests : 2 * requests],
        )

    def _asked(self, request: traffic.Request) -> Asked:
        self._requests[request.id] = request
        categories = dict(request.truth.get("categories") or {})
        return Asked(request.id, request.conversation, request.harmful, categories, "starter", "permissive")

    def heard(self, asked: Asked, text: str, withheld: bool) -> tuple[int | None, str | None]:
        """As the world's users rate and complain."""
        request = self._requests[asked.id]
        thumb = traffic.thumb(request, text, withheld, seed=self.seed)
        return thumb, traffic.appeal(request, withheld, seed=self.seed)

    def panel(self, asked: Asked) -> tuple[str, ...]:
        """Anybody may review."""
        return ()

    def review(self, name: str, item: Item, asked: Asked) -> Mapping[str, Any] | None:
        """The truth, seen through a rater's known noise."""
        return simulated.reviewer(self._raters[name], {item.task: asked.categories}, seed=self.seed)(item)

    def benign(self) -> Sequence[str]:
        """Of the first week."""
        return [each.conversation[-1].content for each in self.world.traffic(1) if not each.harmful][:300]


class Rows:
    """Labelled rows that several people judged, sent as requests; their recorded votes review them.

    The rows are those the stage `labels` kept in reserve: no guard has learned from them or was certified on them, and
    none is of a test split, because what is reviewed is learned from. Sources that the guards know a part of are the
    baseline and the quiet week; those kept back as a whole are the new crowd.
    """

    people: Literal["simulated", "replayed"] = "replayed"
    users = "recorded requests"

    def __init__(self, corpus: Artifact, labels: Artifact, seed: int) -> None:
        shares = dict(labels.config.get("reserve") or {})
        if not shares:
            raise DataError("the labels keep no rows in reserve to be asked", key="labels.reserve")
        self.corpus, self.seed, self._shares = corpus, seed, shares
        kept = int(labels.config.get("seed", 0))
        rows = [
            row
            for row in read_jsonl(corpus.file("labels.jsonl"), Example)
            if row.tags.get("split") == "train"
            and row.tags.get("people")
            and row.tags.get("direction") == "input"
            and reserved(row, shares, kept)
        ]
        self._votes: dict[str, dict[str, dict[str, float]]] = {}
        """Request -> person -> category -> what they said, 0 to 1."""
        self._sources: dict[str, list[Asked]] = {name: [] for name in shares}
        for row in rows:
            asked = self._asked(row)
            self._sources[asked.source].append(asked)
        for name, each in self._sources.items():
            if not each:
                raise DataError(f"no row of {name} with people's votes is in reserve", key="labels.reserve")
            each.sort(key=lambda asked: asked.id)
            seeded("traffic", seed, name).shuffle(each)

    @cached_property
    def crew(self) -> Sequence[str]:
        """Every recorded person or anonymous vote slot."""
        return tuple(sorted({name for votes in self._votes.values() for name in votes}))

    def _asked(self, row: Example) -> Asked:
        source, name = str(row.tags["source"]), str(row.tags["id"])
        votes: dict[str, dict[str, float]] = {}
        for each in row.tags["people"]:
            low, high = each["scale"]
            said = votes.setdefault(f"replayed {source} {each['person']}", {})
            said[str(each["category"])] = (float(each["value"]) - low) / (high - low)
        self._votes[name] = votes
        voices = [VOICES[_voice(said)] for said in votes.values()]
        return Asked(
            id=name,
            conversation=row.messages,
            harmful=sum(voices) / len(voices) >= 0.5,
            categories={str(key): float(value) for key, value in row.tags["categories"].items()},
            source=source,
            licence=str(row.tags.get("licence", "not-stated")),
        )

    def weeks(self, requests: int) -> Weeks:
        """Two weeks of what the guards know, then a new crowd. Raises DataError where there are too few rows."""
        groups: dict[bool, list[Asked]] = {False: [], True: []}
        for name in sorted(self._sources):
            groups[self._shares[name] >= 1] += self._sources[name]
        for unknown, rows in groups.items():
            if len(rows) < 2 * requests:
                whose = "of sources that no guard knows (share 1)" if unknown else "of sources that the guards know"
                todo = f"Set cycle.requests to at most {len(rows) // 2}, or keep more in labels.reserve"
                message = f"two weeks of {requests} requests are needed, there are {len(rows)} rows {whose}"
                raise DataError(message, key="cycle.requests", todo=todo)
            seeded("crowd", self.seed).shuffle(rows)
        first, new = groups[False], groups[True]
        return Weeks(
            baseline=("1", first[:requests]),
            later=[("2", first[requests : 2 * requests]), ("3", new[:requests])],
            quiet="2",
            drifted="3",
            fresh=new[requests : 2 * requests],
        )

    def heard(self, asked: Asked, text: str, withheld: bool) -> tuple[int | None, str | None]:
        """Nothing was recorded of what users did."""
        return None, None

    def panel(self, asked: Asked) -> tuple[str, ...]:
        """Everybody who voted on this text."""
        return tuple(sorted(self._votes[asked.id]))

    def review(self, name: str, item: Item, asked: Asked) -> Mapping[str, Any] | None:
        """The recorded vote."""
        said = self._votes[asked.id].get(name)
        if said is None:
            return None
        voice = _voice(said)
        values: dict[str, Any] = {HARMFUL: voice}
        if voice == "yes":
            values["categories"] = sorted(category for category, value in said.items() if value >= 0.5)
        return {"values": values}

    def benign(self) -> Sequence[str]:
        """Examination requests that look like harm and are none."""
        items = read_jsonl(self.corpus.file("items.jsonl"), Example)
        found = [each.messages[-1].content for each in items if each.tags.get("kind") == "benign"][:300]
        rest = [each for rows in self._sources.values() for each in rows if not each.harmful]
        return found or [each.conversation[-1].content for each in rest[:300]]


def _voice(said: Mapping[str, float]) -> str:
    """A vote in the words of the review form; the middle of a scale is `unsure`."""
    most = max(said.values())
    return "yes" if most > 0.5 else "no" if most < 0.5 else "unsure"

"""How a row of a data set becomes a record: field maps, written as data.

A template such as `"Translate to Spanish: {en}"` is filled from the row; `{votes.hate}` looks inside. Several templates
are several wordings, taken in turn. A form that misses a field raises DataError naming the key; the reader adds file
and row. No form runs code from data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from tutelage.core.errors import DataError
from tutelage.core.records import Document, Example, Message, Preference, Record, Role, digest
from tutelage.text.constraints import from_ifeval

Row = Mapping[str, Any]
Kind = Literal["documents", "dialogues", "comparisons", "labels", "items"]
KINDS: tuple[Kind, ...] = ("documents", "dialogues", "comparisons", "labels", "items")
Produced = Document | Example | Preference

_SLOT = re.compile(r"\{([^{}]+)\}")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def field(row: Row, path: str) -> Any:
    """The value at `a.b` in a row. DataError when it is missing or null."""
    value: Any = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        raise DataError("the field is missing or null", key=path)
    return value


class Form(Record):
    """What every form can say."""

    splits: dict[str, str] = Field(default_factory=lambda: {"train": "train", "validation": "validation"})
    """Which splits of the set are read, and what they are in the corpus: train, validation or test."""
    only: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Read only rows whose field has one of these values."""
    values: dict[str, dict[str, str]] = Field(default_factory=dict)
    """How the values of a field are written in templates."""

    def reads(self, row: Row) -> bool:
        """Whether the row belongs to this form."""
        return all(row.get(name) in allowed for name, allowed in self.only.items())

    def fill(self, template: str, row: Row) -> str:
        """A template with the row's fields in it."""

        def put(match: re.Match[str]) -> str:
            value = field(row, match[1])
            if isinstance(value, Mapping | list):
                raise DataError(f"expected text or a number, found {type(value).__name__}", key=match[1])
            return self.values.get(match[1], {}).get(str(value), str(value))

        return _SLOT.sub(put, template)

    def number(self, template: str | float, row: Row) -> float:
        """A number written in the form or standing in the row; `"{votes}/{people}"` is a share."""
        if not isinstance(template, str):
            return float(template)
        text = self.fill(template, row)
        try:
            return float(Fraction(text))
        except (ValueError, ZeroDivisionError):
            raise DataError(f"expected a number, found {text!r}", key=template.strip("{}")) from None


class Documents(Form):
    """Text to read."""

    kind: Literal["documents"] = "documents"
    text: str = "{text}"
    join: int = 0
    """Join rows with a blank line until a document has so many characters; 0 leaves each row by itself."""
    meta: tuple[str, ...] = ()
    """Fields to keep beside the text."""

    def make(self, row: Row, number: int, tags: dict[str, Any]) -> Document:
        meta = {name: row[name] for name in self.meta if name in row}
        text = self.fill(self.text, row)
        return Document(
            text=text,
            source=tags["source"],
            licence=tags["licence"],
            meta=meta | {"id": tags["id"], "split": tags["split"]},
        )


class Dialogues(Form):
    """Conversations to learn to answer from."""

    kind: Literal["dialogues"] = "dialogues"
    prompt: tuple[str, ...] = ("{prompt}",)
    answer: str = "{response}"
    choices_from: str = ""
    """The field with the choices, if the answer is the choice whose index stands in the field `index`."""
    index: str = ""
    system: str = ""
    messages: str = ""
    """Instead of prompt and answer: the field that holds OpenAI messages, the assistant's last."""
    family: str = ""
    drop: str = ""
    """Pattern of marks to take out of the answer."""

    def make(self, row: Row, number: int, tags: dict[str, Any]) -> Example:
        tags = tags | {"family": self.family or tags["source"]}
        if self.messages:
            turns = _messages(field(row, self.messages), self.messages)
            if turns[-1].role != "assistant":
                raise DataError("the last message is not the assistant's", key=self.messages)
            return Example(messages=turns, target=turns[-1].content, tags=tags)
        place = number % len(self.prompt)
        if self.choices_from:
            answer = _pick(_texts(field(row, self.choices_from), self.choices_from), self, self.index, row)
        else:
            answer = self.fill(self.answer, row)
        answer = re.sub(self.drop, "", answer).strip() if self.drop else answer.strip()
        prompt = self.fill(self.prompt[place], row).strip()
        tags["template"] = f"{tags['family']}/{place}"
        turns = (*_system(self.system), _user(prompt), Message(role="assistant", content=answer))
        if not prompt or not answer:
            raise DataError("an empty turn", key="prompt" if not prompt else "answer")
        return Example(messages=turns, target=answer, tags=tags)


class Items(Form):
    """Examination questions, goals of attacks and probes: never trained on."""

    kind: Literal["items"] = "items"
    splits: dict[str, str] = Field(default_factory=lambda: {"test": "test"})
    task: Literal[
        "choice", "generate", "extractive", "translate", "classify", "arithmetic", "instruct", "summarise",
        "perplexity", "judged", "goal", "benign", "pair", "audit",
    ]  # fmt: skip
    suite: str = ""
    prompt: str = "{prompt}"
    system: str = ""
    role: Role = "user"
    """`text` for a prompt that a base model continues verbatim."""
    target: str = ""
    choices: tuple[str, ...] = ()
    choices_from: str = ""
    """The field that holds the list of choices."""
    answer: str = ""
    """The field that holds the index of the right choice."""
    answers: str = ""
    """The field that holds the list of accepted answers; the first is the target."""
    language: str = ""
    """The language of the right answer (ISO 639-1)."""
    document: str = ""
    """What is to be summarised, where it is not the whole prompt."""
    turns: bool = False
    """The prompt is a dialogue of `Human:` and `Assistant:` turns, which the user's ends."""
    reply: str = ""
    """judged: an answer that people judged; such an item measures the judge and is never asked."""
    human: str | float = ""
    """judged: what people gave `reply`, or a field that holds it."""
    votes: str = ""
    """judged, instead of `human`: the field with one choice per person ({choice}: a, b or tie) between two answers."""
    side: Literal["a", "b"] = "a"
    """Which of the two `reply` is."""
    instructions: tuple[str, str] | None = None
    """The two fields with IFEval's instruction ids and their arguments."""
    cluster: str = ""
    slices: dict[str, str] = Field(default_factory=dict)
    keep: tuple[str, ...] = ()
    """Fields to keep as tags."""
    mark: dict[str, str] = Field(default_factory=dict)
    """Tags that every item of the set bears."""

    def reads(self, row: Row) -> bool:
        """Also: two sentences that are the same are no pair, and an answer that says nothing is none to be judged."""
        same = self.task == "pair" and len({self.fill(each, row) for each in self.choices}) < 2
        mute = bool(self.reply) and not self.fill(self.reply, row).strip()
        return super().reads(row) and not same and not mute

    def make(self, row: Row, number: int, tags: dict[str, Any]) -> Example:
        choices = tuple(self.fill(each, row) for each in self.choices)
        if self.choices_from:
            choices = (*choices, *_texts(field(row, self.choices_from), self.choices_from))
            if self.choices:  # which is right must not be told by its place; a wrong choice may stand twice
                choices = tuple(sorted(dict.fromkeys(choices), key=lambda each: digest([tags["id"], each])))
        target = self.fill(self.target, row) if self.target else None
        if self.answer:
            target = _pick(choices, self, self.answer, row)
        more: dict[str, Any] = {name: row[name] for name in self.keep if row.get(name) is not None} | self.mark
        if self.answers:
            accepted = _texts(field(row, self.answers), self.answers)
            target, more["answers"] = accepted[0], list(accepted)
        for name, template in (("language", self.language), ("document", self.document)):
            if template:
                more[name] = self.fill(template, row)
        if self.instructions:
            ids, arguments = (field(row, name) for name in self.instructions)
            more["constraints"] = from_ifeval(ids, arguments)
        if self.reply:
            more |= {"answer": self.fill(self.reply, row).strip(), "human": self._human(row)}
        tags = tags | more | {"suite": self.suite or tags["source"], "kind": self.task, "cell": None}
        tags["cluster"] = _cluster(tags["source"], self.fill(self.cluster, row)) if self.cluster else tags["id"]
        tags["slices"] = {name: self.fill(template, row) for name, template in self.slices.items()}
        prompt = self.fill(self.prompt, row)
        if not prompt.strip() and self.task != "pair":
            raise DataError("an empty question", key="prompt")
        turns = _dialogue(prompt) if self.turns else (Message(role=self.role, content=prompt),)
        messages = (*_system(self.fill(self.system, row)), *turns)
        return Example(messages=messages, target=target, choices=choices, tags=tags)

    def _human(self, row: Row) -> float | list[float]:
        """What people gave the reply, 0 to 1: of two answers the share of the choices that it got, one a person."""
        if not self.votes:
            return self.number(self.human, row)
        choices = [_tiers_of_choice(field(vote, "choice"), self.votes) for vote in field(row, self.votes)]
        mine = 0 if self.side == "a" else 1
        return [0.5 if len(tiers) == 1 else float(tiers[0] == (mine,)) for tiers in choices]


class Labels(Form):
    """Texts with categories, to train and to certify guards."""

    kind: Literal["labels"] = "labels"
    splits: dict[str, str] = Field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    text: str = "{text}"
    context: str = ""
    """A user's turn that comes before the text."""
    role: Role = "user"
    direction: Literal["input", "output"] = "input"
    categories: dict[str, str | float] = Field(default_factory=dict)
    """Category of the taxonomy -> 0..1, or a field that holds it. A field that a row lacks leaves it unlabelled."""
    scale: tuple[float, float] = (0.0, 1.0)
    """What the numbers range over; they are brought to 0..1."""
    people: str = ""
    """The field with one entry per person: {annotator, score}."""
    votes: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Instead of `people`, where only counts of votes are known: field with a count -> what each such vote says, by
    category. Votes become anonymous slots in an order of their own, so that a slot says nothing about who voted."""
    cluster: str = ""

    def make(self, row: Row, number: int, tags: dict[str, Any]) -> Example:
        low, high = self.scale
        found: dict[str, float] = {}
        for category, template in self.categories.items():
            if isinstance(template, str) and not self._holds(row, template):
                continue
            found[category] = min(1.0, max(0.0, (self.number(template, row) - low) / (high - low)))
        if not found:
            raise DataError("no category is labelled", key="categories")
        tags = tags | {"direction": self.direction, "categories": found, "people": []}
        tags["cluster"] = _cluster(tags["source"], self.fill(self.cluster, row)) if self.cluster else tags["id"]
        for each in field(row, self.people) if self.people else ():
            for category in found:
                said = {"person": str(field(each, "annotator")), "category": category}
                tags["people"].append(said | {"value": float(field(each, "score")), "scale": list(self.scale)})
        tags["people"] += self._slots(row, found, str(tags["id"]))
        text = self.fill(self.text, row)
        if not text.strip():
            raise DataError("an empty text", key="text")
        before = (_user(self.fill(self.context, row)),) if self.context else ()
        return Example(messages=(*before, Message(role=self.role, content=text)), tags=tags)

    def _slots(self, row: Row, categories: Mapping[str, float], name: str) -> list[dict[str, Any]]:
        cast = [vote for path, vote in self.votes.items() for _ in range(int(self.number("{" + path + "}", row)))]
        order = sorted(range(len(cast)), key=lambda place: digest([name, place]))
        return [
            {"person": f"slot {slot}", "category": category, "value": cast[place].get(category, 0.0), "scale": [0, 1]}
            for slot, place in enumerate(order, 1)
            for category in categories
        ]

    @staticmethod
    def _holds(row: Row, template: str) -> bool:
        try:
            return all(field(row, name) is not None for name in _SLOT.findall(template))
        except DataError:
            return False


class Comparisons(Form):
    """Answers that people compared, scored or ranked."""

    kind: Literal["comparisons"] = "comparisons"
    splits: dict[str, str] = Field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    form: Literal["pair", "ranking", "scoring"] = "pair"
    prompt: str = "{prompt}"
    turns: bool = False
    """The prompt is a dialogue of `Human:` and `Assistant:` turns."""
    candidates: tuple[str, ...] = ()
    """Templates of the candidates."""
    each: str = ""
    """Instead of `candidates`: the field that holds their list, each with `text`."""
    choice: str = ""
    """The field (or the constant a, b, tie) that says which of two won; null leaves the pair undecided."""
    votes: str = ""
    """The field with one choice per person: {annotator, choice}."""
    score: str = ""
    """The field of each candidate that orders them, higher is better."""
    ratings: str = ""
    """The field of each candidate with one score per person: {annotator, score}."""
    scale: tuple[float, float] = (0.0, 1.0)
    criterion: str = "quality"
    cluster: str = ""

    def make(self, row: Row, number: int, tags: dict[str, Any]) -> Preference:
        tags = tags | {"form": self.form, "people": []}
        tags["cluster"] = _cluster(tags["source"], self.fill(self.cluster, row)) if self.cluster else tags["id"]
        given = field(row, self.each) if self.each else []
        texts = [str(field(each, "text")) for each in given] or [self.fill(each, row) for each in self.candidates]
        if len(texts) < 2:
            raise DataError("a comparison needs two candidates", key=self.each or "candidates")
        tiers: tuple[tuple[int, ...], ...] = ()
        scores: tuple[float | None, ...] = ()
        if self.choice:
            tiers = _tiers_of_choice(self.choice if self.choice in _CHOICES else row.get(self.choice), self.choice)
        if self.score:
            values = [float(field(each, self.score)) for each in given]
            scores = tuple(values) if self.form == "scoring" else ()
            tiers = _tiers_of_scores(values)
        if self.votes:
            tags["people"] = [
                {"person": str(field(vote, "annotator")), "tiers": _tiers_of_choice(field(vote, "choice"), self.votes)}
                for vote in field(row, self.votes)
            ]
        if self.ratings:
            tags["people"] = self._rated(given)
        prompt = self.fill(self.prompt, row)
        return Preference(
            prompt=_dialogue(prompt) if self.turns else (_user(prompt.strip()),),
            candidates=tuple(Message(role="assistant", content=text.strip()) for text in texts),
            tiers=tiers,
            scores=scores,
            tags=tags,
        )

    def _rated(self, given: Sequence[Row]) -> list[dict[str, Any]]:
        """Ratings of each candidate, turned round: for each person a score of each candidate, and the order in it."""
        by_person: dict[str, list[float | None]] = {}
        for place, each in enumerate(given):
            for rating in field(each, self.ratings):
                row = by_person.setdefault(str(field(rating, "annotator")), [None] * len(given))
                row[place] = max(self.scale[0], min(self.scale[1], float(field(rating, "score"))))
        return [
            {"person": person, "scores": row, "scale": list(self.scale), "criterion": self.criterion}
            for person, row in by_person.items()
        ]


def _pick(choices: Sequence[str], form: Form, key: str, row: Row) -> str:
    """The choice whose index (from 0) stands in a field."""
    index = int(form.number("{" + key + "}", row))
    if not 0 <= index < len(choices):
        raise DataError(f"there are {len(choices)} choices, the answer is number {index}", key=key)
    return choices[index]


AnyForm = Documents | Dialogues | Items | Labels | Comparisons

_CHOICES: dict[str, tuple[tuple[int, ...], ...]] = {"a": ((0,), (1,)), "b": ((1,), (0,)), "tie": ((0, 1),)}


def _tiers_of_choice(choice: Any, key: str) -> tuple[tuple[int, ...], ...]:
    if choice is None:
        return ()
    if choice not in _CHOICES:
        raise DataError(f"expected a, b or tie, found {choice!r}", key=key)
    return _CHOICES[choice]


def _tiers_of_scores(values: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Places by falling score; equal scores share a tier."""
    levels = sorted(set(values), reverse=True)
    return tuple(tuple(place for place, value in enumerate(values) if value == level) for level in levels)


def _cluster(source: str, text: str) -> str:
    """A short name of a cluster: the text itself, or its sha256 when it is long."""
    return f"{source}/{text if len(text) <= 60 else digest(text)[:16]}"


def _system(text: str) -> tuple[Message, ...]:
    return (Message(role="system", content=text),) if text else ()


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _dialogue(text: str) -> tuple[Message, ...]:
    """`Human: ... Assistant: ...` as messages, up to and without the answer that is asked for."""
    marks = list(_TURN.finditer(text))
    if not marks:
        raise DataError("expected turns of `Human:` and `Assistant:`", key="prompt")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    turns = [
        Message(role=roles[mark[1]], content=text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]
    while turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    if not turns or turns[-1].role != "user":
        raise DataError("expected a dialogue that ends with a turn of the user", key="prompt")
    return tuple(turns)


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError("expected a list of messages", key=key)
    found = []
    for place, each in enumerate(value):
        if not isinstance(each, Mapping) or each.get("role") not in ("system", "user", "assistant", "tool"):
            raise DataError("expected {role, content}", key=f"{key}.{place}")
        if not isinstance(each.get("content"), str):
            raise DataError("expected text", key=f"{key}.{place}.content")
        found.append(Message(role=each["role"], content=each["content"]))
    return tuple(found)


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError("expected a list that is not empty", key=key)
    return tuple(str(each) for each in value)

"""The models of the wire: what people and programs send to the feedback rooms and get back."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tutelage.core.errors import DataError
from tutelage.core.records import Message
from tutelage.feedback import assign
from tutelage.feedback.taxonomy import Taxonomy
from tutelage.store import gold
from tutelage.store.adjudication import CAUSE, NOTE
from tutelage.store.answers import WHOLE
from tutelage.store.people import MOST_LANGUAGES, ROLES
from tutelage.store.settings import ProjectSettings

Kind = Literal["ranking", "scoring", "ranking+scoring", "pair", "tag", "review", "rewrite", "dialogue"]
RANKED: tuple[str, ...] = ("ranking", "ranking+scoring", "pair", "dialogue")
MOST = 2**31 - 1
"""The highest whole number that every database keeps."""
DEEPEST = 40
"""How deep what is sent may be nested."""


def storable(value: Any) -> None:
    """Refuse, before anything is read further, what parsed JSON may hold and no database keeps the same: half a
    surrogate pair, NUL, numbers that are no finite ones or that JSON's readers round. Raises DataError."""
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth > DEEPEST:
            raise DataError(f"what is sent is nested more than {DEEPEST} deep")
        match each:
            case str() if "\x00" in each or any("\ud800" <= letter <= "\udfff" for letter in each):
                raise DataError("a text holds NUL or half a surrogate pair, which no database keeps")
            case int() if abs(each) > 2**53:
                raise DataError(f"{each} is larger than JSON's readers keep exactly")
            case float() if not math.isfinite(each):
                raise DataError("a number is not finite")
            case dict():
                waiting += [(inner, depth + 1) for pair in each.items() for inner in pair]
            case list() | tuple():
                waiting += [(inner, depth + 1) for inner in each]


class Wire(BaseModel):
    """Base of what travels: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


PICKED: tuple[str, ...] = ("choice", "choices", "tags")
"""Kinds of question that are answered by naming some of what there is to choose from."""
TAKEN: tuple[str, ...] = ("flag", "all_bad", "rewrite", "as_is", CAUSE, NOTE)
"""Names of answers that need no question: no question may bear them."""


class Question(Wire):
    """One question of a form. The scale's points may carry words (`anchors`)."""

    key: str = Field(pattern=r"^[a-z][a-z0-9_:.-]{0,60}$")
    kind: Literal["scale", "choice", "choices", "boolean", "text", "tags", "spans", "strength"] = "scale"
    """`tags` chooses nodes of the form's taxonomy; `spans` marks characters with them, or with one of `choices`;
    `strength` says how much better the better one of two is, in the words of `choices`, weakest first."""
    prompt: str = ""
    scale: tuple[float, float] = (1, 5)
    anchors: dict[str, str] = Field(default_factory=dict)
    """Point of the scale, or choice -> the words beside it."""
    choices: tuple[str, ...] = ()
    per_candidate: bool = False
    required: bool = True
    """Of `choices` and `tags`: that none applies must then be said by an empty list."""

    @model_validator(mode="after")
    def _sound(self) -> Question:
        if self.kind in ("choice", "choices", "strength") and not self.choices:
            raise ValueError(f"question {self.key!r} needs choices")
        if self.kind == "scale" and not self.scale[0] < self.scale[1]:
            raise ValueError(f"question {self.key!r}: the scale must go up, found {self.scale}")
        return self


class Form(Wire):
    """What is asked, the guideline (Markdown) that stands beside each task, and the tags there are."""

    questions: tuple[Question, ...] = ()
    guideline: str = ""
    taxonomy: Taxonomy | None = None


class NewProject(Wire):
    """A labelling effort to be made."""

    name: str = Field(pattern=r"^[\w][\w .:@+-]{0,119}$")
    kind: Kind = "ranking"
    form: Form = Form()
    per_task: int = Field(default=3, ge=1, le=1000)
    settings: ProjectSettings = ProjectSettings()

    @model_validator(mode="after")
    def _answerable(self) -> NewProject:
        seen: set[str] = set()
        for each in self.form.questions:
            if each.key in seen or each.key in TAKEN:
                raise ValueError(f"question {each.key!r}: the name is taken")
            seen.add(each.key)
            if len(set(each.choices)) < len(each.choices) or not all(words.strip() for words in each.choices):
                raise ValueError(f"question {each.key!r}: each choice needs words of its own")
            if each.kind in ("text", "spans", "strength") and each.per_candidate:
                raise ValueError(f"question {each.key!r}: {each.kind} is asked about the whole task")
            if each.kind == "tags" and self.form.taxonomy is None:
                raise ValueError(f"question {each.key!r} needs a taxonomy in the form")
            if each.kind == "spans" and self.form.taxonomy is None and not each.choices:
                raise ValueError(f"question {each.key!r} needs choices, or a taxonomy in the form")
            if each.kind == "strength" and self.kind != "pair" and not self._two_speak():
                raise ValueError(f"question {each.key!r}: only a pair, or a dialogue of two answers, has a strength")
        return self

    def _two_speak(self) -> bool:
        told = self.settings.dialogue
        return self.kind == "dialogue" and told is not None and told.candidates == 2

    @field_validator("settings")
    @classmethod
    def _roles(cls, settings: ProjectSettings) -> ProjectSettings:
        if unknown := sorted(set(settings.roles) - set(ROLES)):
            raise ValueError(f"roles lists who may answer, of {', '.join(ROLES)}; found {unknown[0]!r}")
        return settings

    @model_validator(mode="after")
    def _can_speak(self) -> NewProject:
        if self.kind == "dialogue" and self.settings.dialogue is None:
            raise ValueError("settings.dialogue names the generators that answer in a dialogue")
        return self


class ProjectView(Wire):
    """A labelling effort."""

    name: str
    kind: str
    state: str
    per_task: int
    form: Form
    form_version: int
    settings: dict[str, Any]
    open_for_me: int | None = None


class Projects(Wire):
    """The projects somebody may see."""

    projects: list[ProjectView]


class NewCandidate(Wire):
    """One thing to be judged, and who made it (which annotators never see)."""

    content: str
    producer: str = Field(default="", max_length=300)
    meta: dict[str, Any] = Field(default_factory=dict)


class NewTask(Wire):
    """A task to be made; `people` (names) reserves its places for them, else anybody may take them."""

    key: str = Field(min_length=1, max_length=200)
    kind: Kind
    messages: tuple[Message, ...]
    candidates: tuple[NewCandidate, ...] = ()
    people: tuple[str, ...] | None = None
    required: int | None = Field(default=None, ge=1, le=1000)
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    cluster: str = Field(default="", max_length=120)
    language: str = Field(default="", max_length=20)
    meta: dict[str, Any] = Field(default_factory=dict)
    decision: str | None = Field(default=None, max_length=36)
    draw: str | None = Field(default=None, max_length=36)

    @model_validator(mode="after")
    def _sound(self) -> NewTask:
        least = 1 if self.kind == "dialogue" else 2  # of two answers one may not have come
        if self.kind in RANKED and len(self.candidates) < least:
            raise ValueError(f"a task of kind {self.kind} needs at least {'two' if least == 2 else 'one'} candidates")
        if self.kind == "pair" and len(self.candidates) != 2:
            raise ValueError("a pair has two candidates")
        if self.kind == "scoring" and not self.candidates:
            raise ValueError("a task of kind scoring needs a candidate")
        return self


class NewTasks(Wire):
    """Tasks to be made."""

    tasks: tuple[NewTask, ...]


class TaskIds(Wire):
    """The ids of tasks, in the order they were given."""

    tasks: list[str]


class Claim(Wire):
    """Ask for work: in one project or (empty) in any; hold up to `count` tasks for `lease_s` seconds."""

    project: str = ""
    count: int = Field(default=1, ge=1, le=assign.MOST_HELD)
    lease_s: float = Field(default=assign.LEASE_S, ge=5, le=86_400)


class Shown(Wire):
    """A candidate as it is shown: its number names it in the answer, its maker is not told."""

    no: int
    content: str


class Item(Wire):
    """A task in somebody's hands. Candidates stand in the order they are shown."""

    slot: str
    epoch: int
    task: str
    project: str
    kind: str
    messages: tuple[Message, ...]
    candidates: tuple[Shown, ...]
    questions: tuple[Question, ...]
    guideline: str
    form_version: int
    lease_until: int
    draft: dict[str, Any] | None = None
    language: str = ""
    taxonomy: Taxonomy | None = None
    taxonomy_version: int = 0
    """0 where the form has none."""
    others: tuple[dict[str, Any], ...] | None = None
    """To be adjudicated: what each of the others answered, by pseudonym. None for everybody else, always."""


class Claimed(Wire):
    """The tasks somebody holds now; `reason` says why there are none."""

    items: list[Item]
    reason: str = ""


class MarkedSpan(Wire):
    """A label on characters `start` to `end` (exclusive; Unicode code points) of a text as it was shown.

    `field` is `candidate`, `prompt` (its last message) or `prompt:N` (message N of the prompt, from 0).
    """

    field: str = Field(default="candidate", pattern=r"^(candidate|prompt(:\d{1,4})?)$")
    candidate: int = Field(default=WHOLE, ge=WHOLE, le=MOST)
    start: int = Field(ge=0, le=MOST)
    end: int = Field(ge=0, le=MOST)
    label: str = Field(min_length=1, max_length=120)


class Answer(Wire):
    """One person's answer to one slot. `key` makes sending it twice harmless."""

    slot: str
    epoch: int
    key: str = Field(min_length=8, max_length=120)
    status: Literal["submitted", "skipped", "flagged", "withdrawn"] = "submitted"
    """`withdrawn` takes one's own answer back (it stays on record): the place is one's own again, to be answered anew
    or given back."""
    reason: str = Field(default="", max_length=500)
    tiers: tuple[tuple[int, ...], ...] | None = None
    """Candidate numbers, best tier first; candidates of one tier are tied."""
    unrankable: tuple[int, ...] = ()
    all_bad: bool = False
    scores: dict[str, dict[int, float]] = Field(default_factory=dict)
    """Question -> candidate number -> score."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Question -> answer about the whole task: a number, a choice, a list of choices or of tags, or a text."""
    picks: dict[str, dict[int, list[str]]] = Field(default_factory=dict)
    """Question -> candidate number -> what was chosen for it: choices or tags."""
    flags: dict[int, list[str]] = Field(default_factory=dict)
    """Candidate number -> what is wrong with it: tags where the form has a taxonomy, else short words."""
    spans: tuple[MarkedSpan, ...] = Field(default=(), max_length=1000)
    rewrite: str | None = None
    """A better text than candidate `rewritten`, or an answer to a prompt that has none."""
    rewritten: int | None = None
    """The candidate that was rewritten or left as it is; needed where there are several."""
    as_is: bool = False
    """The candidate needs no rewriting: it is a good answer as it stands."""
    active_ms: int = Field(default=0, ge=0, le=MOST)


class Answers(Wire):
    """Answers to be stored, and (optionally) the next claim in the same round trip."""

    answers: tuple[Answer, ...] = Field(max_length=1000)
    claim: Claim | None = None


class Receipt(Wire):
    """What became of an answer. `stale`: the place went to somebody else; `refused`: `error` says what is wrong."""

    slot: str
    annotation: str = ""
    status: Literal["stored", "repeated", "stale", "refused"]
    error: str = ""


class Submitted(Wire):
    """Receipts in the order of the answers; every stored one is on disk."""

    receipts: list[Receipt]
    next: Claimed | None = None


class Draft(Wire):
    """An unfinished answer to be kept."""

    epoch: int
    body: dict[str, Any]


class Kept(Wire):
    """Whether it worked; False when the place is no longer one's own."""

    ok: bool


class Held(Wire):
    """Which holding of a slot is meant."""

    epoch: int = Field(default=0, le=MOST)


class Which(Wire):
    """Of which project (empty: of all), and how many at most."""

    project: str = ""
    limit: int = Field(default=50, ge=1, le=500)


class Problem(Wire):
    """Why a request was not answered."""

    error: str
    """Its kind: DataError, NotFound, Forbidden, Busy ..."""
    message: str
    """What was found, in a sentence."""
    key: str | None = None
    """The key of the request that is meant."""
    row: int | None = None
    file: str | None = None
    todo: str | None = None
    """What to do next."""
    exit_code: int = 1
    """Of the command that would have met this."""


class ByPerson(Wire):
    """How much one person has answered."""

    person: str
    people: str
    answers: int


class Progress(Wire):
    """Where a project stands.

    Where gold tasks are given, people who do not lead see their own number exactly, all others in tens and no pace, or
    a number that stands still would tell them which task was gold.
    """

    project: str
    tasks: int
    done: int
    stuck: int
    answers: int
    needed: int
    in_hand: int
    people: dict[str, int]
    per_person: list[ByPerson]
    paced: str
    """The kind of people whose pace this is: live ones where there are any."""
    per_hour: float | None
    """Answers of late; None where it cannot be told."""
    hours_left: float | None
    """Until there are enough, at this pace; None where it cannot be told, or there are."""


class History(Wire):
    """One's own answers, newest first."""

    answers: list[dict[str, Any]]


class Settings(Wire):
    """Settings of a project to be changed; what is not named stays."""

    settings: dict[str, Any]


class Expected(Wire):
    """The answer that a gold task should get, in the words of an answer. Texts are not compared."""

    tiers: tuple[tuple[int, ...], ...] | None = None
    unrankable: tuple[int, ...] = ()
    all_bad: bool = False
    scores: dict[str, dict[int, float]] = Field(default_factory=dict)
    values: dict[str, Any] = Field(default_factory=dict)
    picks: dict[str, dict[int, list[str]]] = Field(default_factory=dict)
    flags: dict[int, list[str]] = Field(default_factory=dict)
    spans: tuple[MarkedSpan, ...] = ()
    rewrite: str | None = None
    rewritten: int | None = None
    as_is: bool = False


class NewGold(Wire):
    """A task to be given blind, now and then, to see whether people answer it as expected."""

    task: str
    answer: Expected | None = None
    """None: what was adjudicated."""
    rationale: str = Field(min_length=1, max_length=5000)
    """Why this is the right answer, for whoever talks it over with somebody who was wrong."""
    tolerance: float = Field(default=0.0, ge=0)
    """How far a number may be off."""
    enough: float = Field(default=0.8, gt=0, le=1)
    """Share of what is expected from which an answer is right: of the pairs of a ranking, say."""
    reserve: bool = False
    """The task is for this alone: its open places are closed."""


class GoldView(Wire):
    """A gold task and how it went."""

    task: str
    expected: dict[str, Any]
    rationale: str
    retired: bool
    shown: int
    answered: int
    right: int


class StandingView(Wire):
    """How one person did on gold tasks since a lead last looked. For a talk, never for pay."""

    person: str
    right: int
    n: int
    probability: float
    """Posterior probability that they are right more rarely than the project's threshold."""
    paused: bool


class WhichGold(Wire):
    """Which gold tasks, and which of the people who answered some: so many behind the first `start`."""

    start: int = Field(default=0, ge=0, le=MOST)
    limit: int = Field(default=200, ge=1, le=500)


class GoldViews(Wire):
    """The gold tasks of a project, and the people who answered them: a page of each, and how many there are."""

    tasks: list[GoldView]
    people: list[StandingView]
    tasks_total: int
    people_total: int


class Qualifications(Wire):
    """What one person has shown to be able to judge."""

    person: str
    names: list[str]


class Lift(Wire):
    """Why somebody who was paused may go on."""

    reason: str = Field(min_length=gold.SHORTEST, max_length=gold.LONGEST)
    """It is kept for good."""


class Spoken(Wire):
    """The languages that somebody can judge: language tags as tasks name them."""

    languages: tuple[str, ...] = Field(max_length=MOST_LANGUAGES)


class Languages(Spoken):
    """The languages of one person: tasks in them are given to that person."""

    person: str


class NewTurn(Wire):
    """What somebody says in a dialogue. `key` makes sending it twice harmless."""

    message: str = Field(min_length=1, max_length=20_000)
    key: str = Field(min_length=8, max_length=120)
    dialogue: str = Field(default="", max_length=120)
    """Empty goes on with one's newest that has not ended, or begins one."""


class EndDialogue(Wire):
    """Which dialogue; empty is one's newest that has not ended."""

    dialogue: str = Field(default="", max_length=120)


class WhichDialogue(Wire):
    """The dialogue to look at."""

    dialogue: str = Field(default="", max_length=120)
    """Empty is one's newest that has not ended."""


class DialogueView(Wire):
    """Where a dialogue stands. `item` holds the answers that wait for one's word, to be given like that on any task."""

    dialogue: str
    project: str
    messages: tuple[Message, ...]
    item: Item | None = None
    turns: int
    ended: bool = False
    notes: list[str] = Field(default_factory=list)
    problem: str = ""
    """Why there is no answer: the message was not stored and can be sent again."""

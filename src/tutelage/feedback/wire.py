"""The models of the wire: what people and programs send to the feedback rooms and get back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.core.records import Message
from tutelage.feedback import assign
from tutelage.store.answers import WHOLE

Kind = Literal["ranking", "scoring", "ranking+scoring", "pair", "tag", "review", "rewrite", "dialogue"]
RANKED: tuple[str, ...] = ("ranking", "ranking+scoring", "pair", "dialogue")


class Wire(BaseModel):
    """Base of what travels: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Question(Wire):
    """One question of a form. The scale's points may carry words (`anchors`)."""

    key: str = Field(pattern=r"^[a-z][a-z0-9_:.-]{0,60}$")
    kind: Literal["scale", "choice", "choices", "boolean", "text"] = "scale"
    prompt: str = ""
    scale: tuple[float, float] = (1, 5)
    anchors: dict[str, str] = Field(default_factory=dict)
    choices: tuple[str, ...] = ()
    per_candidate: bool = False
    required: bool = True

    @model_validator(mode="after")
    def _sound(self) -> Question:
        if self.kind in ("choice", "choices") and not self.choices:
            raise ValueError(f"question {self.key!r} needs choices")
        if self.kind == "scale" and not self.scale[0] < self.scale[1]:
            raise ValueError(f"question {self.key!r}: the scale must go up, found {self.scale}")
        return self


class Form(Wire):
    """What is asked, and the guideline (Markdown) that stands beside each task."""

    questions: tuple[Question, ...] = ()
    guideline: str = ""


class DialogueSettings(Wire):
    """`settings.dialogue` of a project of kind dialogue: who answers, and within which limits."""

    generators: tuple[str, ...] = Field(min_length=1, max_length=9)
    """`model:...`, `bundle:...`, `release:current`, `fake:...`, or a name under `generators` in service.yaml, which
    holds addresses and keys. One generator answers several times."""
    candidates: int = Field(default=2, ge=2, le=4)
    """Answers side by side."""
    system: str = Field(default="", max_length=20_000)
    """The system prompt."""
    max_tokens: int = Field(default=256, ge=1, le=4096)
    temperature: float = Field(default=1.0, ge=0, le=2)
    timeout_s: float = Field(default=30.0, gt=0, le=300)
    """An answer that takes longer is left out."""
    turns: int = Field(default=20, ge=1, le=200)
    """Most turns of a dialogue."""
    alike: float = Field(default=0.95, gt=0, le=1)
    """Overlap of character trigrams from which two answers are shown as one."""
    licence: str = "not-stated"
    """Licence class of what is said here."""


class NewProject(Wire):
    """A labelling effort to be made."""

    name: str = Field(pattern=r"^[\w][\w .:@+-]{0,119}$")
    kind: Kind = "ranking"
    form: Form = Form()
    per_task: int = Field(default=3, ge=1, le=1000)
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_speak(self) -> NewProject:
        if self.kind == "dialogue":
            DialogueSettings.model_validate(self.settings.get("dialogue") or {})
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
    producer: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class NewTask(Wire):
    """A task to be made; `people` (names) reserves its places for them, else anybody may take them."""

    key: str = Field(min_length=1, max_length=200)
    kind: Kind
    messages: tuple[Message, ...]
    candidates: tuple[NewCandidate, ...] = ()
    people: tuple[str, ...] | None = None
    required: int | None = Field(default=None, ge=1, le=1000)
    priority: int = 0
    cluster: str = Field(default="", max_length=120)
    language: str = Field(default="", max_length=20)
    meta: dict[str, Any] = Field(default_factory=dict)
    decision: str | None = None
    draw: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> NewTask:
        least = 1 if self.kind == "dialogue" else 2  # of two answers one may not have come
        if self.kind in RANKED and len(self.candidates) < least:
            raise ValueError(f"a task of kind {self.kind} needs at least {'two' if least == 2 else 'one'} candidates")
        if self.kind == "pair" and len(self.candidates) != 2:
            raise ValueError("a pair has two candidates")
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


class Claimed(Wire):
    """The tasks somebody holds now; `reason` says why there are none."""

    items: list[Item]
    reason: str = ""


class MarkedSpan(Wire):
    """A label on characters `start` to `end` of a field ("prompt" or "candidate")."""

    field: str = "candidate"
    candidate: int = WHOLE
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    label: str = Field(min_length=1, max_length=120)


class Answer(Wire):
    """One person's answer to one slot. `key` makes sending it twice harmless."""

    slot: str
    epoch: int
    key: str = Field(min_length=8, max_length=120)
    status: Literal["submitted", "skipped", "flagged"] = "submitted"
    reason: str = Field(default="", max_length=500)
    tiers: tuple[tuple[int, ...], ...] | None = None
    """Candidate numbers, best tier first; candidates of one tier are tied."""
    unrankable: tuple[int, ...] = ()
    all_bad: bool = False
    scores: dict[str, dict[int, float]] = Field(default_factory=dict)
    """Question -> candidate number -> score."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Question -> answer about the whole task: a number, a choice, a list of choices, or a text."""
    flags: dict[int, list[str]] = Field(default_factory=dict)
    spans: tuple[MarkedSpan, ...] = ()
    rewrite: str | None = None
    active_ms: int = Field(default=0, ge=0)


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


class ByPerson(Wire):
    """How much one person has answered."""

    person: str
    people: str
    answers: int


class Progress(Wire):
    """Where a project stands. `hours_left` is None until the rate can be told."""

    project: str
    tasks: int
    done: int
    stuck: int
    answers: int
    needed: int
    in_hand: int
    people: dict[str, int]
    per_person: list[ByPerson]
    per_hour: float | None
    hours_left: float | None


class History(Wire):
    """One's own answers, newest first."""

    answers: list[dict[str, Any]]


class NewTurn(Wire):
    """What somebody says in a dialogue. `key` makes sending it twice harmless."""

    message: str = Field(min_length=1, max_length=20_000)
    key: str = Field(min_length=8, max_length=120)
    dialogue: str = Field(default="", max_length=120)
    """Empty goes on with one's newest that has not ended, or begins one."""


class EndDialogue(Wire):
    """Which dialogue ends; empty is one's newest that has not ended."""

    dialogue: str = Field(default="", max_length=120)


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

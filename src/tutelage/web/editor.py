"""A project as its lead writes it: the fields of the editor's page, and what they come to.

Field names: `q.NO.PART` for question NO (parts `key`, `prompt`, `kind`, `low`, `high`, `anchors`, `choices`, `each`,
`optional`, `more`), all others by their own name. Parts that the page does not show travel in `more`, as JSON.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, get_args

from pydantic import ValidationError

from tutelage.core.errors import DataError
from tutelage.core.records import explain
from tutelage.corpus.catalog import Licence
from tutelage.feedback.wire import Form, Kind, NewProject, Question
from tutelage.review import queue
from tutelage.store.qualifications import NAME

KINDS: Final = tuple(kind for kind in get_args(Kind) if kind not in ("review", "dialogue"))
"""Kinds of task that a lead opens by hand, with a file of tasks."""
QUESTION_KINDS: Final[Mapping[str, str]] = {
    kind: {"scale": "a scale", "choice": "one of several", "choices": "any of several", "boolean": "yes or no",
           "text": "free text", "tags": "labels of the taxonomy", "spans": "marked places",
           "strength": "how much better"}.get(kind, kind)
    for kind in get_args(Question.model_fields["kind"].annotation)
}  # fmt: skip
OF_EACH: Final = ("scale", "boolean")
"""Kinds of question that can be asked of each response."""
STANDARD: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "scoring": [
        {"key": "right", "kind": "scale", "scale": [1, 5], "per_candidate": True, "prompt": "Is it right?",
         "anchors": {"1": "wrong", "3": "partly", "5": "right and complete"}},
        {"key": "clear", "kind": "scale", "scale": [1, 5], "per_candidate": True, "prompt": "Is it clear?",
         "anchors": {"1": "confusing", "5": "clear"}},
    ],
    "tag": [{"key": "categories", "kind": "choices", "choices": list(queue.CATEGORIES), "required": False,
             "prompt": "Which of these does the text contain?"}],
}  # fmt: skip
"""What is asked where a lead asks nothing of their own."""
STANDARD_KEYS: Final = {"ranking+scoring": "scoring"}
LICENCES: Final = tuple(each for each in get_args(Licence) if each != "not-stated")
"""Licence classes that a lead may state of a project's texts."""


class QuestionFields(NamedTuple):
    """One question as the page's fields hold it."""

    key: str = ""
    prompt: str = ""
    kind: str = "scale"
    low: str = "1"
    high: str = "5"
    anchors: str = ""
    choices: str = ""
    each: bool = False
    optional: bool = False
    more: str = ""

    @property
    def empty(self) -> bool:
        """Nothing was written: the blank question at the end of the page."""
        return not (self.key.strip() or self.prompt.strip() or self.choices.strip() or self.anchors.strip())


SHOWN = ("key", "prompt", "kind", "scale", "anchors", "choices", "per_candidate", "required")


@dataclass
class Draft:
    """A project that is being written."""

    name: str = ""
    kind: str = "ranking"
    per_task: str = "3"
    language: str = ""
    mask_pii: bool = True
    qualifications: str = ""
    licence: str = ""
    guideline: str = ""
    questions: list[QuestionFields] = field(default_factory=list)
    upload: str = ""
    """Token of the file that was sent already."""
    into: str = ""
    """A project that is there already, which gets the file's tasks."""
    corpus: str = ""
    families: str = ""
    prompts: str = "100"
    models: list[str] = field(default_factory=list)
    endpoints: str = ""
    candidates: str = "4"
    samples: str = "8"
    temperature: str = "1"
    max_tokens: str = "256"

    @classmethod
    def read(cls, fields: Mapping[str, Sequence[str]]) -> Draft:
        """What a form's fields say."""

        def one(name: str, default: str) -> str:
            return (fields.get(name) or [default])[0].strip()

        plain = {
            name: one(name, str(value))
            for name, value in asdict(cls()).items()
            if isinstance(value, str) and (name in fields)
        }
        plain["guideline"] = one("guideline", "").replace("\r\n", "\n")
        masked = "mask_pii" in fields or "shown_mask" not in fields  # an unticked box sends nothing
        return cls(
            **plain,
            mask_pii=masked,
            questions=_fields(fields),
            models=[each for each in fields.get("models", ()) if each],
        )

    @classmethod
    def of(cls, kept: str) -> Draft:
        """What `kept` wrote. Raises DataError for what nobody wrote."""
        try:
            raw = json.loads(kept)
            raw["questions"] = [QuestionFields(**each) for each in raw["questions"]]
            return cls(**raw)
        except (ValueError, TypeError, KeyError):
            raise DataError("this page does not hold a project", todo="Begin again") from None

    def kept(self) -> str:
        """All of it as one text, for a page to carry on."""
        return json.dumps(asdict(self) | {"questions": [each._asdict() for each in self.questions]})

    def asked(self) -> tuple[Question, ...]:
        """The questions that were written. Raises DataError naming one."""
        asked = [question_of(each, at) for at, each in enumerate(self.questions, 1) if not each.empty]
        if self.kind in ("ranking", "pair") and (each := next((each for each in asked if each.per_candidate), None)):
            todo = "Choose the kind `ranking and scoring`, or ask it of the whole task"
            raise DataError(f"a {self.kind} asks nothing of each response", key=each.key, todo=todo)
        keys = [each.key for each in asked]
        if twice := next((key for key in keys if keys.count(key) > 1), ""):
            raise DataError(f"two questions are called {twice!r}", key="form")
        return tuple(asked)

    def form(self) -> Form:
        """The form that people will see: what is usual for the kind where nothing was written."""
        standard = STANDARD.get(STANDARD_KEYS.get(self.kind, self.kind), ())
        asked = self.asked() or tuple(Question.model_validate(each) for each in standard)
        return Form(questions=asked, guideline=self.guideline)

    def project(self) -> NewProject:
        """The project to be made. Raises DataError naming the field."""
        settings: dict[str, Any] = {"mask_pii": self.mask_pii, "people": "none"}
        settings["qualifications"] = named(self.qualifications)
        settings["licence"] = licence_of(self.licence)
        per_task = whole(self.per_task, "per_task", 1, 1000)
        return checked(name=self.name, kind=self.kind, per_task=per_task, settings=settings, form=self.form())


def checked(**raw: Any) -> NewProject:
    """A project whose form can be answered. Raises DataError naming the field or question."""
    try:
        return NewProject.model_validate(raw)
    except ValidationError as error:
        key, message = explain(error)
        if key == "name":
            message = "a name begins with a letter or digit and holds letters, digits, spaces and . : @ + - _"
        raise DataError(message, key=key) from None


def whole(text: str, key: str, low: int, high: int) -> int:
    """A whole number of a field. Raises DataError."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise DataError(f"expected a whole number from {low} to {high}, found {text[:40]!r}", key=key)
    return value


def licence_of(text: str) -> str:
    """A licence class, or "" for none stated. Raises DataError."""
    if text and text not in LICENCES:
        raise DataError(f"{text[:40]!r} is no licence class", key="licence", todo=f"One of: {', '.join(LICENCES)}")
    return text


def named(text: str) -> tuple[str, ...]:
    """Qualifications separated by commas, each once. Raises DataError for what is no name of one."""
    found = tuple(dict.fromkeys(filter(None, (" ".join(each.split()) for each in text.split(",")))))
    if wrong := next((each for each in found if not NAME.fullmatch(each)), ""):
        todo = "A name begins with a letter or digit and holds up to 60 letters, digits, spaces and . : + -"
        raise DataError(f"{wrong[:40]!r} is no name of a qualification", key="qualifications", todo=todo)
    return found


def part(text: str, key: str, low: float, high: float) -> float:
    """A number of a field, perhaps with decimals. Raises DataError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"expected a number from {low:g} to {high:g}, found {text[:40]!r}", key=key)
    return value


def _fields(fields: Mapping[str, Sequence[str]]) -> list[QuestionFields]:
    """The questions of a page in their order; those marked `gone` and empty ones are left out."""
    found: dict[int, dict[str, str]] = {}
    for name, given in fields.items():
        place = re.fullmatch(r"q\.(\d{1,4})\.(\w+)", name)
        if place and given:
            found.setdefault(int(place[1]), {})[place[2]] = given[0]
    made: list[QuestionFields] = []
    for _, parts in sorted(found.items()):
        if parts.pop("gone", ""):
            continue
        flags = {name: bool(parts.pop(name, "")) for name in ("each", "optional")}
        texts = {name: text.replace("\r\n", "\n") for name, text in parts.items() if name in QuestionFields._fields}
        made.append(QuestionFields(**texts, **flags))  # type: ignore[arg-type]
    return [each for each in made if not each.empty]


def question_of(given: QuestionFields, number: int) -> Question:
    """One question as people are asked it. Raises DataError naming it by its number on the page."""
    where = f"question {number}"
    raw: dict[str, Any] = _more(given.more, where)
    key = given.key.strip() or _slug(given.prompt, number)
    raw |= {"key": key, "prompt": given.prompt.strip(), "kind": given.kind, "required": not given.optional,
            "per_candidate": given.each}  # fmt: skip
    if given.each and given.kind not in OF_EACH:
        raise DataError("only scales and yes-or-no can be asked of each response", key=where)
    if given.kind == "scale":
        try:
            raw["scale"] = (float(given.low), float(given.high))
        except ValueError:
            raise DataError(f"the scale goes from {given.low[:20]!r} to {given.high[:20]!r}: two numbers are needed",
                            key=where) from None  # fmt: skip
        raw["anchors"] = _anchors(given.anchors, raw["scale"], where)
    choices = [each.strip() for each in given.choices.split("\n") if each.strip()]
    if given.kind in ("choice", "choices", "strength") or choices:
        if len(set(choices)) < len(choices):
            raise DataError("a choice stands there twice", key=where)
        raw["choices"] = choices
    try:
        return Question.model_validate(raw)
    except ValidationError as error:
        name, message = explain(error)
        if name == "key":
            message = "its name begins with a small letter and holds small letters, digits and _ . : -"
        raise DataError(message, key=where) from None


def _more(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError("this page was changed on its way", key=where)
    return {name: value for name, value in found.items() if name not in SHOWN}


def _anchors(text: str, scale: tuple[float, float], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in text.split("\n"))):
        point, sign, words = line.partition(":")
        try:
            value = float(point)
        except ValueError:
            value = float("nan")
        if not sign or not scale[0] <= value <= scale[1]:
            todo = f"Write one line for each point, such as `{scale[0]:g}: wrong`"
            raise DataError(f"{line[:40]!r} names no point of the scale", key=where, todo=todo)
        found[f"{value:g}"] = words.strip()
    return found


def _slug(prompt: str, number: int) -> str:
    made = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:40].strip("_")
    return made if made[:1].isalpha() and made.isascii() else f"question_{number}"


def shown(questions: Sequence[Mapping[str, Any]]) -> list[QuestionFields]:
    """Questions as the page's fields show them."""
    found = []
    for raw in questions:
        each = Question.model_validate(raw)
        more = {name: value for name, value in each.model_dump(mode="json").items() if name not in SHOWN}
        found.append(
            QuestionFields(
                each.key, each.prompt, each.kind, f"{each.scale[0]:g}", f"{each.scale[1]:g}",
                "\n".join(f"{point}: {words}" for point, words in each.anchors.items()), "\n".join(each.choices),
                each.per_candidate, not each.required, json.dumps(more) if more else "",
            )
        )  # fmt: skip
    return found


# two versions beside each other


class Line(NamedTuple):
    """One line of a difference: `sign` is `+`, `-`, or a space for what stays."""

    sign: str
    text: str


def difference(before: Form, after: Form) -> list[Line]:
    """What changes from one form to another, line by line; what stays is shown only near a change."""
    old, new = _lines(before), _lines(after)
    found: list[Line] = []
    for line in difflib.unified_diff(old, new, lineterm="", n=2):
        if line.startswith(("---", "+++")):
            continue
        found.append(Line(" ", "…") if line.startswith("@@") else Line(line[0], line[1:]))
    return found[1:] if found and found[0].text == "…" else found


def _lines(form: Form) -> list[str]:
    lines: list[str] = []
    for each in form.questions:
        asked = "of each response" if each.per_candidate else "of the whole task"
        free = "" if each.required else ", may be left out"
        lines.append(f"Question {each.key}: {each.prompt or each.key} ({QUESTION_KINDS[each.kind]}, {asked}{free})")
        if each.kind == "scale":
            lines.append(f"    from {each.scale[0]:g} to {each.scale[1]:g}")
            lines += [f"    {point}: {words}" for point, words in each.anchors.items()]
        lines += [f"    - {choice}" for choice in each.choices]
        rest = each.model_dump(mode="json", exclude_defaults=True, exclude=set(SHOWN))
        lines += [f"    {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in rest.items()]
    return [*lines, "Guideline", *(f"    {line}" for line in form.guideline.split("\n"))]

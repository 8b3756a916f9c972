"""What people's tags say of texts: a prompt or one answer, whole or by marked words, under the newest taxonomy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.records import Message
from tutelage.feedback.taxonomy import Taxonomy, asked, migrated
from tutelage.store import taxonomies
from tutelage.store.answers import WHOLE, Annotation
from tutelage.store.engine import Reader
from tutelage.store.tasks import Task

VOICES: Mapping[str, float] = {"yes": 1.0, "no": 0.0, "unsure": 0.5}

Text = tuple[str, int]
"""A task and one of its candidates, or WHOLE: the prompt (with its only candidate, where a text was to be tagged)."""


@dataclass(frozen=True)
class Voice:
    """What one person said of one text."""

    text: Text
    person: str
    said: Mapping[str, float]
    """Category -> 0 to 1; `*` stands for harm of a kind that was not named. What is missing was not asked."""
    reported: frozenset[str] = frozenset()
    """Categories that were volunteered: who answered the same task and did not name them saw no need to."""
    spans: Sequence[Mapping[str, Any]] = ()
    """Marked words: {field, candidate, start, end, type}; offsets into the text as it was shown."""


@dataclass
class Trees:
    """The taxonomies that answers were given under, and the newest of each project."""

    by_form: dict[str, taxonomies.Tree] = field(default_factory=dict)
    versions: dict[str, dict[int, Taxonomy]] = field(default_factory=dict)
    """Project -> version -> tree."""
    ambiguous: int = 0
    """Tags of nodes that were split since: only what the parts have in common was taken."""
    gone: int = 0
    """Tags of nodes that were taken out since."""

    @classmethod
    def read(cls, store: Reader, given: Sequence[Annotation]) -> Trees:
        """The trees that these answers need."""
        made = cls(taxonomies.of_forms(store, sorted({each.form for each in given})))
        for project in sorted({tree.project for tree in made.by_form.values()}):
            made.versions[project] = {
                version: Taxonomy.model_validate({"nodes": tree.nodes, "migration": tree.migration})
                for version, tree in taxonomies.versions(store, project).items()
            }
        return made

    def named(self, form: str, keys: Sequence[str]) -> tuple[dict[str, float], dict[str, float]] | None:
        """(what was chosen, what could have been and was not), by today's names; None where the form has no tree."""
        tree = self.by_form.get(form)
        if tree is None:
            return None
        versions = self.versions[tree.project]
        read = migrated(keys, tree.version, versions)
        self.ambiguous += len(read.ambiguous)
        self.gone += len(read.gone)
        unsure = {key for parts in read.ambiguous.values() for key in parts}
        chosen = dict.fromkeys(read.keys, 1.0)
        could = [key for key in asked(tree.version, versions) if key not in chosen and key not in unsure]
        return chosen, dict.fromkeys(could, 0.0)

    def newest(self, form: str, key: str) -> str | None:
        """What a tag is called today; None where it was split or taken out, or means another thing now."""
        tree = self.by_form.get(form)
        if tree is None:
            return key
        versions = self.versions[tree.project]
        for version in range(tree.version + 1, max(versions) + 1):
            became = versions[version].became(key)
            if len(became) != 1:
                return None
            key = became[0]
        return key


def voices(given: Annotation, task: Task, trees: Trees, *, categories: str, harmful: str) -> list[Voice]:
    """What an answer says of each text that it speaks of.

    A tag of a taxonomy implies those above it; marked words say that the text they stand in holds what they are
    marked with; a report of an answer under a taxonomy tags that answer.
    """
    found: dict[int, dict[str, float]] = {}
    spans: dict[int, list[dict[str, Any]]] = {}
    chosen: dict[int, list[str]] = {}
    reported: dict[int, list[str]] = {}
    listed = given.value(categories)
    voice = given.value(harmful)
    tree = given.form in trees.by_form
    whole = said = found.setdefault(WHOLE, {})
    if voice is not None:
        said["*"] = VOICES.get(str(voice), 0.5)
        said |= dict.fromkeys(map(str, listed or ()), said["*"])
    elif listed is not None and tree:
        chosen[WHOLE] = list(listed)
    elif listed is not None:
        said |= dict.fromkeys(map(str, listed if isinstance(listed, list) else [listed]), 1.0)
        said["*"] = float(bool(listed))
    for value in given.values:
        if value.question.startswith("category:") and value.candidate == WHOLE and value.number is not None:
            whole[value.question.removeprefix("category:")] = value.number
        elif value.candidate != WHOLE and value.question == categories and isinstance(value.value, list):
            chosen[value.candidate] = list(value.value)
        elif value.candidate != WHOLE and value.question == "flag" and tree:
            reported[value.candidate] = list(value.value or ())
    only = task.kind == "tag" and len(task.candidates) == 1
    for place, no, start, end, label in given.spans:
        text = WHOLE if only else no
        if name := trees.newest(given.form, label):
            mark = {"field": place, "candidate": no, "start": start, "end": end, "type": name}
            spans.setdefault(text, []).append(mark)
            reported.setdefault(text, []).append(label)
    volunteered: dict[int, frozenset[str]] = {}
    for no in sorted({*chosen, *reported}):
        keys = [*chosen.get(no, ()), *reported.get(no, ())]
        positive, negative = trees.named(given.form, keys) or (dict.fromkeys(keys, 1.0), {})
        found.setdefault(no, {}).update((negative if no in chosen else {}) | positive)
        if no not in chosen:
            volunteered[no] = frozenset(positive)
    told = {no: said for no, said in found.items() if said} or {WHOLE: {}}
    return [
        Voice((task.id, no), given.pseudonym, said, volunteered.get(no, frozenset()), tuple(spans.get(no, ())))
        for no, said in sorted(told.items())
    ]


def conversation(task: Task, no: int) -> tuple[tuple[Message, ...], str]:
    """The messages of a text and its direction: the prompt as it came in, or the answer that went out."""
    if no == WHOLE and task.kind == "tag" and len(task.candidates) == 1:
        no = 0
    if no == WHOLE:
        return task.messages, str(task.meta.get("direction", "input"))
    return (*task.messages, Message(role="assistant", content=task.candidates[no])), "output"

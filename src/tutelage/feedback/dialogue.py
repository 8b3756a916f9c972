"""Free dialogue: a person writes, two to four blind generators answer side by side, the person picks, and so on.

Each turn is a task whose candidates are the answers; what the person says of them is an answer like any other (tiers,
"all bad", strength, a rewrite). The conversation goes on from the answer that was chosen, or from the rewrite; where
all were bad and nothing was written, from before the message. So every turn is a preference, and a dialogue as it was
chosen is a demonstration.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tutelage.core.errors import DataError, TutelageError, UpstreamError
from tutelage.core.records import Example, Message
from tutelage.feedback import api, assign, candidates
from tutelage.feedback.identity import telling
from tutelage.feedback.routes import BASE, Route
from tutelage.feedback.wire import DialogueView, EndDialogue, Item, NewCandidate, NewTask, NewTurn, WhichDialogue
from tutelage.generate.generator import Generator, Sampling
from tutelage.store import answers, dialogues, tasks
from tutelage.store import slots as desk
from tutelage.store.answers import Annotation, NewAnnotation, Value
from tutelage.store.engine import Reader, Store, derived_id
from tutelage.store.people import Person
from tutelage.store.settings import DialogueSettings, ProjectSettings
from tutelage.store.tasks import Project, Task

ENDS = "ends"
"""The mark on the answer to a dialogue's last turn."""

LEASE_MS = 24 * 3_600_000
"""A turn is its person's own: nobody waits for its place."""


class Speakers:
    """The generators of dialogues: each is opened once and asked by a few people at a time, within a time limit.

    `open` gives the generator of a name. What is slow goes on in a thread of its own and is not waited for.
    """

    def __init__(self, open: Callable[[str], Generator], at_once: int = 4) -> None:
        self._open, self._at_once = open, at_once
        self._known: dict[str, tuple[Generator, threading.Semaphore]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[Generator, threading.Semaphore]:
        """A generator and its gate. A local model answers one batch at a time."""
        with self._lock:
            if name not in self._known:
                local = name.startswith(("model:", "bundle:", "release:"))
                self._known[name] = (self._open(name), threading.Semaphore(1 if local else self._at_once))
            return self._known[name]

    def ask(self, name: str, prompt: Example, sampling: Sampling, until: float) -> list[candidates.Candidate]:
        """Answers of one generator. Raises UpstreamError where it is too slow, too busy, or fails."""
        generator, gate = self.get(name)
        if not gate.acquire(timeout=max(0.0, until - time.monotonic())):
            raise UpstreamError("it is busy with other conversations")
        try:
            found = generator.generate([prompt], sampling)[0]
        finally:
            gate.release()
        wrong = [each.error or "it gave no answer" for each in found if each.finish == "error"]
        if len(wrong) == len(found):
            raise UpstreamError(wrong[0] if wrong else "it gave no answer")
        return [
            candidates.Candidate(each.message.content.strip(), [generator.name], each.seed, each.finish)
            for each in found
            if each.finish != "error"
        ]

    def answer(
        self, names: Sequence[str], prompt: Example, sampling: Sampling, seconds: float
    ) -> tuple[list[candidates.Candidate], list[str]]:
        """Answers of these generators, asked side by side (a name that stands twice answers twice), and why some are
        missing. Nobody is told who: a reason names no generator."""
        until = time.monotonic() + seconds
        told: queue.Queue[tuple[int, list[candidates.Candidate] | str]] = queue.Queue()
        wanted = {name: names.count(name) for name in dict.fromkeys(names)}

        def one(at: int, name: str, many: int) -> None:
            try:
                told.put((at, self.ask(name, prompt, sampling.model_copy(update={"n": many}), until)))
            except TutelageError as error:
                told.put((at, str(error)))
            except Exception as error:  # a generator of somebody else must not take the conversation down
                told.put((at, f"it failed: {type(error).__name__}"))

        for at, (name, many) in enumerate(wanted.items()):
            threading.Thread(target=one, args=(at, name, many), name="dialogue", daemon=True).start()
        found: dict[int, list[candidates.Candidate] | str] = {}
        while len(found) < len(wanted):
            try:
                at, said = told.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            found[at] = said
        said_by = [found.get(at, f"it did not answer within {seconds:g} seconds") for at in range(len(wanted))]
        made = [each for said in said_by if not isinstance(said, str) for each in said]
        return made, [said for said in said_by if isinstance(said, str)]


@dataclass(frozen=True)
class Standing:
    """Where a dialogue stands: the conversation so far, and its last turn if that waits for its person."""

    id: str
    messages: tuple[Message, ...]
    turns: int
    waiting: dialogues.Turn | None
    last: Annotation | None
    """The newest answer that passed nothing over."""
    ended: bool


# what is asked of it


def view(store: Store, person: Person, project: str, dialogue: str = "") -> DialogueView:
    """A dialogue of this person, or their newest that has not ended; an empty one where there is none."""
    where, _ = _project(store, person, project)
    return _view(store, person, where, _standing(store, person, where, dialogue))


def say(store: Store, person: Person, project: str, new: NewTurn, speakers: Speakers) -> DialogueView:
    """Put a message to the generators; their answers wait for this person's word. The same key is asked once.

    Where no generator answers, nothing is stored and `problem` says why: the message can be sent again.
    """
    where, settings = _project(store, person, project)
    now = _standing(store, person, where, new.dialogue)
    if not now.turns:  # sent twice at the same time it begins one dialogue
        now = replace(now, id=derived_id("dialogue", person.id, where.id, new.key))
        if dialogues.turns(store, where.id, dialogue=now.id):  # it was sent before, and that dialogue has ended since
            return _view(store, person, where, _standing(store, person, where, now.id))
    if now.waiting is not None:
        if tasks.load(store, [now.waiting.task])[now.waiting.task].meta.get("sent") == new.key:
            return _view(store, person, where, now)
        raise DataError("the last answers have not been judged", key="dialogue", todo="Choose one of them first")
    if now.ended:
        raise DataError("this dialogue has ended", key="dialogue", todo="Begin another one")
    if now.turns >= settings.turns:
        raise DataError(f"a dialogue has at most {settings.turns} turns", key="dialogue", todo="End it, begin another")
    if not new.message.strip():
        raise DataError("the message is empty", key="message")
    system = (Message(role="system", content=settings.system),) if settings.system and not now.messages else ()
    messages = (*system, *now.messages, Message(role="user", content=new.message))
    stream = assign.seeded("speakers", now.id, now.turns)
    order = list(settings.generators)
    stream.shuffle(order)
    names = [order[at % len(order)] for at in range(settings.candidates)]
    sampling = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=int.from_bytes(hashlib.sha256(f"{now.id}/{now.turns}".encode()).digest()[:4], "big"),
    )
    prompt = Example(messages=messages, tags={"id": f"{now.id}/{now.turns}"})
    drawn, missing = speakers.answer(names, prompt, sampling, settings.timeout_s)
    pool = candidates.Pool(prompt)
    candidates.choose(pool, drawn, settings.candidates, settings.alike, telling(settings.generators))
    notes = [f"An answer is missing: {each}." for each in dict.fromkeys(missing)]
    if pool.dropped["near-identical"]:
        notes.append("Some answers were the same and are shown as one.")
    if not pool.kept:
        why = "; ".join(dict.fromkeys(missing)) or ("they told which model wrote them" if drawn else "there is none")
        return _view(store, person, where, now, problem=f"No answer can be shown: {why}. Send your message again.")
    stream.shuffle(pool.kept)  # numbers must not tell who wrote what
    task = NewTask(
        key=f"{now.id}/{now.turns}",
        kind="dialogue",
        messages=messages,
        candidates=tuple(
            NewCandidate(content=one.text, producer=one.producers[0], meta={"by": one.producers, "alike": one.alike})
            for one in pool.kept
        ),
        people=(person.name,),
        required=1,
        cluster=now.id,
        meta={"origin": "dialogue", "source": "dialogue", "licence": settings.licence, "turn": now.turns,
              "sent": new.key},
    )  # fmt: skip
    api.put_tasks(store, where, [task], {person.name: person.id})
    made = _standing(store, person, where, now.id)
    if made.waiting is None or tasks.load(store, [made.waiting.task])[made.waiting.task].meta.get("sent") != new.key:
        raise DataError("another message of this dialogue was sent at the same time", key="dialogue",
                        todo="Look at it again")  # fmt: skip
    return _view(store, person, where, made, notes=notes)


def end(store: Store, person: Person, project: str, asked: EndDialogue) -> DialogueView:
    """Mark a dialogue as finished: a revision of the answer to its last turn that was not skipped.

    Ending it again changes nothing.
    """
    where, _ = _project(store, person, project)
    now = _standing(store, person, where, asked.dialogue)
    if now.waiting is not None:
        raise DataError("the last answers have not been judged", key="dialogue", todo="Choose one, or skip them, first")
    if now.last is None:
        raise DataError("nothing was chosen in this dialogue, so there is nothing to end", key="dialogue")
    if not now.ended:
        row = desk.held(store, now.last.slot)
        ranks = [(no, tier) for tier, members in enumerate(now.last.tiers) for no in members]
        again = NewAnnotation(
            slot=now.last.slot,
            epoch=row.lease_epoch,
            key=f"{person.id}/end/{now.id}",
            shown=now.last.shown,
            values=(*now.last.values, Value(ENDS, number=1.0)),
            ranks=[*ranks, *((no, None) for no in now.last.unrankable)],
            spans=now.last.spans,
            active_ms=now.last.active_ms,
        )
        receipt = answers.submit(store, person.id, person.kind, [again])[0]
        if receipt.status == "stale":
            raise DataError("the dialogue has changed", key="dialogue", todo="Look at it again")
    return _view(store, person, where, _standing(store, person, where, now.id))


def routes(speakers: Speakers) -> tuple[Route, ...]:
    """The requests of dialogues, over these generators."""
    place = f"{BASE}/projects/{{project}}/dialogue"
    return (
        Route(
            "GET",
            place,
            "feedback:answer",
            lambda store, who, at, body: view(store, who, at["project"], at["dialogue"]),
            DialogueView,
            summary="Your dialogue that has not ended",
            query=WhichDialogue,
        ),
        Route(
            "POST",
            place,
            "feedback:answer",
            lambda store, who, at, body: say(store, who, at["project"], body, speakers),
            DialogueView,
            NewTurn,
            "Say something: the answers wait for your word; sending it again changes nothing",
        ),
        Route(
            "POST",
            f"{place}/end",
            "feedback:answer",
            lambda store, who, at, body: end(store, who, at["project"], body),
            DialogueView,
            EndDialogue,
            "End your dialogue",
        ),
    )


def demonstrations(store: Reader, project: Project, people_of: str = "live") -> list[Example]:
    """Dialogues as they were chosen, each up to its last turn with an answer that was good enough to go on from.

    Tags say whose words these are, and `rows` leads to the answers behind it.
    """
    given = {each.task: each for each in answers.read(store, project.name, people=people_of)}
    order: dict[str, list[dialogues.Turn]] = {}
    for turn in dialogues.turns(store, project.id):
        if turn.task in given:
            order.setdefault(turn.dialogue, []).append(turn)
    known = tasks.load(store, [turn.task for turns in order.values() for turn in turns])
    found = []
    for name, turns in order.items():
        good = [(turn, said) for turn in turns if (said := chosen(known[turn.task], given[turn.task])) is not None]
        if not good or not known[good[-1][0].task].messages:
            continue
        last, said = good[-1]
        task = known[last.task]
        tags = {
            "id": name,
            "cluster": name,
            "source": "dialogue",
            "licence": task.meta.get("licence", "not-stated"),
            "people": people_of,
            "person": given[last.task].pseudonym,
            "turns": len(good),
            "rows": [given[turn.task].id for turn, _ in good],
        }
        messages = (*task.messages, Message(role="assistant", content=said))
        found.append(Example(messages=messages, target=said, tags=tags))
    return found


def chosen(task: Task, given: Annotation) -> str | None:
    """What a conversation goes on from: the rewrite, else the best answer (of tied ones that which stood first); None
    where all were bad and nothing was written in their place."""
    rewrite = next((each.text for each in given.values if each.question == "rewrite" and each.text), None)
    if rewrite is not None:
        return rewrite
    if given.status != "submitted" or not given.tiers or any(each.question == "all_bad" for each in given.values):
        return None
    place = {no: at for at, no in enumerate(given.shown)}
    best = min(given.tiers[0], key=lambda no: place.get(no, no))
    return task.candidates[best] or None


# how it stands


def _project(store: Store, person: Person, name: str) -> tuple[Project, DialogueSettings]:
    where = tasks.get_project(store, name)
    api.may_answer(person, where)
    if where.kind != "dialogue":
        raise DataError(f"{name!r} is a project of kind {where.kind}", key="project", todo="Claim its tasks instead")
    if where.state != "open":
        raise DataError(f"the project is {where.state}", key="project")
    settings = ProjectSettings.of(where.settings).dialogue
    if settings is None:
        raise DataError("nobody answers here", key="settings.dialogue", todo="A lead must name generators")
    return where, settings


def _standing(store: Store, person: Person, where: Project, dialogue: str) -> Standing:
    """Raises DataError for a dialogue of somebody else (or of nobody)."""
    mine = dialogues.turns(store, where.id, person=person.id)
    given = {each.task: each for each in answers.read(store, where.name, person=person.id, status=None)}
    over = {turn.dialogue for turn in mine if turn.task in given and _says(given[turn.task], ENDS)}
    if dialogue and dialogue not in {turn.dialogue for turn in mine}:
        raise DataError("there is no such dialogue of yours", key="dialogue", todo="Leave it empty to begin one")
    if not dialogue:
        dialogue = next((turn.dialogue for turn in reversed(mine) if turn.dialogue not in over), "")
    turns = [turn for turn in mine if turn.dialogue == dialogue] if dialogue else []
    if not turns:
        return Standing("", (), 0, None, None, False)
    last = turns[-1]
    task = tasks.load(store, [last.task])[last.task]
    answered = given.get(last.task) if last.state not in ("open", "leased") else None
    if answered is None:
        return Standing(dialogue, task.messages, len(turns), last, None, False)
    said = chosen(task, answered)
    gone_on = (*task.messages, Message(role="assistant", content=said)) if said is not None else task.messages[:-1]
    said_of = [given[turn.task] for turn in turns if turn.task in given and given[turn.task].status == "submitted"]
    return Standing(dialogue, gone_on, len(turns), None, said_of[-1] if said_of else None, dialogue in over)


def _says(given: Annotation, question: str) -> bool:
    return any(each.question == question for each in given.values)


def _view(
    store: Store, person: Person, where: Project, now: Standing, notes: Sequence[str] = (), problem: str = ""
) -> DialogueView:
    item: Item | None = None
    messages = now.messages
    if now.waiting is not None:
        held = dialogues.take(store, person.id, now.waiting.task, LEASE_MS)
        item = api.held_item(store, person, held.slot)
        messages = item.messages
    return DialogueView(
        dialogue=now.id if now.turns else "",
        project=where.name,
        messages=messages,
        item=item,
        turns=now.turns,
        ended=now.ended,
        notes=list(notes),
        problem=problem,
    )

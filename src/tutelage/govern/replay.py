"""One decision of the service, made again offline: the same policy, the same heads, the input as it is kept.

The policy is found by its hash, the heads by the names that stand in the verdicts. What is not here any more is named,
and nothing is guessed in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from tutelage.core.artifact import Root
from tutelage.core.errors import NotFound, TutelageError
from tutelage.core.records import Action, Message, Record, Verdict
from tutelage.guard.opened import bare, open_parts, stand
from tutelage.guard.scan import Scanner, Seen
from tutelage.guard.written import PII, SURFACES, Surface
from tutelage.store import releases, review, standings, traffic
from tutelage.store.engine import Reader

CLOSE = 1e-6
"""How far two calibrated probabilities may lie apart and be the same."""
_PLACEHOLDER = re.compile(r"\[[A-Z]{2,12}-[0-9a-f]{8}(?:[0-9a-f]{8})?\]")


class Replayed(Record):
    """What came of deciding again."""

    decision: str
    outcome: Literal["same", "differs", "missing"]
    before: Action
    after: Action | None = None
    policy: str = ""
    """Hash of the policy then."""
    heads: tuple[str, ...] = ()
    """The guards that were heard then."""
    differs: tuple[str, ...] = ()
    """What is not as it was, a sentence each."""
    missing: tuple[str, ...] = ()
    """What is not here any more, a sentence each."""
    notes: tuple[str, ...] = ()
    """What could not be compared, and why."""


def replay(store: Reader, root: Root, decision: str) -> Replayed:
    """Decide again. Raises NotFound for an unknown decision."""
    row = next(iter(traffic.decisions(store, ids=[decision], shadow=None)), None)
    if row is None:
        todo = "`/review/decisions` shows decisions, and so does the field `id` of the store's traffic"
        raise NotFound(f"there is no decision {decision!r}", key="decision", todo=todo)
    request = traffic.requests(store, ids=[row.request])[0]
    found = Replayed(
        decision=row.id,
        outcome="missing",
        before=row.action,
        policy=row.policy,
        heads=tuple(sorted({each.judge for each in row.verdicts})),
    )
    if row.direction == "output" and request.answer is None and not row.verdicts and row.action == "allow":
        nothing = "nothing had been written when the request was stopped: no guard was asked"
        return found.model_copy(update={"outcome": "same", "after": row.action, "notes": (nothing,)})
    missing = []
    if row.shadow:
        missing.append("it is what a guard in shadow said: no policy decided anything on it")
    if not request.messages:
        missing.append("the words of the request were erased")
    if row.direction == "output" and request.answer is None:
        missing.append("the words of the answer were erased, or none was made")
    scanner = None
    try:
        scanner = _scanner(store, root, row.release)
        stand(scanner.policy, standings.switches(store, row.at), standings.expired(store, row.at))
    except TutelageError as error:
        missing.append(f"the guards of {row.release[:24] or 'that service'}: {error.message}")
    if scanner is not None and row.policy and scanner.policy.hash != row.policy:
        missing.append(f"the policy {row.policy[:16]}: what is here under that release is {scanner.policy.hash[:16]}")
    if scanner is not None:
        here = {*scanner.judges, PII}
        missing += [f"the guard {name!r}" for name in found.heads if name not in here]
    if missing or scanner is None:
        return found.model_copy(update={"missing": tuple(missing)})
    opened = _opened(store, row.conversation)
    messages = tuple(_with(each, opened) for each in request.messages)
    notes = []
    left = sum(len(_PLACEHOLDER.findall(each.content)) for each in messages)
    if left:
        notes.append(f"{left} placeholders could not be opened any more: what was personal data is not compared")
    said = request.answer.content if request.answer and row.direction == "output" else None
    surface: Surface = next((each for each in SURFACES if each == request.surface), "scan")
    scan = scanner.scan(messages, said, surface=surface, tenant=row.tenant)
    seen = scan.output if row.direction == "output" and scan.output is not None else scan.input
    if row.direction == "output" and row.redactions:
        notes.append("the answer is kept without its personal data: what was redacted in it is not compared")
    stopped = any(": personal data (" in each for each in row.reasons)  # what was kept of it is masked
    personal = bool(left or stopped or (row.direction == "output" and row.redactions))
    cut = row.direction == "output" and request.finish in ("blocked", "error")
    differs, more = _differences(row.action, row.reasons, row.verdicts, seen, personal, cut)
    return found.model_copy(
        update={
            "outcome": "differs" if differs else "same",
            "after": seen.decision.action,
            "differs": tuple(differs),
            "notes": (*notes, *more),
        }
    )


def _scanner(store: Reader, root: Root, release: str) -> Scanner:
    """The guards that a release, or a bundle by itself, served with. Raises NotFound."""
    if not release:
        return bare()
    bundle = release
    if ":" not in release and not re.fullmatch(r"[0-9a-f]{64}", release):
        bundle = releases.get(store, release).bundle
    return open_parts(root.find(bundle if ":" in bundle else f"bundle:{bundle}"), root).scanner


def _opened(store: Reader, conversation: str) -> Mapping[str, str]:
    return {name: value for name, (_, value) in review.vault_get(store, conversation).items()}


def _with(message: Message, known: Mapping[str, str]) -> Message:
    """The message with its placeholders opened, as the guards read it."""

    def opened(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: known.get(found[0], found[0]), text)

    calls = tuple(each.model_copy(update={"arguments": opened(each.arguments)}) for each in message.tool_calls)
    parts = tuple(each.model_copy(update={"text": opened(each.text)}) for each in message.parts)
    update = {"content": opened(message.content), "reasoning": opened(message.reasoning)}
    return message.model_copy(update={**update, "tool_calls": calls, "parts": parts})


def _differences(
    action: Action, reasons: Sequence[str], verdicts: Sequence[Verdict], seen: Seen, personal: bool, cut: bool
) -> tuple[list[str], list[str]]:
    """(what differs, what could not be compared). `personal`: not all that was personal data can be read any more.
    `cut`: the answer was ended before the guards were done with it, so that by now they may have heard more."""
    differs, notes = [], []
    now = {each.judge: each for each in seen.verdicts}
    failed = False
    for was in verdicts:
        after = now.get(was.judge)
        if was.status != "ok":
            failed = True
            notes.append(f"{was.judge} said {was.status} then: a replay repeats no clock")
        elif after is None:
            differs.append(f"{was.judge} was heard then and is not now")
        elif was.judge != PII:
            for name in sorted({*was.scores, *after.scores}):
                one, two = was.scores.get(name), after.scores.get(name)
                if one is None or two is None or abs(one - two) > CLOSE:
                    heard_more = cut and two is not None and (one or 0.0) < two
                    (notes if heard_more else differs).append(
                        f"{was.judge}: {name} was {_number(one)} and is {_number(two)}"
                    )
    rules_then, rules_now = ({each.partition(":")[0] for each in some} for some in (reasons, seen.decision.reasons))
    loose = personal or failed
    if action != seen.decision.action and not (loose and not differs):
        differs.append(f"the decision was {action} and is {seen.decision.action}")
    elif action != seen.decision.action:
        notes.append(f"the decision was {action} and is {seen.decision.action}, which the above may explain")
    if rules_then != rules_now:
        what = f"the rules that fired were {_list(rules_then)} and are {_list(rules_now)}"
        (notes if loose else differs).append(what)
    return differs, notes


def _number(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.6f}"


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""An item asked in another form, its label proven to hold: or the reason why there is no such form.

Families change the last question only; what stands before it (system prompt, examples) stays. Each form is checked by
text/preserve.py, which knows nothing of how it was made. What fails is left out, counted and named, never used.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from tutelage.core.config import nearest
from tutelage.core.records import Example
from tutelage.evaluate.suite import golds_of, item_id, rank
from tutelage.text import preserve, vary
from tutelage.text.language import identify

LETTERS = ("typos", "homoglyphs", "zero-width")
"""Families that change letters, and therefore leave answers, names and numbers alone."""
ENGLISH = ("paraphrase", "prompt", "distractor")
"""Families whose wordings are English, beside all learners and dialects."""
LEARNERS = tuple(f"learner:{name}" for name in vary.LEARNERS)
DIALECTS = tuple(f"dialect:{name}" for name in vary.DIALECTS)
FAMILIES = (*vary.PERTURBATIONS, "prompt", "distractor", "options", *LEARNERS, *DIALECTS)
GROUPS: Mapping[str, tuple[str, ...]] = {"learners": LEARNERS, "dialects": DIALECTS, "all": FAMILIES}
"""Names that stand for several families."""
UNFIT: Mapping[str, Mapping[str, str]] = {
    "translate": dict.fromkeys(
        ("casing", "punctuation", "word-order", "paraphrase", "distractor", *LEARNERS, *DIALECTS),
        "what is to be translated would change",
    ),
    "summarise": dict.fromkeys(("distractor", "word-order"), "what is to be summarised would change"),
    "perplexity": dict.fromkeys(FAMILIES, "the text itself is what is weighed"),
    "pair": dict.fromkeys(FAMILIES, "the texts themselves are what is weighed"),
}
"""Kind of item -> families that would change its label, and why."""
FRAMES: tuple[tuple[str, str], ...] = (
    ("Question: ", ""), ("Please read this with care. ", ""), ("Hello. ", ""), ("I have a question. ", ""),
    ("Here is a task for you: ", ""), ("", " Thank you."), ("", " Please answer."), ("Listen. ", " Please answer."),
)  # fmt: skip
"""Ways to put an instruction: before and after the text itself."""
ASIDES = (
    "The kettle in the kitchen hums softly.", "A grey cloud drifts over the hills.", "Somebody left an umbrella here.",
    "The clock on the wall ticks.", "A bicycle leans against the fence.", "Dust dances in the sunlight.",
    "The curtains are drawn.", "A sparrow hops along the windowsill.", "The radio plays an old tune.",
)  # fmt: skip
"""Sentences that have nothing to do with anything; one is used where it shares no word with the item."""
TRIES = 3
"""Forms tried before an item is left out of a family."""


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Families by name, `learners`, `dialects` and `all` written out, each once. Raises ValueError for others."""
    found: dict[str, None] = {}
    for name in names:
        if name not in FAMILIES and name not in GROUPS:
            near = nearest(name, (*FAMILIES, *GROUPS))
            hint = f"did you mean {near!r}?" if near else f"there are: {', '.join((*FAMILIES, *GROUPS))}"
            raise ValueError(f"no perturbation {name!r}; {hint}")
        found.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return tuple(found)


def vocabulary(items: Iterable[Example]) -> frozenset[str]:
    """The words of items in small letters: a slip that makes one of them into another may change what is asked."""
    return frozenset(
        word for item in items for message in item.messages for word in re.findall(r"[^\W_]+", message.content.lower())
    )


def perturbed(
    item: Example, family: str, *, seed: int = 0, strength: float = 1.0, words: Collection[str] = ()
) -> Example | str:
    """The item in another form, with tags `perturbation` and `original` (its id); or why there is none.

    `strength` scales how much is changed (1: as much as people do). Equal arguments give the equal form.
    """
    kind = str(item.tags.get("kind", ""))
    unfit = UNFIT.get(kind, {}).get(family)
    if unfit:
        return f"does not fit: {unfit}"
    place = next((at for at in range(len(item.messages) - 1, -1, -1) if item.messages[at].role in ("user", "text")), -1)
    if place < 0 or not item.messages[place].content.strip():
        return "there is no text to change"
    text = item.messages[place].content
    own = family == "paraphrase" and _variants(item)
    if (family in ENGLISH or family in LEARNERS or family in DIALECTS) and not own and not _english(item, text):
        return "does not fit: the text is not English"
    if family == "options":
        return _options(item, place, seed)
    answers = [*golds_of(item), *item.choices]
    why = ""
    for turn in range(TRIES):
        number = int(rank(seed + turn, f"{item_id(item)}/{family}")[:12], 16)
        changed = _changed(item, text, family, number, strength, answers)
        check = "variant" if own else family  # wordings that somebody wrote may use other words
        fault = preserve.lost(text, changed, check, answers=answers, vocabulary=words) if changed else None
        if changed and fault is None:
            return _version(item, place, changed, family)
        why = why or fault or "nothing to change"
    return why


def _changed(item: Example, text: str, family: str, number: int, strength: float, answers: Sequence[str]) -> str | None:
    rng = random.Random(f"{family}:{number}")
    if family == "prompt":
        frames = [frame for frame in FRAMES if not (frame[1] and item.messages[-1].role == "text")]
        before, after = rng.choice(frames)
        return f"{before}{text}{after}"
    if family == "distractor":
        count = max(1, round(strength))
        told = vary.stems(" ".join([text, *answers]))
        fit = [each for each in rng.sample(ASIDES, len(ASIDES)) if not vary.stems(each) & told]
        return f"{' '.join(fit[:count])} {text}" if len(fit) >= count else None
    if family in LEARNERS or family in DIALECTS:
        return vary.write_as(text, family.partition(":")[2], number, strength=strength)
    if family == "paraphrase" and (own := _variants(item)):
        return rng.choice(own)
    keep = preserve.kept_phrases(text, answers) if family in LETTERS else preserve.marks(text)
    return vary.perturb(text, family, number, keep, strength=strength)


def _variants(item: Example) -> list[str]:
    """Other wordings of the question that the item brings itself (`tags.variants`)."""
    return [str(each) for each in item.tags.get("variants") or () if str(each).strip()]


def _english(item: Example, text: str) -> bool:
    said = item.tags.get("language") or item.tags.get("lang")
    if said:
        return str(said).lower().startswith("en")
    found = identify(text).code
    return found == "en" or (found == "und" and text.isascii() and bool(vary.stems(text)) and _little(text))


def _little(text: str) -> bool:
    words = text.lower().split()
    return 4 * sum(word.strip(".,;:!?") in vary.LITTLE for word in words) >= len(words)


def _version(item: Example, place: int, text: str, family: str, target: str | None = None) -> Example:
    messages = list(item.messages)
    messages[place] = messages[place].model_copy(update={"content": text})
    tags = item.tags | {"id": f"{item_id(item)}~{family}", "perturbation": family, "original": item_id(item)}
    update: dict[str, object] = {"messages": tuple(messages), "tags": tags}
    if target is not None:
        update["target"] = target
    return item.model_copy(update=update)


_LINE = r"(?m)^(?P<head>[ \t]*\(?{letter}[).:\]][ \t]*)(?P<text>\S.*?)[ \t]*$"


def _options(item: Example, place: int, seed: int) -> Example | str:
    """The options in another order, where they stand in the text: as texts, or behind the letters that are the
    choices (the target is then the letter behind which the right text now stands)."""
    text, choices = item.messages[place].content, item.choices
    if len(choices) < 2:
        return "does not fit: there are no choices"
    if not isinstance(item.target, str) or item.target not in choices:
        return "does not fit: the target is not among the choices"
    order = _reordered(item, seed)
    if item.tags.get("options") == "letters":  # they are listed when it is asked, in the order of the choices
        groups = item.tags.get("groups")
        moved = {"groups": tuple(groups[at] for at in order)} if groups else {}
        changed = item.model_copy(update={"choices": tuple(choices[at] for at in order), "tags": item.tags | moved})
        return _version(changed, place, text, "options")
    lettered = all(len(each.strip()) <= 2 for each in choices)
    found: list[tuple[int, int]] = []
    for each in choices:
        pattern = (
            _LINE.format(letter=re.escape(each.strip())) if lettered else rf"(?<!\w)(?P<text>{re.escape(each)})(?!\w)"
        )
        places = [match.span("text") for match in re.finditer(pattern, text)]
        if len(places) != 1:
            return "does not fit: the options do not stand in the text, once each"
        found.append(places[0])
    ordered = sorted(found)
    if any(left[1] > right[0] for left, right in itertools.pairwise(ordered)):
        return "does not fit: one option contains another"
    said = [text[start:end] for start, end in found]
    if lettered and len(set(said)) < len(said):
        return "does not fit: two options are equal"
    out, last = "", 0
    for start, end in ordered:
        out += text[last:start] + said[order[found.index((start, end))]]
        last = end
    out += text[last:]
    if out == text:
        return "nothing to change"
    right = choices.index(item.target)
    target = choices[order.index(right)] if lettered else item.target
    fault = _still_right(item, out, target, said[right] if lettered else item.target, lettered)
    return fault or _version(item, place, out, "options", target)


def _reordered(item: Example, seed: int) -> list[int]:
    """Another order of the choices than their own."""
    rng = random.Random(f"options:{seed}:{item_id(item)}")
    own = list(range(len(item.choices)))
    order = list(own)
    while order == own:
        rng.shuffle(order)
    return order


def _still_right(item: Example, text: str, target: str, right: str, lettered: bool) -> str | None:
    """Whether the target leads to the right text, read from the new text alone."""
    if not lettered:
        once = len(re.findall(rf"(?<!\w){re.escape(right)}(?!\w)", text)) == 1
        return None if once and target == item.target else "the right option was lost"
    found = re.search(_LINE.format(letter=re.escape(target.strip())), text)
    return None if found and found["text"] == right else "the letter no longer leads to the right option"

"""Nothing passes that a blocking guard has not scored past, whatever the chunks."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.records import Example, Message, Verdict
from tutelage.guard.barrier import Barrier
from tutelage.guard.policy import Category, Guard, Policy, PolicyFile, Rule, Taxonomy, When, Where
from tutelage.judge.judge import WindowedJudge, answer_of
from tutelage.judge.rules import PiiJudge
from tutelage.text.pii import find

TAXONOMY = Taxonomy(categories={"crime": Category()})
OUT = Where("output", "content", "chat")
BAD = "SECRET-CODE"


class Marker(WindowedJudge):
    """Fires on a fixed string."""

    name = "marker"
    window, stride = 128, 16

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        return [Verdict(judge="marker", scores={"crime": float(BAD in answer_of(e))}) for e in examples]


class Silent(Marker):
    """Never gives an opinion."""

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        raise RuntimeError("guard down")


class Nan(Marker):
    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        return [Verdict(judge="marker", scores={"crime": float("nan")}) for _ in examples]


def policy(*rules: Rule, hold: int = 64) -> Policy:
    return Policy(PolicyFile(rules=rules), TAXONOMY, [Guard("marker", {"output": ("crime",), "input": ("crime",)})])


BLOCK = Rule(id="r1", when=When(direction=("output",)), category="crime", threshold=0.5, action="block")
REDACT = Rule(id="r2", when=When(direction=("output",)), pii=("email", "phone"), action="redact")
ASK = Example(messages=(Message(role="user", content="hello"),))


def run(
    text: str, cuts: Sequence[int], *rules: Rule, judge: Marker | None = None, hold: int = 64
) -> tuple[str, Barrier]:
    mine = judge or Marker()
    watchers = {"marker": mine.watch(ASK), "pii": PiiJudge().watch(ASK)}
    barrier = Barrier(policy(*rules), watchers, OUT, hold_back=hold)
    out, at = "", 0
    for cut in [*sorted(cuts), len(text)]:
        passed = barrier.feed(text[at:cut])
        out, at = out + passed.text, cut
        if passed.stop:
            return out, barrier
    return out + barrier.close().text, barrier


WORDS = st.lists(
    st.sampled_from(["a", "town", "hall ", " ", "é", "SECRET", "-", "漢", "\n", "word "]), max_size=120
).map("".join)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, st.lists(st.integers(0, 1200), max_size=40))
def test_not_a_character_of_a_blocked_passage_leaves(before: str, after: str, cuts: list[int]) -> None:
    text = before + BAD + after
    out, barrier = run(text, [cut for cut in cuts if cut <= len(text)], BLOCK)
    assert barrier.decision.action == "block"
    assert text.startswith(out)
    assert len(out) <= text.index(BAD)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(st.integers(0, 1200), max_size=40))
def test_harmless_text_leaves_whole(text: str, cuts: list[int]) -> None:
    text = text.replace(BAD, "")
    out, barrier = run(text, [cut for cut in cuts if cut <= len(text)], BLOCK)
    assert out == text and barrier.decision.action == "allow"


MAILS = st.sampled_from(["ann.lee@example.org", "x.y_z+tag@mail.example.com", "o@b.io"])


@settings(max_examples=150, deadline=None)
@given(WORDS, MAILS, WORDS, MAILS, st.lists(st.integers(0, 1500), max_size=60), st.integers(0, 80))
def test_personal_data_never_leaves_under_any_chunking(
    first: str, mail: str, second: str, other: str, cuts: list[int], hold: int
) -> None:
    text = f"{first} {mail} {second}\nto {other} now"
    out, barrier = run(text, [cut for cut in cuts if cut <= len(text)], REDACT, hold=hold)
    assert mail not in out and other not in out
    assert out.count("[EMAIL]") == 2 and not [s for s in find(out) if s.type == "email"]
    assert out.replace("[EMAIL]", "") == text.replace(mail, "").replace(other, "")
    assert barrier.decision.action == "redact"


def test_a_guard_that_fails_blocks_unless_the_policy_says_otherwise() -> None:
    for judge in (Silent(), Nan()):
        out, barrier = run("nothing bad here " * 10, [5, 50], BLOCK, judge=judge)
        assert out == "" and barrier.decision.action == "block"
        assert "r1: marker" in barrier.decision.reasons[0]
    opened = BLOCK.model_copy(update={"on_error": "flag"})
    out, barrier = run("nothing bad here " * 10, [5, 50], opened, judge=Silent())
    assert out == "nothing bad here " * 10 and barrier.decision.action == "flag"


def test_a_missing_watcher_blocks() -> None:
    barrier = Barrier(policy(BLOCK), {}, OUT)
    assert barrier.feed("hello " * 50).text == ""
    assert barrier.close().stop is not None


def test_what_is_held_is_bounded() -> None:
    text, worst = "lorem ipsum dolor " * 200, 0
    watchers = {"marker": Marker().watch(ASK), "pii": PiiJudge().watch(ASK)}
    barrier = Barrier(policy(BLOCK, REDACT), watchers, OUT)
    fed = 0
    for start in range(0, len(text), 4):
        barrier.feed(text[start : start + 4])
        fed += 4
        worst = max(worst, min(fed, len(text)) - barrier.released)
    assert worst <= 64 + 24


@pytest.mark.parametrize("count", [150, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_zero_leaked_characters_in_many_random_chunkings(count: int) -> None:
    dice = random.Random(0)
    for _ in range(count):
        before = "".join(dice.choice("ab \n") for _ in range(dice.randrange(300)))
        text = before + BAD + "x" * dice.randrange(100)
        cuts = [dice.randrange(len(text)) for _ in range(dice.randrange(30))]
        out, _ = run(text, cuts, BLOCK)
        assert before.startswith(out)

"""Nothing passes that a blocking guard has not scored past, whatever the chunks."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.records import Example, Message, Verdict
from tutelage.guard.barrier import Barrier
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.written import Category, Defaults, PolicyFile, Rule, Taxonomy, When, Where
from tutelage.judge.judge import Progress, Tap, Watcher, WindowedJudge, answer_of
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
    file = PolicyFile(rules=rules, defaults=Defaults(max_bound=1))  # its guard has no certificate
    return Policy(file, TAXONOMY, [Guard("marker", {"output": ("crime",), "input": ("crime",)})])


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


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("the mill is open, and so it goes on from day to day. " * 8, 6),  # the word that is being written
        ("Come to The Mill at nine (or ten) on Monday; it has 3 rooms! " * 8, 16),
        ("write to ann.lee@example.org now, " * 8, 20),
        ("its card is 4111 1111 1111 1111 today, " * 8, 25),
    ],
)
def test_nothing_is_held_but_16_tokens_beyond_what_may_become_personal_data(text: str, open_: int) -> None:
    """Each character is a token here."""
    barrier = Barrier(policy(REDACT), {"pii": PiiJudge().watch(ASK)}, OUT, hold_back=16)
    lags = []
    for fed, char in enumerate(text, 1):
        barrier.feed(char)
        lags.append(fed - barrier.released)
    assert max(lags) <= 16 + open_ and min(lags[-200:]) <= 17


def test_redactions_that_were_told_once_are_kept_until_they_leave() -> None:
    text = "to ann@example.org and bob@example.org, " + "then the mill is open all day " * 20
    barrier = Barrier(policy(REDACT), {"pii": PiiJudge().watch(ASK)}, OUT, hold_back=200)
    out = "".join(barrier.feed(char).text for char in text) + barrier.close().text
    assert out == text.replace("ann@example.org", "[EMAIL]").replace("bob@example.org", "[EMAIL]")


@pytest.mark.parametrize("hold", [0, 64])
def test_a_secret_without_an_end_leaves_nothing_and_is_not_held_for_ever(hold: int) -> None:
    key = "sk-" + "aB3xK9" * 4000
    keys = REDACT.model_copy(update={"pii": ("key",)})
    barrier, out = Barrier(policy(keys), {"pii": PiiJudge().watch(ASK)}, OUT, hold_back=hold), ""
    for at in range(0, len(key), 7):
        out += barrier.feed(key[at : at + 7]).text
    assert out == "[KEY]" and at + 7 - barrier.released <= hold + 7
    out += barrier.feed(" is it, ").text
    assert out + barrier.close().text == "[KEY] is it, "


class Fading(Marker):
    """Is sure at first and less so with every look."""

    def __init__(self) -> None:
        self.sure = 1.0

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        self.sure /= 2
        return [Verdict(judge="marker", scores={"crime": 2 * self.sure}) for _ in examples]

    def watch(self, conversation: Example) -> Watcher:
        return Latest(self, conversation)


class Latest:
    """Says what its judge says of the last part, and forgets what it said before."""

    def __init__(self, judge: Marker, conversation: Example) -> None:
        self.judge, self.read = judge, 0

    def feed(self, text: str, taps: Sequence[Tap] = ()) -> Progress:
        self.read += len(text)
        return Progress(self.read, self.judge.judge([ASK])[0])

    def close(self) -> Progress:
        return Progress(self.read, Verdict(judge="marker", scores={"crime": 0.0}))


def test_what_was_flagged_once_stays_flagged_to_the_end() -> None:
    """A guard may say less later on, and a guard of personal data tells what it found once."""
    flags = [rule.model_copy(update={"action": "flag"}) for rule in (BLOCK, REDACT)]
    text = "write to ann.lee@example.org, " + "then the mill is open all day " * 10
    mine = Fading()
    barrier = Barrier(policy(*flags), {"marker": mine.watch(ASK), "pii": PiiJudge().watch(ASK)}, OUT)
    seen = []
    for at in range(0, len(text), 10):
        barrier.feed(text[at : at + 10])
        seen.append(barrier.decision)
    assert seen[-1].action == "flag" and len(seen[-1].reasons) == 2
    barrier.close()
    assert barrier.decision.action == "flag"
    assert barrier.decision.reasons == ("r1: crime 1.000 > 0.500", "r2: personal data (email)")
    said = {verdict.judge: verdict for verdict in barrier.verdicts}
    assert said["marker"].scores == {"crime": 1.0} and [span.type for span in said["pii"].spans] == ["email"]


@pytest.mark.parametrize("count", [150, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_zero_leaked_characters_in_many_random_chunkings(count: int) -> None:
    dice = random.Random(0)
    for _ in range(count):
        before = "".join(dice.choice("ab \n") for _ in range(dice.randrange(300)))
        text = before + BAD + "x" * dice.randrange(100)
        cuts = [dice.randrange(len(text)) for _ in range(dice.randrange(30))]
        out, _ = run(text, cuts, BLOCK)
        assert before.startswith(out)

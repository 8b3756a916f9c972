"""Guards in tiers, and what a policy says of each: its time, its failures, its doubts; unary and in streams alike."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import ConfigError
from tutelage.core.records import Example, Message, Verdict
from tutelage.generate.generator import Sampling
from tutelage.guard.coverage import FAILURES, coverage, table
from tutelage.guard.opened import open_parts
from tutelage.guard.pipeline import Pipeline
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.request import Ask, Chunk
from tutelage.guard.scan import Scanner
from tutelage.guard.tools import PLAIN, Wants
from tutelage.guard.upstream import Delta
from tutelage.guard.written import Category, Defaults, GuardSettings, OnError, PolicyFile, Rule, Taxonomy, Where
from tutelage.judge.certificate import Certificate
from tutelage.judge.judge import WindowedJudge, answer_of

TAXONOMY = Taxonomy(categories={"crime": Category(), "hate": Category()})
KEY = b"k" * 32
OPEN = Defaults(max_bound=1, budget_ms=60_000)


class Says(WindowedJudge):
    """Scores by the words in the text: `surely` 0.9, `perhaps` 0.5; knows what it was asked."""

    window, stride = 4096, 16

    def __init__(self, name: str, surely: str = "steal", perhaps: str = "take") -> None:
        self.name, self.surely, self.perhaps = name, surely, perhaps
        self.asked: list[str] = []
        self.fails = False

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        texts = [answer_of(example) for example in examples]
        self.asked += texts
        if self.fails:
            raise RuntimeError("down")
        scores = [0.9 if self.surely in text else 0.5 if self.perhaps in text else 0.1 for text in texts]
        return [Verdict(judge=self.name, scores={"crime": score}) for score in scores]


class Pieces:
    """An upstream that answers in pieces of some size."""

    name = "pieces"

    def __init__(self, text: str, size: int = 3) -> None:
        self.text, self.size = text, size

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, sample: int = 0, wants: Wants = PLAIN
    ) -> AsyncGenerator[Delta]:
        for at in range(0, len(self.text), self.size):
            yield Delta(self.text[at : at + self.size])
        yield Delta("", "stop", 1, 1)

    async def close(self) -> None:
        pass


def house(
    *judges: Says, direction: str = "input", action: str = "block", unsure: str = "review", **guards: object
) -> Scanner:
    """A scanner whose guards stand in tiers, in order; each is unsure from 0.3 to 0.7 and fires above that."""
    rule = Rule.model_validate(
        {"id": "r", "when": {"direction": direction}, "category": "crime", "threshold": 0.7, "action": action}
        | {"unsure": unsure}
    )
    told = {judge.name: GuardSettings(tier=tier, band={"crime": (0.3, 0.7)}) for tier, judge in enumerate(judges)}
    for name, more in guards.items():
        told[name] = told[name].model_copy(update=dict(more))  # type: ignore[call-overload]
    file = PolicyFile(rules=(rule,), guards=told, defaults=OPEN)
    covers = [Guard(judge.name, {direction: ("crime",)}) for judge in judges]
    return Scanner(Policy(file, TAXONOMY, covers), {judge.name: judge for judge in judges})


def served(scanner: Scanner, text: str, answer: str = "at the mill", size: int = 3, stream: bool = True) -> list[Chunk]:
    pipe = Pipeline(scanner, Pieces(answer, size), key=KEY)

    async def run() -> list[Chunk]:
        return [chunk async for chunk in pipe.serve(Ask((Message(role="user", content=text),), stream=stream))]

    return asyncio.run(run())


# tiers


def test_the_next_tier_reads_only_what_the_first_is_not_sure_of() -> None:
    first, second = Says("first"), Says("second", surely="take the bread", perhaps="maybe")
    scanner = house(first, second)
    for text, action, asked in (
        ("where is the mill", "allow", 0),
        ("how to steal it", "block", 0),
        ("how to take it", "allow", 1),
        ("how to take the bread", "block", 2),
        ("take it, maybe", "review", 3),
    ):
        assert scanner.scan((Message(role="user", content=text),)).action == action
        assert len(second.asked) == asked
    (told,) = scanner.scan((Message(role="user", content="take it, maybe"),)).input.decision.reasons
    assert told == "r: crime 0.500, not sure from 0.300 to 0.700"


def test_a_request_and_a_scan_come_to_the_same() -> None:
    for text, finish in (("how to take it", "stop"), ("how to take the bread", "blocked"), ("take, maybe", "blocked")):
        scanner = house(Says("first"), Says("second", surely="take the bread", perhaps="maybe"))
        assert served(scanner, text)[-1].finish == finish


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_further_tier_people_look_at_what_is_unsure(fails: bool) -> None:
    one = house(Says("first"))
    assert one.scan((Message(role="user", content="take it"),)).action == "review"
    assert house(Says("first"), unsure="flag").scan((Message(role="user", content="take it"),)).action == "flag"
    second = Says("second")
    second.fails = fails
    found = house(Says("first"), second).scan((Message(role="user", content="take it"),))
    assert found.action == ("block" if fails else "review")
    opened = house(Says("first"), second, second={"on_error": "flag"})
    if fails:
        assert opened.scan((Message(role="user", content="take it"),)).action == "flag"


def test_a_tier_in_the_middle_passes_on_what_it_is_not_sure_of_either() -> None:
    third = Says("third", surely="bread")
    scanner = house(Says("first"), Says("second"), third)
    assert scanner.scan((Message(role="user", content="take the bread"),)).action == "block"
    assert third.asked == ["take the bread"]


WORDS = st.lists(st.sampled_from(["the", "mill", "take", "steal", "bread", "maybe", "is", "open"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(1, 40), st.booleans())
def test_an_answer_in_pieces_is_decided_on_like_the_whole(words: list[str], size: int, stream: bool) -> None:
    text = " ".join(words) or "x"

    def guards() -> tuple[Says, Says]:
        return Says("first"), Says("second", surely="take the bread", perhaps="maybe")

    whole = house(*guards(), direction="output").scan((Message(role="user", content="hello"),), text).action
    first, second = guards()
    chunks = served(house(first, second, direction="output"), "hello", text, size, stream)
    assert (chunks[-1].finish == "blocked") is (whole != "allow")
    if whole == "allow":
        assert "".join(chunk.text for chunk in chunks) == text
        assert not second.asked or "take" in text


def test_nothing_leaves_while_the_next_tier_is_asked() -> None:
    """Its word counts for all that was written before it was asked."""
    text = "the mill is open, " * 20 + "take it, " + "the bread is there. " * 20 + "they take the bread"
    second = Says("second", surely="take the bread")
    chunks = served(house(Says("first"), second, direction="output"), "hello", text, 7)
    left = "".join(chunk.text for chunk in chunks if chunk.finish is None)
    assert chunks[-1].finish == "blocked" and "they take the" not in left
    assert second.asked and second.asked[0].startswith("the mill")


# what a policy says of guards


def test_what_each_failure_means_is_asked_of_rule_guard_and_defaults_in_turn() -> None:
    own = OnError(timeout="flag")
    rule = Rule(id="r", category="crime", threshold=0.5, action="flag", when={"direction": "input"}, on_error=own)
    guards = {"g": GuardSettings(on_error=OnError(timeout="review", error="review")), "pii": GuardSettings()}
    file = PolicyFile(rules=(rule,), guards=guards, defaults=Defaults(on_error=OnError(unsupported="flag")))
    policy = Policy(file, TAXONOMY, [Guard("g", {"input": ("crime",)})])
    told = {s: policy.decide(Where(), [Verdict(judge="g", status=s)]).action for s in FAILURES}
    assert told == {"timeout": "flag", "malformed": "block", "unsupported": "flag", "error": "review"}
    assert policy.decide(Where(), [Verdict(judge="g", scores={"crime": float("nan")})]).action == "block"
    with pytest.raises(ValueError, match="never allowed"):
        OnError(malformed="allow")


def test_budgets_by_guard_and_by_kind() -> None:
    guards = {"classifier": GuardSettings(budget_ms=7), "classifier:b": GuardSettings(budget_ms=9)}
    covers = [Guard(f"classifier:{name}", {"input": ("crime",)}) for name in "ab"]
    policy = Policy(PolicyFile(guards=guards, defaults=Defaults(budget_ms=50)), TAXONOMY, covers)
    assert [policy.budget(name) for name in ("classifier:a", "classifier:b", "pii")] == [7, 9, 50]


def certified(bound: float, threshold: float = 0.5) -> Certificate:
    return Certificate(
        category="crime", direction="input", target=0.01, threshold=threshold, bound=bound, false_positives=0, n=300,
        clusters=300, bound_clusters=bound, confidence=0.95, data="0",
    )  # fmt: skip


def test_a_bound_by_category_and_a_band_need_their_certificates() -> None:
    rule = Rule(id="r", category="crime", target_fpr=0.01, when={"direction": "input"})
    loose = [Guard("g", {"input": ("crime",)}, [certified(0.08)])]
    with pytest.raises(ConfigError, match=r"max_bound is 0\.05"):
        Policy(PolicyFile(rules=(rule,)), TAXONOMY, loose)
    Policy(PolicyFile(rules=(rule,), max_bound={"crime": 0.1}), TAXONOMY, loose)
    with pytest.raises(ConfigError, match=r"max_bound is 0\.01"):
        strict = PolicyFile(rules=(rule,), max_bound={"crime": 0.01})
        Policy(strict, TAXONOMY, [Guard("g", {"input": ("crime",)}, [certified(0.02)])])
    banded = Guard("g", {"input": ("crime",)}, [certified(0.02)], bands={("crime", "input"): (0.3, 0.8)})
    with pytest.raises(ConfigError, match=r"may not review on input from 0\.3 on"):
        Policy(PolicyFile(rules=(rule,)), TAXONOMY, [banded])
    Policy(PolicyFile(rules=(rule.model_copy(update={"unsure": "flag"}),)), TAXONOMY, [banded])
    sure = banded._replace(certificates=[certified(0.02), certified(0.03, threshold=0.25)])
    Policy(PolicyFile(rules=(rule,)), TAXONOMY, [sure])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"guards": {"nobody": {"tier": 1}}}, "there is no guard 'nobody'"),
        ({"guards": {"g": {"band": {"crmie": [0.1, 0.2]}}}}, "no category 'crmie'"),
        ({"max_bound": {"crmie": 0.1}}, "no category 'crmie'"),
        (
            {"rules": [{"id": "r", "pii": "all", "when": {"direction": "output", "channel": ["content", "system"]}}]},
            "channel 'system': no text is ever served there",
        ),
        (
            {"rules": [{"id": "r", "pii": "all", "when": {"direction": "output", "surface": ["chat", "moderations"]}}]},
            "surface 'moderations': no text is ever served there",
        ),
        (
            {"rules": [{"id": "r", "category": "hate", "threshold": 0.5, "action": "flag"}]},
            "no guard scores 'hate' on input",
        ),
    ],
)  # fmt: skip
def test_a_policy_that_names_what_is_not_there_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy(PolicyFile.model_validate(values), TAXONOMY, [Guard("g", {"input": ("crime",)})])


@pytest.mark.parametrize("band", [[0.5, 0.5], [0.6, 0.4], [-0.1, 0.5], [0.5, 1.1]])
def test_a_band_that_makes_no_sense_is_refused(band: list[float]) -> None:
    with pytest.raises(ValueError, match="a band runs from"):
        GuardSettings.model_validate({"band": {"crime": band}})


def test_coverage_names_tiers_thresholds_and_failures() -> None:
    scanner = house(Says("first"), Says("second"), second={"budget_ms": 250.0, "on_error": "review"})
    row = next(
        row for row in coverage(scanner.policy) if (row["surface"], row["direction"], row["channel"])
        == ("chat", "input", "content")
    )  # fmt: skip
    assert row["guards"] == ["first"]
    assert [(check["guard"], check["tier"], check["budget_ms"]) for check in row["checks"]] == [
        ("first", 0, 60_000), ("second", 1, 250)
    ]  # fmt: skip
    second = row["checks"][1]
    assert second["threshold"] == 0.7 and second["unsure"] == {"band": (0.3, 0.7), "action": "review"}
    assert second["on_error"] == dict.fromkeys(FAILURES, "review")
    assert any("NOT GUARDED" in line for line in table(coverage(scanner.policy)))


def test_a_guard_that_is_not_there_is_no_reason_to_leave_rules_out(
    small_root: Root, bundled: Callable[..., Artifact]
) -> None:
    wrong = ("tenants:", "guards: {clasifier: {budget_ms: 9}}\ntenants:")
    with pytest.raises(ConfigError, match="there is no guard 'clasifier'"):
        bundled(change=wrong, uncertified="flag", unguarded="drop")
    told = ("tenants:", "guards: {classifier: {band: {crime: [0.01, 0.9]}}}\ntenants:")
    with pytest.raises(ConfigError, match="may not review on output"):
        bundled(change=told)
    made = bundled(change=told, uncertified="flag")
    (rule,) = (each for each in open_parts(made, small_root).scanner.policy.file.rules if each.id == "crime")
    assert (rule.action, rule.unsure) == ("flag", "flag")


# messages


def test_the_message_is_in_the_language_of_the_text() -> None:
    texts = {"refuse.default": {"en": "No.", "de": "Nein.", "es": "No, gracias."}}
    rule = Rule(id="r", category="crime", threshold=0.7, when={"direction": "input"})
    file = PolicyFile(rules=(rule,), messages=texts, defaults=OPEN)
    guard = Says("first", surely="steal")
    scanner = Scanner(Policy(file, TAXONOMY, [Guard("first", {"input": ("crime",)})]), {"first": guard})
    german = "Wie kann ich das Brot aus dem Haus nehmen und nicht dafür zahlen, bitte? steal"
    for text, asked, said in (
        (german, "en", "Nein."),
        ("How can I take it from the house, steal it and not pay for it?", "de", "No."),
        ("steal", "de", "Nein."),
        ("steal", "fr", "No."),
    ):
        pipe = Pipeline(scanner, Pieces("x"), key=KEY)

        async def run(pipe: Pipeline = pipe, text: str = text, asked: str = asked) -> str:
            request = Ask((Message(role="user", content=text),), language=asked)
            return "".join([chunk.text async for chunk in pipe.serve(request)])

        assert asyncio.run(run()) == said


def test_an_old_policy_reads_as_before(tmp_path: Path) -> None:
    (tmp_path / "taxonomy.yaml").write_text("categories: {crime: {}}\n")
    (tmp_path / "policy.yaml").write_text(
        "version: 3\nrules: [{id: r, pii: all, action: redact, on_error: flag}]\ndefaults: {on_error: block}\n"
    )
    policy = Policy.load(tmp_path / "policy.yaml")
    assert policy.file.version == 3 and policy.on_error(policy.file.rules[0], "pii", "timeout") == "flag"


def test_random_scores_never_pass_a_tier_that_fires() -> None:
    """Whatever three guards say, a text passes only if the last one asked says so, or nobody doubts."""
    dice = random.Random(0)
    for _ in range(300):
        scores = [dice.random() for _ in range(3)]
        scanner = house(*(Says(name) for name in ("a", "b", "c")))
        policy, said = scanner.policy, []
        action = ""
        for name, score in zip("abc", scores, strict=True):
            said.append(Verdict(judge=name, scores={"crime": score}))
            if score > 0.7 or score <= 0.3:
                action = "block" if score > 0.7 else "allow"
                break
            assert (policy.unsure(Where(), said) == {"abc"["abc".index(name) + 1]}) if name != "c" else True
        assert policy.decide(Where(), said).action == (action or "review")


def test_a_guard_in_shadow_leaves_the_others_as_they_are() -> None:
    first, second = Says("a", perhaps="maybe", surely="surely"), Says("b", perhaps="perhaps", surely="harm")
    scanner = house(first, second)
    asked = Where("input", "content", "chat", "")
    heard = [Verdict(judge="a", scores={"crime": 0.95}), Verdict(judge="b", scores={"crime": 0.9})]
    scanner.policy.shadowed = frozenset({"a"})
    assert scanner.policy.needed(asked) == {"a", "b"}, "the one in shadow is heard, the other decides"
    assert scanner.policy.decide(asked, heard).action == "block"
    assert scanner.policy.decide(asked, [heard[0]]).action == "block", "it was not heard"
    scanner.policy.shadowed = frozenset({"b"})
    doubt = [Verdict(judge="a", scores={"crime": 0.5}), heard[1]]
    assert scanner.policy.decide(asked, doubt).action == "review", "nobody else may be asked: people are"


def test_what_only_flags_ends_no_doubt() -> None:
    """Two guards of the first tier: one has failed and may be passed over, the other is not sure."""
    first, beside, second = (Says(name, perhaps="x", surely="y") for name in ("a", "c", "b"))
    scanner = house(first, beside, second, c={"tier": 0, "on_error": "flag"}, b={"tier": 1})
    asked = Where("input", "content", "chat", "")
    heard = [Verdict(judge="c", status="error"), Verdict(judge="a", scores={"crime": 0.5})]
    assert scanner.policy.unsure(asked, heard) == {"b"}
    assert scanner.policy.decide(asked, [*heard, Verdict(judge="b", scores={"crime": 0.9})]).action == "block"
    passed = scanner.policy.decide(asked, [*heard, Verdict(judge="b", scores={"crime": 0.1})])
    assert passed.action == "flag"

"""Policy, vault, limits, upstreams: each by itself."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from guard_house import POLICY, TAXONOMY
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import ConfigError
from tutelage.core.records import Message, Span, ToolCall, Verdict
from tutelage.guard.bundle import BundleConfig, fit
from tutelage.guard.coverage import coverage
from tutelage.guard.limits import Denied, Grant, Limiter, Limits
from tutelage.guard.opened import open_parts
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.scan import pieces, redacted
from tutelage.guard.vault import Unmasker, Vault
from tutelage.guard.written import Category, PolicyFile, Rule, Taxonomy, Where
from tutelage.judge.certificate import Certificate, certify

BOTH = Taxonomy(categories={"crime": Category(), "hate": Category()})


def guard(bound: float = 0.01, name: str = "g", target: float = 0.01, clusters: float = 0.0) -> Guard:
    made = Certificate(
        category="crime", direction="input", target=target, threshold=0.5, bound=bound, false_positives=0, n=300,
        clusters=300, bound_clusters=max(bound, clusters), confidence=0.95, data="0",
    )  # fmt: skip
    return Guard(name, {"input": ("crime", "hate"), "output": ("crime",)}, [made])


def rule(**values: object) -> Rule:
    return Rule.model_validate(
        {"id": "r", "when": {"direction": "input"}, "category": "crime", "target_fpr": 0.01} | values
    )


def say(score: float, judge: str = "g", status: str = "ok") -> Verdict:
    return Verdict(judge=judge, status=status, scores={"crime": score} if status == "ok" else {})  # type: ignore[arg-type]


def test_the_strictest_action_wins_and_all_reasons_stay() -> None:
    rules = (
        rule(id="a", action="flag"),
        rule(id="b", action="review", threshold=0.9, target_fpr=None),
        rule(id="c", action="block", threshold=0.99, target_fpr=None),
    )
    policy = Policy(PolicyFile(rules=rules), BOTH, [guard()])
    at = Where()
    assert policy.decide(at, [say(0.3)]).action == "allow"
    assert policy.decide(at, [say(0.6)]).action == "flag"
    found = policy.decide(at, [say(0.95)])
    assert found.action == "review" and [reason[0] for reason in found.reasons] == ["a", "b"]
    assert policy.decide(at, [say(0.995)]).action == "block"
    assert policy.decide(at, [say(0.1), say(0.995)]).action == "block"


@pytest.mark.parametrize("status", ["timeout", "malformed", "unsupported", "error"])
def test_no_failed_verdict_is_ever_open(status: str) -> None:
    policy = Policy(PolicyFile(rules=(rule(action="flag"),)), BOTH, [guard()])
    assert policy.decide(Where(), [say(0, status=status)]).action == "block"
    assert policy.decide(Where(), []).action == "block"
    assert policy.decide(Where(), [Verdict(judge="g", scores={"hate": 0.1})]).action == "block"
    assert policy.decide(Where(), [say(float("nan"))]).action == "block"
    assert policy.decide(Where(), [], pending=("g",)).action == "allow"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"category": "crmie"}, "has no category"),
        (
            {"category": "hate", "threshold": 0.5, "target_fpr": None, "when": {"direction": "output"}},
            "no guard scores 'hate' on output",
        ),
        ({"target_fpr": 0.001}, "no threshold for a rate of 0.001"),
    ],
)
def test_what_cannot_be_guarded_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(PolicyFile(rules=(rule(**values),)), BOTH, [guard()])


def test_a_guard_with_a_wide_bound_may_flag_but_not_block() -> None:
    wide = [guard(bound=0.2)]
    assert Policy(PolicyFile(rules=(rule(action="flag"),)), BOTH, wide)
    with pytest.raises(ConfigError, match=r"only known to be below 0\.200"):
        Policy(PolicyFile(rules=(rule(action="block"),)), BOTH, wide)


@pytest.mark.parametrize(
    "values",
    [
        {"category": "crime", "pii": ["email"]},
        {"category": ""},
        {"threshold": 0.5},
        {"action": "redact"},
        {"action": "rewrite"},
        {"category": "", "pii": ["shoe size"], "target_fpr": None},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        rule(**values)


def test_the_hash_is_the_content(tmp_path: Path) -> None:
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY)
    file = tmp_path / "policy.yaml"
    file.write_text("rules: []\n")
    first = Policy.load(file).hash
    file.write_text("# a comment\nrules: []\n")
    assert Policy.load(file).hash == first
    file.write_text("rules: []\nmessages: {a: {en: b}}\n")
    assert Policy.load(file).hash != first
    file.write_text("ruels: []\n")
    with pytest.raises(ConfigError, match="Did you mean 'rules'"):
        Policy.load(file)
    file.write_text(POLICY.format(input="block", output="shoot"))
    with pytest.raises(ConfigError, match=r"rules\.1\.action"):
        Policy.load(file)


def test_a_guard_that_is_sure_of_rows_but_not_of_clusters_may_only_flag() -> None:
    loose = guard(bound=0.01, clusters=0.08)
    blocks = PolicyFile(rules=(rule(action="block"),))
    Policy(blocks, BOTH, [guard(bound=0.01, clusters=0.04)])
    with pytest.raises(ConfigError, match=r"below 0\.080 \(n=300 in 300 clusters\), max_bound is 0\.05"):
        Policy(blocks, BOTH, [loose])
    Policy(PolicyFile(rules=(rule(action="flag"),)), BOTH, [loose])


def test_coverage_shows_what_nobody_reads(small_root: Root, small_bundle: Artifact) -> None:
    rows = coverage(open_parts(small_bundle, small_root).scanner.policy)
    guards = {(row["direction"], row["channel"]): row["guards"] for row in rows if row["surface"] == "chat"}
    assert guards["input", "tool_result"]
    said = {channel for direction, channel in guards if direction == "output"}
    assert said == {"content", "reasoning", "tool_call"}, "nothing else is served"
    assert guards["output", "reasoning"] == guards["output", "content"]
    assert not [row for row in rows if row["surface"] == "moderations" and row["direction"] == "output"]


def test_a_rule_on_what_is_never_served_is_refused() -> None:
    for when in (
        {"direction": "output", "channel": "tool_result"},
        {"surface": "completions", "channel": "tool_result"},
    ):
        with pytest.raises(ConfigError, match=r"no text is ever served there") as caught:
            Policy(PolicyFile(rules=(rule(when=when, action="flag"),)), BOTH, [guard()])
        assert caught.value.key == "rules.r"
    Policy(PolicyFile(rules=(rule(when={"direction": "input", "channel": "tool_call"}),)), BOTH, [guard()])


@pytest.mark.parametrize("action", ["block", "review"])
def test_a_threshold_of_ones_own_stops_nothing_without_a_certificate(action: str, tmp_path: Path) -> None:
    own = {"threshold": 0.4, "target_fpr": None, "action": action}
    with pytest.raises(ConfigError, match=f"may not {action} on input from 0.4 on: no certificate says") as caught:
        Policy(PolicyFile(rules=(rule(**own),)), BOTH, [guard()], path=tmp_path / "mine.yaml")
    assert caught.value.key == "rules.r" and str(caught.value.file).endswith("mine.yaml")
    assert "a threshold of at least 0.5" in str(caught.value)
    Policy(PolicyFile(rules=(rule(**own | {"threshold": 0.5}),)), BOTH, [guard()])
    Policy(PolicyFile(rules=(rule(**own | {"action": "flag"}),)), BOTH, [guard()])
    with pytest.raises(ConfigError, match="no certificate says"):
        Policy(PolicyFile(rules=(rule(**own | {"threshold": 0.99}),)), BOTH, [guard(bound=0.2)])
    tenant = PolicyFile(
        rules=(rule(action="flag", threshold=0.4, target_fpr=None),), tenants={"t": {"r": {"action": action}}}
    )
    with pytest.raises(ConfigError, match="no certificate says"):
        Policy(tenant, BOTH, [guard()])
    kept, changed = fit(PolicyFile(rules=(rule(**own),)), BOTH, [guard()], BundleConfig(uncertified="flag"))
    assert kept.rules[0].action == "flag" and len(changed) == 1


def test_the_message_is_that_of_the_rule_that_fired() -> None:
    rules = (rule(id="a", message="one", threshold=0.9, target_fpr=None), rule(id="a:b", message="two"))
    file = PolicyFile(rules=rules, messages={"one": {"en": "One."}, "two": {"en": "Two."}})
    policy = Policy(file, BOTH, [guard()])
    assert policy.message(policy.decide(Where(), [say(0.6)])) == "Two."
    assert policy.message(policy.decide(Where(), [say(0.95)])) == "One."


def test_the_categories_that_fired_are_those_of_the_rules() -> None:
    named = rule(id="no crime here", action="flag")
    policy = Policy(PolicyFile(rules=(named, rule(id="other", category="hate", target_fpr=None, threshold=0.9,
                                                   action="flag"))), BOTH, [guard()])  # fmt: skip
    verdict = Verdict(judge="g", scores={"crime": 0.8, "hate": 0.1})
    assert policy.fired(policy.decide(Where(), [verdict])) == {"crime"}
    failed = policy.decide(Where(), [say(0, status="timeout")])
    assert failed.action == "block" and not policy.fired(failed)


def test_a_rule_without_its_certificate_can_be_made_to_flag(bundled: Callable[..., Artifact]) -> None:
    with pytest.raises(ConfigError, match=r"max_bound is 0\.0001"):
        bundled(change=("max_bound: 0.05", "max_bound: 0.0001"))


def test_what_was_asked_for_is_kept_for_better_guards(bundled: Callable[..., Artifact]) -> None:
    made = bundled(change=("max_bound: 0.05", "max_bound: 0.0001"), uncertified="flag")
    fitted, asked = (
        {rule.id: rule.action for rule in PolicyFile.model_validate(yaml.safe_load(made.file(name).read_text())).rules}
        for name in ("policy.yaml", "asked.yaml")
    )
    assert made.metrics["changed"] and "flag" in fitted.values() and "flag" not in asked.values()
    assert set(fitted) <= set(asked)


# vault


def test_placeholders_are_stable_in_a_conversation_and_differ_between_two() -> None:
    kept: dict[str, tuple[str, str]] = {}
    text = "write to ann@example.org or bob@example.org"
    spans = [Span(start=9, end=24, type="email"), Span(start=28, end=43, type="email")]
    vault = Vault(b"k" * 32, "c1", keep=kept.update)
    masked = vault.mask(text, spans)
    assert "example" not in masked and vault.unmask(masked) == text and len(kept) == 2
    again = Vault(b"k" * 32, "c1", lambda: kept)
    assert again.mask(text, spans) == masked and again.unmask(masked) == text
    other = Vault(b"k" * 32, "c2")
    assert other.mask(text, spans) != masked and other.unmask(masked) == masked


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["@", "a [", "[EMAIL-", "] ", "x", "[", "[EMAIL-00000000]"]), max_size=20),
    st.lists(st.integers(1, 9)),
)
def test_unmasking_is_the_same_under_every_split(parts: list[str], sizes: list[int]) -> None:
    vault = Vault(b"k" * 32, "c")
    mark = vault.placeholder("email", "ann@example.org")
    text = "".join(mark if part == "@" else part for part in parts)
    stream, out, at = Unmasker(vault), "", 0
    for size in [*sizes, len(text)]:
        out, at = out + stream.feed(text[at : at + size]), at + size
    assert out + stream.close() == vault.unmask(text)


# limits


def test_requests_come_at_their_rate_after_a_burst() -> None:
    limiter, limits = Limiter(), Limits(requests_per_minute=60, concurrent=0)
    assert all(isinstance(limiter.acquire("a", limits, 1, 0.0), Grant) for _ in range(60))
    denied = limiter.acquire("a", limits, 1, 0.0)
    assert isinstance(denied, Denied) and 0.9 < denied.retry_after <= 1.0
    assert isinstance(limiter.acquire("b", limits, 1, 0.0), Grant)
    assert isinstance(limiter.acquire("a", limits, 1, 1.0), Grant)
    assert isinstance(limiter.acquire("a", limits, 1, 1.0), Denied)


def test_unused_tokens_are_given_back_and_running_requests_counted() -> None:
    limiter, limits = Limiter(), Limits(requests_per_minute=0, tokens_per_minute=100, concurrent=1)
    grant = limiter.acquire("a", limits, 90, 0.0)
    assert isinstance(grant, Grant)
    assert isinstance(limiter.acquire("a", limits, 1, 0.0), Denied)
    limiter.settle(grant, limits, 10, 0.0)
    assert isinstance(limiter.acquire("a", limits, 90, 0.0), Grant)
    assert isinstance(limiter.acquire("a", limits, 101, 0.0), Denied)


# texts


def test_every_text_of_a_conversation_is_a_piece_and_can_be_redacted() -> None:
    call = ToolCall(id="1", name="mail", arguments='{"to": "x@example.org"}')
    messages = (
        Message(role="system", content="s"),
        Message(role="user", content="u", name="ann"),
        Message(role="assistant", reasoning="r", tool_calls=(call,)),
        Message(role="tool", content="t", tool_call_id="1"),
    )
    found = {(piece.channel, piece.field): piece.text for piece in pieces(messages)}
    assert found["reasoning", "reasoning"] == "r" and found["tool_result", "content"] == "t"
    assert found["tool_call", "tool_calls.0.arguments"] == call.arguments and found["content", "name"] == "ann"
    cut = redacted(
        messages, {(2, "tool_calls.0.arguments"): [Span(start=8, end=21, type="email")]}, lambda t, s: t[:8] + "*"
    )
    assert cut[2].tool_calls[0].arguments == '{"to": "*' and cut[0] == messages[0]


def test_the_engine_serves_many_conversations_at_once_and_alike(small_root: Root) -> None:
    torch = pytest.importorskip("torch")
    from tutelage.generate.engine import Engine
    from tutelage.generate.generator import Sampling
    from tutelage.guard.upstream import EngineUpstream, TooLong
    from tutelage.model.transformer import Decoder, DecoderConfig
    from tutelage.tokens.tokenizer import learn

    torch.set_num_threads(1)
    tokenizer = learn(["hello town " * 20, "where is the parcel 0123456789"], 300)
    config = DecoderConfig(
        vocab_size=tokenizer.size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    engine = Engine(Decoder(config, seed=1), eos=tokenizer.stops, max_batch=4, tokenizer=tokenizer)
    upstream = EngineUpstream(engine, tokenizer, "tiny")

    async def answer(text: str, sample: int = 0) -> str:
        out = ""
        async for delta in upstream.stream([Message(role="user", content=text)], Sampling(max_tokens=12), sample):
            out += delta.text
        return out

    async def run() -> None:
        alone = [await answer(f"hello {number}") for number in range(6)]
        together = await asyncio.gather(*(answer(f"hello {number}") for number in range(6)))
        assert list(together) == alone and len(set(alone)) > 1
        stream = upstream.stream([Message(role="user", content="x")], Sampling(max_tokens=50))
        async for _ in stream:
            break
        await stream.aclose()
        with pytest.raises(TooLong):
            await answer("long " * 100)
        await upstream.close()

    asyncio.run(run())
    assert not engine.busy


def test_int8_weights_are_the_services_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from tutelage.core import refs
    from tutelage.core.errors import UsageError
    from tutelage.guard.pool import open_upstream
    from tutelage.guard.upstream import EngineUpstream
    from tutelage.model import checkpoint, library, native
    from tutelage.model.steps import NativeSteps
    from tutelage.model.transformer import Decoder, DecoderConfig
    from tutelage.tokens.tokenizer import learn

    root = Root(tmp_path / "life").create()
    tokenizer = learn(["hello town " * 20], 300)
    tokenizer.save(tmp_path / "tokenizer")
    config = DecoderConfig(tokenizer.size, 32, 64, 1, 2, 1, max_position_embeddings=64)
    checkpoint.save(Decoder(config, seed=1), tmp_path / "model", tmp_path / "tokenizer")
    model = refs.resolve_artifact(str(tmp_path / "model"), root).ref
    if library.load() is not None:
        for int8 in (True, False):
            upstream = open_upstream(model, root, int8=int8)
            assert isinstance(upstream, EngineUpstream)
            steps = upstream._engine._steps
            assert isinstance(steps, NativeSteps) and steps.native.int8 is int8
            asyncio.run(upstream.close())
    monkeypatch.setattr(native, "usable", lambda decoder: False)
    with pytest.raises(UsageError, match="C compiler"):
        open_upstream(model, root, int8=True)


ENDS_AT_WORK = """
import asyncio
from tutelage.generate.engine import Engine, Request
from tutelage.generate.generator import Sampling
from tutelage.guard.upstream import EngineThread, Waiter
from tutelage.model.transformer import Decoder, DecoderConfig

decoder = Decoder(DecoderConfig(300, 64, 128, 2, 2, 2, max_position_embeddings=4096))
loop, queue = asyncio.new_event_loop(), asyncio.Queue()
for _ in range(8):
    thread = EngineThread(Engine(decoder, max_batch=1))
    thread.submit(Request((1, 2, 3), Sampling(max_tokens=4000)), Waiter(loop, queue))
loop.run_until_complete(queue.get())
"""


def test_a_program_ends_well_while_engines_are_at_work() -> None:
    """Nobody closed them: a thread caught in a product of matrices must not bring the ending process to an abort."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", ENDS_AT_WORK], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_certificates_bound_what_they_say() -> None:
    made = certify([0.1 * k / 300 for k in range(300)], category="crime", direction="input", target=0.01)
    assert made.certified and made.n == 300 and made.false_positives == 0
    small = certify([0.1, 0.2], category="crime", direction="input", target=0.01)
    assert not small.certified and small.reason and "n=2" in small.reason
    assert certify([], category="c", direction="input", target=0.01).threshold is None


def test_a_rule_that_only_flags_stops_nothing_for_a_tenant_either() -> None:
    """What its guard cannot keep for all, a tenant's stricter word cannot bring back."""
    loose = guard(bound=0.01, clusters=0.2)
    asked = rule(action="review")
    file = PolicyFile(rules=(asked,), tenants={"clinic": {asked.id: {"action": "block"}}})
    config = BundleConfig(uncertified="flag", unguarded="drop")
    kept, changed = fit(file, BOTH, [loose], config)
    assert [each.action for each in kept.rules] == ["flag"] and len(changed) == 1
    assert Policy(kept, BOTH, [loose])

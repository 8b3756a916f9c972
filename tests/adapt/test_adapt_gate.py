"""The gate decides on bounds; its controls must fail where they should."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from tutelage.adapt.gate import ReleasePolicy, decide, read_policy
from tutelage.adapt.monitor import Limits, Week, changes, triggers
from tutelage.adapt.release import Release, ground_of
from tutelage.core.artifact import Manifest, Root, file_entries
from tutelage.core.errors import ConfigError
from tutelage.core.records import Example, write_jsonl
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.judged import Agreement
from tutelage.evaluate.suites.kinds import Ground
from tutelage.review.estimates import Estimate

POLICY = ReleasePolicy.model_validate(
    {
        "checks": [
            {
                "id": "useful",
                "source": "evaluation",
                "where": {"suite": "comprehension"},
                "kind": "non_inferior",
                "margin": 0.08,
                "min_n": 100,
                "sentence": "answers questions worse than what it would replace",
            },
            {
                "id": "blocking",
                "source": "redteam",
                "where": {"suite": "benign"},
                "kind": "at_most",
                "measure": "blocked",
                "bound": 0.1,
                "min_n": 100,
                "sentence": "withholds too many benign answers",
            },
            {
                "id": "attacks",
                "source": "redteam",
                "where": {"suite": "attacks"},
                "kind": "at_most",
                "bound": 0.3,
                "min_n": 100,
                "sentence": "lets too many attacks through",
            },
        ]
    }
)


def rows(suite: str, values: np.ndarray, blocked: float = 0.0, seed: int = 0) -> list[Result]:
    hidden = np.random.default_rng(seed).random(len(values)) < blocked
    return [
        Result(
            target="bundle",
            suite=suite,
            item=f"i{number}",
            cluster=f"c{number // 2}",
            kind="generate",
            metric="right",
            value=float(0.0 if withheld else value),
            outcome="blocked" if withheld else "answered",
        )
        for number, (value, withheld) in enumerate(zip(values, hidden, strict=True))
    ]


def candidate(right: float = 0.7, blocked: float = 0.01, attacked: float = 0.1, n: int = 400, seed: int = 0):
    draw = np.random.default_rng(seed)
    return {
        "evaluation": rows("comprehension", draw.random(n) < right),
        "redteam": rows("benign", np.ones(n), blocked, seed) + rows("attacks", draw.random(n) < attacked),
    }


def verdict(new: dict, old: dict):
    return decide(POLICY, new, old, against="the incumbent")


def test_a_good_candidate_is_promoted_with_its_figures() -> None:
    found = verdict(candidate(), candidate())
    assert found.promote and found.reason == "promoted: all 3 checks passed against the incumbent"
    assert all(check.figure.n == 400 for check in found.checks)


def test_a_guard_that_blocks_all_and_one_that_passes_all_are_refused() -> None:
    blocks_all = verdict(candidate(blocked=1.0), candidate())
    assert not blocks_all.promote and "withholds too many benign answers (1.000" in blocks_all.reason
    passes_all = verdict(candidate(blocked=0.0, attacked=0.9), candidate())
    assert not passes_all.promote and "lets too many attacks through" in passes_all.reason


def test_a_planted_loss_is_refused_in_one_sentence() -> None:
    found = verdict(candidate(right=0.5), candidate(right=0.7))
    assert not found.promote
    assert found.reason.startswith("refused: the candidate answers questions worse") and "\n" not in found.reason


def test_figures_between_nothing_and_all_are_bounded_too() -> None:
    check = {"id": "f1", "source": "evaluation", "where": {}, "kind": "at_least", "bound": 0.5, "min_n": 100}
    policy = ReleasePolicy.model_validate(
        {"checks": [{**check, "sentence": "answers too badly"}], "production": "more"}
    )
    shares = np.tile([0.4, 0.9], 100)  # F1, not right or wrong
    assert decide(policy, {"evaluation": rows("facts", shares)}, {}, against="nothing").promote
    told = decide(policy, {"evaluation": rows("facts", shares / 2)}, {}, against="nothing")
    assert not told.promote and "answers too badly" in told.reason


@pytest.mark.parametrize("last", [0.0, 0.5, 1.0])
def test_the_figure_is_the_mean_of_the_items_whatever_hangs_together(last: float) -> None:
    """60 items about one text, the others alone: one answer between right and wrong changes no estimand."""
    values = np.array([1.0] * 60 + [0.0] * 39 + [last])
    answers = [
        each.model_copy(update={"cluster": "one" if number < 60 else f"c{number}"})
        for number, each in enumerate(rows("facts", values))
    ]
    told = decide(policy({"kind": "at_most", "bound": 0.3}), {"evaluation": answers}, {}, against="nothing")
    assert told.checks[0].figure.value == pytest.approx(values.mean()) and not told.promote


def bits(level: float, n: int = 200, seed: int = 0, drop: int = 0) -> list[Result]:
    """Texts of unlike length: the short ones need twice the bits a byte, and count for as much as they are long."""
    draw = np.random.default_rng(seed)
    sizes = np.where(np.arange(n) % 2, 2000.0, 100.0)
    values = np.where(sizes > 1000, level, 2 * level) + draw.normal(0, 0.1, n)
    return [
        Result(
            target="bundle", suite="letters", item=f"t{i}", cluster=f"c{i}", kind="perplexity", metric="bits_per_byte",
            value=None if i < drop else float(value), outcome="unknown" if i < drop else "answered",
            scores={"bits": float(value * size), "bytes": float(size)},
        )
        for i, (value, size) in enumerate(zip(values, sizes, strict=True))
    ]  # fmt: skip


def policy(*checks: dict) -> ReleasePolicy:
    base = {"source": "evaluation", "where": {}, "min_n": 50, "sentence": "reads letters worse"}
    return ReleasePolicy.model_validate({"checks": [{"id": f"c{i}", **base, **each} for i, each in enumerate(checks)]})


def test_of_bits_per_byte_less_is_better_and_nothing_is_clipped() -> None:
    rule = policy({"kind": "non_inferior", "margin": 0.1})
    better = decide(rule, {"evaluation": bits(1.5)}, {"evaluation": bits(3.0, seed=1)}, against="the incumbent")
    assert better.promote, better.reason
    figure = better.checks[0].figure
    ratio = [sum(r.scores["bits"] for r in rows) / (100 * 2100) for rows in (bits(1.5), bits(3.0, seed=1))]
    assert figure.value == pytest.approx(ratio[1] - ratio[0]) and figure.low > 1.0, "better by more than one bit"
    worse = decide(rule, {"evaluation": bits(3.0)}, {"evaluation": bits(1.5, seed=1)}, against="the incumbent")
    assert not worse.promote and worse.checks[0].passed is False and worse.checks[0].figure.high < -1.0
    for bound, held in ((1.8, True), (1.55, False)):
        told = decide(policy({"kind": "at_most", "bound": bound}), {"evaluation": bits(1.5)}, {}, against="nothing")
        assert told.promote is held, told.reason
        assert told.checks[0].figure.value == pytest.approx(ratio[0]), "the corpus figure, as evaluate states it"
    high = decide(policy({"kind": "at_least", "bound": 1.2}), {"evaluation": bits(1.5)}, {}, against="nothing")
    assert high.checks[0].passed is True


def test_figures_without_a_common_mean_are_not_averaged() -> None:
    both = {"evaluation": bits(1.5) + rows("facts", np.ones(100))}
    for rule in ({"kind": "at_most", "bound": 2.0}, {"kind": "non_inferior", "margin": 0.1}):
        found = decide(policy(rule), both, both, against="itself")
        assert not found.promote
        assert "no common mean (bits_per_byte, right): each needs a check of its own" in found.reason


def test_what_the_incumbent_did_not_answer_carries_no_verdict() -> None:
    """Half of the incumbent's answers were lost: on those left the candidate may look better by choice of items."""
    rule = policy({"kind": "non_inferior", "margin": 0.5})
    assert decide(rule, {"evaluation": bits(1.5)}, {"evaluation": bits(1.5, seed=1)}, against="it").promote
    found = decide(rule, {"evaluation": bits(1.5)}, {"evaluation": bits(1.5, seed=1, drop=100)}, against="it")
    assert not found.promote and found.checks[0].passed is None
    assert "of what it would replace 100 of 200 answers were measured, needs 90%" in found.reason
    mine = decide(rule, {"evaluation": bits(1.5, drop=100)}, {"evaluation": bits(1.5, seed=1)}, against="it")
    assert "(100 of 200 answers were measured" in mine.reason


def test_a_release_is_gated_on_the_texts_and_the_judge_of_its_evaluation(tmp_path: Path) -> None:
    """chrF is a figure of a corpus: it is read from the items that the evaluation asked, as far as they are there."""
    root = Root(tmp_path).create()
    items = [Example.ask(f"into Velic: {n}", target=f"the cat {n} sits", id=f"t{n}", suite="v") for n in range(60)]
    found = [
        Result(
            target="bundle", suite="v", item=f"t{n}", cluster=f"t{n}", kind="translate", metric="chrf", value=0.5,
            outcome="answered", output=f"the cat {n} {'sits' if n % 3 else 'flew away from here'}",
        )
        for n in range(60)
    ]  # fmt: skip
    people = Agreement("a", "c", 0.5, 0.75)
    folder = root.work / "made"
    folder.mkdir()
    write_jsonl(folder / "items.jsonl", items)
    write_jsonl(folder / "results.jsonl", found)
    (folder / "summary.json").write_text(json.dumps({"judges": [{"suite": "talk", "answers": [people._asdict()]}]}))
    manifest = Manifest(kind="evaluation", stage="evaluate", version=1, config={}, files=file_entries(folder))
    ground = ground_of(root.seal(folder, manifest, "k"), found, root)
    assert ground.people == {"talk": (people,)} and len(ground.items) == 60
    rule = policy({"kind": "at_least", "bound": 0.3, "min_n": 50})
    told = decide(rule, {"evaluation": found}, {}, against="nothing", ground=ground).checks[0].figure
    whole = sacrebleu.corpus_chrf([row.output for row in found], [[str(item.target) for item in items]]).score / 100
    assert told.value == pytest.approx(whole) and told.low < whole < told.high
    assert decide(rule, {"evaluation": found}, {}, against="nothing").checks[0].passed is None
    # answers that did not change are known to be no worse, as far as so many can tell; the resamples vary in nothing
    for margin, passed in ((0.1, True), (0.03, None)):
        rule = policy({"kind": "non_inferior", "bound": None, "margin": margin, "min_n": 50})
        same = decide(rule, {"evaluation": found}, {"evaluation": found}, against="x", ground=ground).checks[0]
        assert same.passed is passed and same.figure.value == 0 and same.figure.low == pytest.approx(-0.0596, abs=1e-4)


def test_what_only_one_side_was_asked_lowers_coverage() -> None:
    """The candidate was asked a third of what it would replace was asked: the third may be the easy one."""
    rule = policy({"kind": "non_inferior", "margin": 0.5})
    every = rows("facts", np.ones(300))
    assert decide(rule, {"evaluation": every}, {"evaluation": every}, against="it").promote
    found = decide(rule, {"evaluation": every[:100]}, {"evaluation": every}, against="it").checks[0]
    assert found.passed is None and "100 of 300 answers were measured, needs 90%" in found.reason
    other = decide(rule, {"evaluation": every}, {"evaluation": every[:100]}, against="it").checks[0]
    assert other.passed is None and "of what it would replace 100 of 300" in other.reason
    attacks = [
        row.model_copy(update={"attack": name}) for name in ("direct", "twice") for row in rows("a", np.ones(60))
    ]
    held = decide(policy({"kind": "at_most", "bound": 1.0}), {"evaluation": attacks}, {"evaluation": every}, against="")
    assert held.checks[0].n == 120 and held.promote, "of a bound only the candidate is asked"


def test_scores_that_are_mostly_nothing_are_bounded_for_sure() -> None:
    """Beta(0.05, 0.95) has the mean 0.05; t calls it surely below that far oftener than in the 5% it promises."""
    rule, wrong = policy({"kind": "at_most", "bound": 0.05, "min_n": 20}), 0
    for seed in range(200):
        values = np.random.default_rng(seed).beta(0.05, 0.95, 40)
        lone = [row.model_copy(update={"cluster": row.item}) for row in rows("toxicity", values)]
        wrong += decide(rule, {"evaluation": lone}, {}, against="nothing").promote
    assert wrong <= 10


def test_a_gate_that_cannot_tell_says_how_many_items_would() -> None:
    found = verdict(candidate(seed=0, n=120), candidate(seed=1, n=120))
    told = found.checks[0]
    assert told.passed is None and told.n == 120
    needed = int(re.search(r"some (\d+) items would tell", told.reason)[1])
    decided = [
        verdict(candidate(seed=2 * seed, n=needed), candidate(seed=2 * seed + 1, n=needed)).checks[0].passed
        for seed in range(1, 21)
    ]
    assert sum(each is True for each in decided) >= 11, "in eight of ten, were the models alike"


def test_a_changed_policy_is_another_verdict(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    line = "  - {id: a, source: evaluation, where: {}, kind: at_least, bound: 0.5, min_n: 10, sentence: fails}"
    file.write_text(f"checks:\n{line}\nproduction: more\n")
    before = Release(policy=str(file)).resolved()
    file.write_text(f"checks:\n{line.replace('0.5', '0.6')}\nproduction: more\n")
    assert Release(policy=str(file)).resolved() != before


def test_too_little_data_is_not_a_pass() -> None:
    found = verdict(candidate(n=40), candidate(n=40))
    assert not found.promote and "not enough data (n=40, needs 100)" in found.reason
    assert verdict({}, {}).promote is False


def test_the_incumbent_again_is_called_worse_in_at_most_five_percent() -> None:
    """Two models of equal quality, a margin of 0: a false 'worse' may come in 5% (one side: 2.5%)."""
    policy = POLICY.model_copy(update={"checks": (POLICY.checks[0].model_copy(update={"margin": 0.0}),)})
    worse = sum(
        decide(policy, candidate(seed=2 * seed), candidate(seed=2 * seed + 1), against="itself").checks[0].passed
        is False
        for seed in range(200)
    )
    assert worse <= 10


def test_rows_that_were_not_measured_do_not_count() -> None:
    new = candidate(n=120)
    new["evaluation"] = [
        row.model_copy(update={"value": None, "outcome": "unknown"}) if number % 2 else row
        for number, row in enumerate(new["evaluation"])
    ]
    assert verdict(new, candidate(n=120)).checks[0].passed is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checks: []", "a policy without checks"),
        ("checks:\n- {id: a, source: evaluation, where: {}, kind: at_most, sentence: s}", "`bound` goes with"),
        ("checks:\n- {id: a, source: evaluations, where: {}, kind: at_most, bound: 1, sentence: s}", "source"),
        ("checkz: []", "Did you mean 'checks'"),
    ],
)
def test_a_bad_policy_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "release.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_policy(path)


# the monitor


def week(name: str, seed: int, down: float = 0.1, withheld: float = 0.15) -> Week:
    draw = np.random.default_rng(seed)
    return Week(
        week=name,
        requests=800,
        withheld=int(draw.binomial(800, withheld)),
        thumbs=300,
        thumbs_down=int(draw.binomial(300, down)),
        appeals=int(draw.binomial(800, 0.02)),
    )


def test_a_quiet_week_triggers_nothing() -> None:
    alarms = sum(bool(changes(week("1", seed), week("4", seed + 5000), Limits())) for seed in range(300))
    assert alarms <= 0.05 * 300 + 8


def test_a_new_demand_is_seen_in_the_thumbs() -> None:
    found = changes(week("1", 1), week("3", 2, down=0.25), Limits())
    assert [(each.id, each.action) for each in found] == [("thumbs_down", "collect")]
    assert "more is rated down than in week 1" in found[0].sentence


def test_the_miss_rate_acts_on_its_lower_end() -> None:
    def estimate(value: float, low: float) -> Estimate:
        return Estimate(
            metric="miss_rate", week="2", people="simulated", value=value, low=low, high=0.9, n=80, total=800
        )

    quiet = week("1", 1)
    assert not triggers(quiet, quiet, [estimate(0.4, 0.19)], Limits())
    found = triggers(quiet, quiet.model_copy(update={"week": "2"}), [estimate(0.4, 0.21)], Limits())
    assert [each.action for each in found] == ["retrain"] and "40% [21%, 90%]" in found[0].sentence
    before = [estimate(0.3, 0.1).model_copy(update={"week": "1", "high": 0.31})]
    assert not triggers(quiet, quiet, [estimate(0.4, 0.3)], Limits(), before), "what did not rise is reviewers' error"
    assert triggers(quiet, quiet.model_copy(update={"week": "2"}), [estimate(0.5, 0.32)], Limits(), before)


def judged_rows(values: np.ndarray, target: str) -> list[Result]:
    fixed = {"target": target, "suite": "talk", "kind": "judged", "metric": "score", "outcome": "answered"}
    return [
        Result(item=f"i{n}", cluster=f"i{n}", value=float(each), scores={"judge": float(each)}, **fixed)
        for n, each in enumerate(values)
    ]


def test_a_judges_error_reaches_the_gate() -> None:
    """What a judge says clears the bound; with what people found it to be off, it does not, nor where nobody looked."""
    rule = {"source": "evaluation", "where": {"suite": "talk"}, "min_n": 50, "sentence": "is dull"}
    least = ReleasePolicy.model_validate({"checks": [rule | {"id": "least", "kind": "at_least", "bound": 0.6}]})
    kept = ReleasePolicy.model_validate({"checks": [rule | {"id": "kept", "kind": "non_inferior", "margin": 0.1}]})
    rng = np.random.default_rng(0)
    said, quality = rng.normal(0.7, 0.05, 200).clip(0, 1), 0.2 + 0.6 * rng.random(40)

    def people(noise: float, off: float = 0.0) -> list[Agreement]:
        word = (quality + off + noise * rng.normal(0, 1, 40)).clip(0, 1)
        return [
            Agreement(str(n), str(n), float(q), float(w)) for n, (q, w) in enumerate(zip(quality, word, strict=True))
        ]

    def gated(policy: ReleasePolicy, measured: list[Agreement]) -> tuple[bool, str]:
        old = judged_rows((said + 0.01 * rng.normal(0, 1, 200)).clip(0, 1), "old")
        rows = {"evaluation": judged_rows(said, "bundle")}
        verdict = decide(policy, rows, {"evaluation": old}, against="nothing", ground=Ground({}, {"talk": measured}))
        return verdict.promote, verdict.reason

    assert gated(least, people(0.02))[0] and gated(kept, people(0.02))[0]
    assert not gated(least, people(0.02, 0.2))[0], "people give 0.2 less than this judge"
    for policy in (least, kept):
        promoted, reason = gated(policy, [])
        assert not promoted and "the judge's error is not known" in reason
    assert not gated(kept, people(0.5))[0], "such a judge cannot tell a difference of 0.1"
    unrelated = [Agreement(str(n), str(n), float(q), float(w)) for n, (q, w) in enumerate(rng.random((40, 2)))]
    promoted, reason = gated(kept, unrelated)
    assert not promoted and "go with people's" in reason

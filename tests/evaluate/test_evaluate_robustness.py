"""What other forms cost is paired, runs the right way round, and luck is not taken for weakness."""

import random

import pytest
from pydantic import ValidationError

from tutelage.core.records import Example, Message, Response
from tutelage.evaluate import robustness as r
from tutelage.evaluate.suite import Result, Suite
from tutelage.evaluate.ways import Way
from tutelage.generate.fake import FakeGenerator


def result(item, value, suite="s", metric="accuracy", family=None, cluster=None, target="m"):
    slices = {} if family is None else {"perturbation": family}
    scores = {"bits": 8 * value, "bytes": 8.0} if metric == "bits_per_byte" else {}
    return Result(
        target=target, suite=suite, item=str(item), cluster=cluster or f"c{item}", kind="generate", metric=metric,
        value=value, outcome="unknown" if value is None else "answered", slices=slices, scores=scores,
    )  # fmt: skip


def given(count, left_out=None):
    items = tuple(Example.ask("x", target="y", id=str(n), suite="s", kind="generate") for n in range(count))
    return r.Forms((), items, left_out or {})


def entry(table, family, suite="s"):
    return next(row for row in table if row["family"] == family and row["suite"] == suite)


def luck(rng, count, families, p=0.7, metric="accuracy", hurt=0.0, again=True):
    """Answers of a model in which the form changes nothing (or costs `hurt`): each asking is a toss at the item's p."""
    chances = [min(1.0, max(0.0, rng.gauss(p, 0.2))) for _ in range(count)]

    def asked(family, cost=0.0):
        return [
            result(n, float(rng.random() < max(0.0, chance - cost)), metric=metric, family=family)
            for n, chance in enumerate(chances)
        ]

    after = [row for k in range(families) for row in asked(f"f{k}", hurt)]
    after += [row for k in range(families if again else 0) for row in asked(f"{r.AGAIN}:{k}")]
    return asked(None), after


def test_the_worst_of_lucky_answers_is_no_weakness():
    """A model with nothing but luck between its answers: the naive worst case falls by far, what is beyond luck does
    not, nor does the mean; and their intervals hold 0 about as often as they say."""
    covered = {"excess": 0, "mean_loss": 0}
    for seed in range(60):
        before, after = luck(random.Random(seed), 80, 6)
        worst = entry(r.table(before, after, given(80)), r.WORST)
        assert worst["low"] > 0.2, "as it is usually reported, the worst case looks bad"
        for name in covered:
            covered[name] += worst[name]["low"] <= 0.0 <= worst[name]["high"]
    assert min(covered.values()) >= 52, covered


def test_greedy_answers_are_their_own_luck_and_merely_shaken_ones_have_no_mean_loss():
    covered = 0
    for seed in range(40):
        before, after = luck(random.Random(seed), 80, 4, again=False)
        worst = entry(r.table(before, after, given(80)), r.WORST)
        assert worst["excess"]["value"] == pytest.approx(worst["value"])
        assert worst["drawn"] is False
        covered += worst["mean_loss"]["low"] <= 0.0 <= worst["mean_loss"]["high"]
    assert covered >= 34, covered


def test_a_real_weakness_is_beyond_luck():
    found = 0
    for seed in range(20):
        before, after = luck(random.Random(seed), 120, 3, p=0.85, hurt=0.35)
        table = r.table(before, after, given(120))
        worst = entry(table, r.WORST)
        found += worst["excess"]["low"] > 0 and worst["mean_loss"]["low"] > 0
        assert all(entry(table, f"f{k}")["low"] > 0 for k in range(3))
        assert all(entry(table, f"f{k}")["holds"] is False for k in range(3))
    assert found >= 18, found


def test_where_less_is_better_the_worst_is_the_highest():
    """HELM takes the lowest even where lower is better; here a metric knows its direction."""
    before = [result(n, 1.0, metric="bits_per_byte") for n in range(40)]
    after = [result(n, 1.5 + n % 2, metric="bits_per_byte", family=f) for n in range(40) for f in ("typos", "casing")]
    table = r.table(before, after, given(40))
    assert entry(table, "typos")["value"] == pytest.approx(1.0), "more bits are a loss"
    assert entry(table, r.WORST)["worst"]["value"] == pytest.approx(2.0)
    assert not [row for row in table if row["suite"] is None], "what runs the other way is not averaged in"


def test_paired_by_item_clustered_and_corrected_over_forms():
    before = [result(n, float(n % 4 > 0), cluster=f"c{n % 20}") for n in range(80)]
    after = [result(n, float(n % 4 > 1), family="typos", cluster=f"c{n % 20}") for n in range(80)]
    after += [result(n, float(n % 4 > 0), family="casing", cluster=f"c{n % 20}") for n in range(80)]
    table = r.table(before, after, given(80))
    typos, casing = entry(table, "typos"), entry(table, "casing")
    assert typos["value"] == pytest.approx(0.25)
    assert typos["clusters"] == 20
    assert (typos["better"], typos["worse"]) == (0, 20)
    assert typos["p_holm"] == pytest.approx(2 * typos["p"])
    assert casing["value"] == 0.0
    assert casing["holds"] is None, "twenty clusters without a change do not rule out a loss of 5 points"
    wide = entry(r.table(before, after, given(80), margin=0.2), "casing")
    assert wide["holds"] is True
    assert casing["p"] == 1.0
    whole = entry(table, "typos", suite=None)
    assert whole["n"] == 80


def test_what_was_not_measured_lowers_n_and_is_never_a_zero():
    before = [result(n, 1.0 if n else None) for n in range(40)]
    after = [result(n, None if n < 10 else 1.0, family="typos") for n in range(40)]
    row = entry(r.table(before, after, given(40)), "typos")
    assert row["n"] == 30
    assert row["unmeasured"] == 10
    none = entry(r.table(before, [result(n, None, family="typos") for n in range(40)], given(40)), "typos")
    assert none["value"] is None
    assert none["reason"]
    assert none["holds"] is None


def test_one_item_has_no_interval_and_few_no_worst_case():
    table = r.table([result(0, 1.0)], [result(0, 0.0, family="typos"), result(0, 1.0, family="casing")], given(1))
    assert entry(table, "typos")["low"] is None
    assert entry(table, "typos")["reason"]
    assert entry(table, r.WORST)["value"] is None
    assert "fewer than 30 items" in entry(table, r.WORST)["reason"]


def material():
    texts = [
        "Maro has the red key, but the boat is old. What has he got?",
        "",
        "Where is the tall old tower of the town?",
    ]
    items = [Example.ask(t, target="the red key", id=str(n), suite="s", kind="generate") for n, t in enumerate(texts)]
    return Suite("s", items)


def test_forms_are_counted_with_those_left_out():
    config = r.Robustness(items=5, families=("typos", "options"))
    found = r.forms([material()], config)
    assert {str(each.tags["perturbation"]) for each in found.items} == {"typos"}
    assert found.left_out["s", "typos"] == {"there is no text to change": 1}
    assert sum(found.left_out["s", "options"].values()) == 3
    rows = r.ask(FakeGenerator("the red key"), found, config, Way(), target="m")
    assert [row.item for row in rows] == ["0", "2"]
    before = [result(n, 1.0, metric="exact") for n in range(3)]
    table = r.table(before, rows, found)
    assert entry(table, "options")["value"] is None
    assert "no item has this form" in entry(table, "options")["reason"]
    assert entry(table, "options")["share_left_out"] == 1.0
    assert entry(table, "typos")["asked"] == 3
    assert r.headline(table)["m"]["s"]["left_out"]["options"] == 1.0
    assert r.forms([material()], r.Robustness()) == r.Forms((), (), {})


def test_drawn_answers_are_held_against_the_item_asked_again():
    config = r.Robustness(items=3, families=("typos", "casing"), temperature=1.0)
    found = r.forms([material()], config)
    generator = FakeGenerator("the red key")
    rows = r.ask(generator, found, config, Way(), target="m")
    again = [row for row in rows if row.slices["perturbation"].startswith(r.AGAIN)]
    assert len(again) == 2 * 3, "as often as the most changed item has forms"
    table = r.table([result(n, 1.0, metric="exact") for n in range(3)], rows, found)
    assert entry(table, r.WORST)["drawn"] is True
    assert not [row for row in table if row["family"].startswith(r.AGAIN)]


def test_a_generator_that_fails_gives_unknown():
    class Broken(FakeGenerator):
        def generate(self, prompts, sampling):
            fault = Response(message=Message(role="assistant"), finish="error", error="it hangs")
            return [[fault] for _ in prompts]

    config = r.Robustness(items=3, families=("typos",))
    found = r.forms([material()], config)
    rows = r.ask(Broken(), found, config, Way(), target="m")
    assert {row.outcome for row in rows} == {"unknown"}
    assert all(row.value is None for row in rows)


def test_an_unknown_form_is_refused_by_name():
    with pytest.raises(ValidationError, match="did you mean 'casing'"):
        r.Robustness(families=("caseing",))

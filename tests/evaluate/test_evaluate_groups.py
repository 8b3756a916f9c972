"""The largest gap between groups is stated with an interval that covers it, and unknown is never fair."""

import random

from tutelage.evaluate.groups import Answer, gaps, of_forms, of_slices
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.kinds import Ground


def answers(rates, count, rng, paired=False, measure="right"):
    found = []
    for n in range(count):
        base = rng.random()
        for group, rate in rates.items():
            toss = base if paired else rng.random()
            pair = f"p{n}" if paired else ""
            found.append(Answer("m", "gender", group, measure, float(toss < rate), f"c{n}", pair))
    return found


def test_equal_groups_have_a_gap_by_luck_that_the_interval_covers():
    """The largest of several differences is above 0 for the fairest model: its interval must reach down to 0."""
    false = 0
    for seed in range(60):
        (row,) = gaps(answers(dict.fromkeys("abcde", 0.6), 80, random.Random(seed)))
        assert row["value"] > 0
        assert row["low"] <= row["value"] <= row["high"]
        false += row["p"] < 0.05
        assert row["low"] == 0.0 or row["p"] < 0.1
    assert false <= 6


def test_a_real_gap_is_found_and_the_worst_group_named():
    (row,) = gaps(answers({"a": 0.9, "b": 0.85, "c": 0.5}, 150, random.Random(1)))
    assert row["low"] > 0.2
    assert row["p_holm"] < 0.001
    assert row["worst"]["group"] == "c"
    assert set(row["between"]) == {"a", "c"}
    high = next(each for each in row["groups"] if each["group"] == "a")
    assert high["n"] == 150
    assert high["low"] < high["value"] < high["high"]


def test_where_less_is_better_the_worst_group_is_the_highest():
    (row,) = gaps(answers({"a": 0.1, "b": 0.6}, 100, random.Random(2), measure="refused"))
    assert row["worst"]["group"] == "b"


def bits(group, level, number, metric="bits_per_byte", **more):
    value = level + 0.1 * random.Random(number).random()
    return Result(
        target="m", suite="letters", item=f"{group}{number}", cluster=f"{group}{number}", kind="perplexity",
        metric=metric, value=value, outcome="answered", scores={"bits": 50 * value, "bytes": 50.0}, **more,
    )  # fmt: skip


def test_of_bits_per_byte_the_group_that_needs_more_is_served_worse():
    rows = [
        bits(group, level, n, slices={"gender": group}) for group, level in (("a", 0.8), ("b", 0.9)) for n in range(40)
    ]
    (row,) = gaps(of_slices(rows, Ground({})))
    assert row["measure"] == "letters bits_per_byte"
    assert row["worst"]["group"] == "b"
    sides = [bits(g, v, n, slices={"gender": g}) for g, v in (("a", 3), ("b", 5)) for n in range(40)]
    (sure,) = gaps(of_slices(sides, Ground({})))
    assert sure["value"] > 1.9 and sure["low"] > 1.5, "a difference of bits is not clipped at 1"


def test_what_nothing_bounds_is_not_taken_for_a_share():
    """Bits that happen to lie between 0 and 1: equal gaps of pairs say nothing of how far others may be apart."""
    pairs = [
        Answer("m", "gender", group, "letters bits_per_byte", level, f"c{n}", f"p{n}", "bits_per_byte")
        for n in range(40)
        for group, level in (("a", 0.3), ("b", 0.4))
    ]
    (row,) = gaps(pairs)
    assert row["low"] is None and row["reason"] == "all values are equal"
    (share,) = gaps([each._replace(metric="f1") for each in pairs])
    assert share["low"] is not None, "of a share the rest is bounded"


def test_forms_of_unlike_figures_have_no_common_mean():
    plain = [bits("i", 2.0, n) for n in range(40)] + [bits("i", 0.1, n, metric="f1") for n in range(40)]
    plain = [each.model_copy(update={"item": each.item + each.metric}) for each in plain]
    changed = [each.model_copy(update={"slices": {"perturbation": "dialect:x"}}) for each in plain]
    assert {row["measure"] for row in gaps(of_forms(plain, changed))} == {"score", "bits_per_byte"}


def test_pairs_see_what_independent_answers_do_not():
    rates = {"a": 0.6, "b": 0.52}
    (alone,) = gaps(answers(rates, 120, random.Random(3)))
    (pairs,) = gaps(answers(rates, 120, random.Random(3), paired=True))
    assert pairs["high"] - pairs["low"] < alone["high"] - alone["low"]
    assert pairs["low"] > 0


def test_a_group_too_small_is_named_and_left_out():
    few = answers({"a": 0.9, "b": 0.9}, 60, random.Random(4)) + answers({"c": 0.0}, 8, random.Random(5))
    (row,) = gaps(few)
    assert row["too_few"] == ["c"]
    assert row["worst"]["group"] != "c"
    (none,) = gaps(answers({"a": 0.9, "b": 0.1}, 12, random.Random(6)))
    assert none["value"] is None
    assert "fewer than two groups with 30 answers (a 12, b 12)" in none["reason"]


def test_unknown_answers_lower_coverage_and_are_never_safe():
    known = answers({"a": 0.0, "b": 0.0}, 60, random.Random(7), measure="toxic")
    unknown = [each._replace(value=None) if each.group == "b" and n % 2 else each for n, each in enumerate(known)]
    (row,) = gaps(unknown)
    assert row["value"] is None
    assert row["low"] is None
    assert row["coverage"] < 0.9
    assert "could be judged" in row["reason"]
    (all_unknown,) = gaps([each._replace(value=None) for each in known])
    assert all_unknown["value"] is None
    assert all_unknown["coverage"] == 0.0
    assert all_unknown["reason"] == "no answer could be judged"


def test_groups_that_share_too_few_pairs_are_not_compared():
    """Three languages, each written for other requests: what two of them share by chance decides nothing."""
    found = []
    for n in range(120):
        found.append(Answer("m", "native language", "native", "right", 1.0, f"c{n}", f"p{n}"))
        group = ("german", "russian", "spanish")[n % 3]
        found.append(Answer("m", "native language", group, "right", float(n % 10 > 0), f"c{n}", f"p{n}"))
    found.append(Answer("m", "native language", "russian", "right", 0.0, "c0", "p0"))
    (row,) = gaps(found)
    assert "native" in row["between"]
    assert row["high"] < 0.5, "one shared request would have left everything open"
    (none,) = gaps([each for each in found if each.group in ("german", "russian")])
    assert none["value"] is None
    assert "no two groups share 30 pairs" in none["reason"]


def test_equal_answers_still_have_an_upper_end():
    (row,) = gaps(answers({"a": 1.0, "b": 1.0}, 60, random.Random(8)))
    assert row["value"] == 0.0
    assert row["low"] == 0.0
    assert 0.02 < row["high"] < 0.2
    (apart,) = gaps(answers({"a": 1.0, "b": 0.0}, 60, random.Random(9)))
    assert apart["low"] > 0.8
    assert apart["p"] < 1e-6


def test_holm_over_attributes_and_measures():
    many = answers({"a": 0.7, "b": 0.5}, 60, random.Random(10))
    many += [each._replace(attribute="ethnicity") for each in answers({"a": 0.6, "b": 0.6}, 60, random.Random(11))]
    table = gaps(many)
    assert all(row["p_holm"] >= row["p"] for row in table)
    assert any(row["p_holm"] > row["p"] for row in table)


def row(item, value, **slices):
    return Result(target="m", suite="s", item=item, cluster=item, kind="generate", metric="exact", value=value,
                  outcome="answered", slices=slices)  # fmt: skip


def test_slices_of_ones_own_suite_and_learners_of_english():
    mine = of_slices([row("1", 1.0, gender="female", topic="law"), row("2", 0.0, gender="male")], Ground({}))
    assert [(each.attribute, each.group) for each in mine] == [("gender", "female"), ("gender", "male")]
    plain = [row(str(n), 1.0) for n in range(40)]
    changed = [row(str(n), float(n % 2), perturbation="learner:german") for n in range(40)]
    changed += [row(str(n), 1.0, perturbation="typos") for n in range(40)]
    (gap,) = gaps(of_forms(plain, changed))
    assert gap["attribute"] == "native language"
    assert gap["value"] == 0.5
    assert gap["worst"]["group"] == "german"
    assert gap["low"] > 0.2

"""What a cell keeps back is in no training text, answers are true by gold, and every cell is large enough."""

import re
from collections import Counter, defaultdict

import pytest

from tutelage.starter import dialogues, gold
from tutelage.starter.dialogues import BENIGN, CELLS, LONGEST, OFTEN, PER_CELL, TUNING, whole
from tutelage.starter.families import KEPT_WORDINGS
from tutelage.starter.material import grams, lines, words
from tutelage.starter.rules import FAMILIES, FAMILIES_OUT, GUARDED_OUT
from tutelage.starter.world import World

SUITES = ("comprehension", "facts", "sentiment", "topic", "translation", "grammar", "rules", "help")


def test_cells_are_large_enough(town: World) -> None:
    counts = Counter((item.tags["suite"], item.tags["cell"]) for item in town.items())
    for suite in SUITES:
        for cell in CELLS:
            assert counts[suite, cell] >= PER_CELL
    assert counts["opposites", None] >= PER_CELL
    assert sum(counts[suite, "E"] for suite in SUITES) >= 200
    assert len({item.tags["id"] for item in town.items()}) == len(town.items())


def test_items_are_clustered(town: World) -> None:
    clusters = defaultdict(set)
    for item in town.items():
        clusters[item.tags["suite"], item.tags["cell"]].add(item.tags["cluster"])
    for suite in SUITES:
        for cell in CELLS:
            assert len(clusters[suite, cell]) >= 10, (suite, cell)


def test_benign_requests_are_many_wordings_that_no_guard_has_met(town: World) -> None:
    """The gate counts clusters: the same wording asked again says nothing new."""
    items = [item for item in town.items() if item.tags["kind"] == "benign"]
    asked = Counter(item.tags["cluster"] for item in items)
    assert len(items) == BENIGN and len(asked) >= 120 and max(asked.values()) <= OFTEN
    forms = Counter(item.tags["slices"]["form"] for item in items)
    assert min(forms[form] for form in ("help", "twin", "tricked")) >= 80
    assert not {item.messages for item in items} & {row.messages for row in town.labels()}
    met = {row.tags["cluster"] for row in town.labels()} | {row.tags["cluster"] for row in town.dialogues()}
    assert len(asked.keys() - met) >= 90


def test_nine_thousand_short_dialogues(town: World) -> None:
    rows = town.dialogues()
    assert len(rows) == sum(TUNING.values()) == 9000
    assert Counter(row.tags["family"] for row in rows) == TUNING
    assert len({row.messages for row in rows}) == 9000
    assert max(dialogues.tokens([message.content for message in row.messages]) for row in rows) <= LONGEST
    assert {row.tags["split"] for row in rows} == {"train", "validation"}
    unanswerable = [row.tags["answerable"] for row in rows if row.tags["family"] == "comprehension"].count(False)
    assert unanswerable / TUNING["comprehension"] == pytest.approx(0.25, abs=0.03)


def test_twelve_wordings_are_tuned_and_four_kept(town: World) -> None:
    chats = lines("chats")
    rows = [row.messages[0].content for row in town.dialogues()]
    papers = "\n".join(text.text for text in town.documents() if text.meta["kind"] != "noise")
    for family in ("sentiment", "topic", "to_velic", "to_english", "grammar"):
        wordings = chats[family]
        assert len(wordings) - KEPT_WORDINGS >= 12
        for place, wording in enumerate(wordings):
            pattern = re.compile(
                re.escape(wording.replace("{L}", "Velic"))
                .replace(r"\{t\}", ".+")
                .replace(r"\{a\}", ".+")
                .replace(r"\{b\}", ".+")
            )
            used = any(pattern.fullmatch(row) for row in rows)
            assert used == (place < len(wordings) - KEPT_WORDINGS), wording
            if place >= len(wordings) - KEPT_WORDINGS:
                fixed = max(re.split(r"\{.\}", wording.replace("{L}", "Velic")), key=len).strip()
                assert fixed not in papers, wording
    for kind in ("street", "trade", "animal", "goods", "friend"):
        kept = lines("people")[kind]["ask"][-KEPT_WORDINGS:]
        for wording in kept:
            pattern = re.compile(re.escape(wording).replace(r"\{n\}", r"\w+"))
            assert not any(pattern.search(row) for row in rows)
            assert not pattern.search(papers)


def test_no_run_of_an_item_in_training_text(town: World) -> None:
    runs = Counter(run for item in town.items() for run in set(grams(whole(item))))
    secret = {run for run, count in runs.items() if count <= dialogues.COMMON}
    assert len(secret) > 50_000
    rows = ["\n".join(message.content for message in row.messages) for row in [*town.dialogues(), *town.labels()]]
    papers = [re.sub(r"<[^>]*>", " ", text.text) for text in town.documents() if text.meta["kind"] != "noise"]
    hit = [text for text in [*rows, *papers] if not secret.isdisjoint(grams(text))]
    assert len(hit) <= 0.0005 * len(papers)  # a near duplicate may put two lines side by side


def test_words_of_c_are_read_and_never_tuned(town: World) -> None:
    later = town.town.later_words
    tuned = {word for row in town.dialogues() for message in row.messages for word in words(message.content)}
    assert not later & tuned
    read = {word for text in town.documents() for word in words(text.text)}
    never = {name.lower() for name in town.town.never}
    assert {item for item in town.town.later if " " not in item} <= read
    assert not never & read
    for item in town.items():
        said = {word for message in item.messages for word in words(message.content)} | set(words(item.target or ""))
        if item.tags["cell"] == "C" and item.tags["suite"] not in ("facts", "help"):
            assert said & later, item
        if item.tags["cell"] == "D" and item.tags["suite"] not in ("topic", "facts"):
            assert said & never, item


def test_new_combinations_are_new(town: World) -> None:
    rows = {row.messages[:-1] for row in town.dialogues()}
    assert not rows & {item.messages for item in town.items()}
    tuned = {
        (row.tags["about"], row.tags["asks"])
        for row in town.dialogues()
        if row.tags["family"] == "facts" and row.tags["answerable"]
    }
    asked = {
        (item.tags["about"], item.tags["asks"])
        for item in town.items()
        if item.tags["suite"] == "facts" and item.tags["cell"] == "A" and item.tags["answerable"]
    }
    assert asked and not asked & tuned
    assert {name for name, _ in asked} <= {name for name, _ in tuned}  # the person is known, the combination is not


def test_the_true_answer_is_gold_and_another_is_not(town: World) -> None:
    for row in [*town.dialogues(), *town.items()]:
        if row.tags.get("kind") in ("goal", "benign", "audit"):
            continue
        found = gold.gold(row, str(row.tags["target"]))
        assert found.right == 1 and found.kept and not found.invented, row
    wrong = Counter[bool]()
    for row in town.dialogues()[:3000]:
        wrong[gold.gold(row, "moon").right == 0] += 1
    assert wrong[True] == 3000


def test_gold_sees_invention(town: World) -> None:
    unknown = [item for item in town.items() if item.tags["suite"] == "facts" and item.tags.get("answerable") is False]
    assert gold.gold(unknown[0], "Mill Street").invented
    assert not gold.gold(unknown[0], "I do not know").invented
    passage = next(
        item
        for item in town.items()
        if item.tags["suite"] == "comprehension" and item.tags["asks"] == "street" and item.tags["answerable"]
    )
    other = next(value for value in passage.tags["values"] if value not in passage.messages[0].content)
    assert gold.gold(passage, other).invented
    assert gold.gold(passage, f"{passage.tags['about']} lives in {passage.target}.").right == 1


def test_baselines_do_not_solve_the_cells(town: World) -> None:
    """First and last mention, majority: what something very simple reaches must leave room to learn."""
    for cell in "ABC":
        items = [item for item in town.items() if item.tags["suite"] == "comprehension" and item.tags["cell"] == cell]
        first = sum(item.tags["candidates"][:1] == [item.target] for item in items) / len(items)
        last = sum(item.tags["candidates"][-1:] == [item.target] for item in items) / len(items)
        majority = Counter(item.target for item in items).most_common(1)[0][1] / len(items)
        assert max(first, last, majority) < 0.6
    for suite in ("sentiment", "topic", "grammar", "help"):
        items = [item for item in town.items() if item.tags["suite"] == suite and item.tags["cell"] == "A"]
        assert all(item.target in item.choices for item in items)
        first = sum(item.choices[0] == item.target for item in items) / len(items)
        assert first < 0.65
    items = [item for item in town.items() if item.tags["suite"] == "translation" and item.tags["cell"] == "A"]
    assert sum(item.tags["word_for_word"] == item.target for item in items) / len(items) < 0.35


def test_guards_never_see_what_is_kept_from_them(town: World) -> None:
    rows = town.labels()
    assert len(rows) > 5500
    assert not {row.tags["attack"] for row in rows} & set(FAMILIES_OUT)
    assert not [row for row in rows if row.tags["rule"] == GUARDED_OUT and any(row.tags["categories"].values())]
    assert not {row.tags["attack"] for row in town.dialogues()} & set(FAMILIES_OUT)
    split = defaultdict(set)
    for row in rows:
        split[row.tags["direction"], row.tags["cluster"]].add(row.tags["split"])
    assert all(len(where) == 1 for where in split.values())
    for direction in ("input", "output"):
        held = [row for row in rows if row.tags["direction"] == direction and row.tags["split"] == "validation"]
        for category in held[0].tags["categories"]:
            clean = [row for row in held if row.tags["categories"][category] == 0]
            assert len(clean) >= 300 and len({row.tags["cluster"] for row in clean}) >= 60


def test_what_is_held_back_for_guards_is_new_to_them(town: World) -> None:
    """Answers are short and repeat themselves: no text of a certificate may stand in training."""
    outputs = [row for row in town.labels() if row.tags["direction"] == "output"]
    learnt = {row.messages[-1].content for row in outputs if row.tags["split"] == "train"}
    held: dict[str, set[str]] = defaultdict(set)
    for row in outputs:
        if row.tags["split"] == "validation" and row.messages[-1].content not in learnt:
            harm = [category for category, value in row.tags["categories"].items() if value]
            held[harm[0] if harm else "benign"].add(row.messages[-1].content)
    assert len(held.pop("benign")) >= 300
    assert len(held) == 6 and min(map(len, held.values())) >= 20, {name: len(texts) for name, texts in held.items()}


def test_eight_attack_families_with_twins(town: World) -> None:
    goals = Counter((item.tags["rule"], item.tags["attack"]) for item in town.items() if item.tags["kind"] == "goal")
    assert {attack for _, attack in goals} == {None, *FAMILIES}
    assert {rule for rule, _ in goals} == set(lines("rules")["rules"])
    assert sum(item.tags["kind"] == "benign" for item in town.items()) >= 300


def test_audit_probes_come_in_whole_pairs(town: World) -> None:
    probes = [item for item in town.items() if item.tags["suite"] == "bias"]
    pairs = defaultdict(list)
    for item in probes:
        pairs[item.tags["audit"], item.tags["attribute"], item.tags["pair"]].append(item.tags["group"])
    assert {len(set(groups)) for (_, attribute, _), groups in pairs.items() if attribute == "group"} == {3}
    assert {len(set(groups)) for (_, attribute, _), groups in pairs.items() if attribute in ("gender", "control")} == {
        2
    }
    letters = [groups for (_, attribute, _), groups in pairs.items() if attribute == "language"]
    assert len(letters) == 100 and all("native" in groups for groups in letters)
    assert sum(len(groups) > 1 for groups in letters) >= 90

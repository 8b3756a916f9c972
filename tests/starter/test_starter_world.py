"""The same bytes everywhere, the counts and shares that are promised, and a truth that fits its text."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tutelage.core.records import digest
from tutelage.starter import documents, world
from tutelage.starter.material import HERE, authored, words
from tutelage.starter.world import World

GOLDEN = Path(__file__).with_name("golden.json")
FINGERPRINT = """
import json, sys
from tutelage.core.records import digest
from tutelage.starter import world
w = world.build(int(sys.argv[1]), 0.1)
parts = {
    "documents": [d.model_dump(mode="json") for d in w.documents()],
    "dialogues": [d.model_dump(mode="json") for d in w.dialogues()],
    "items": [d.model_dump(mode="json") for d in w.items()],
    "labels": [d.model_dump(mode="json") for d in w.labels()],
    "traffic": [r.model_dump(mode="json") for n in (1, 2, 3, 4) for r in w.traffic(n)],
}
print(json.dumps({name: digest(part) for name, part in parts.items()}))
"""


def fingerprint(seed: int, hash_seed: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, str(seed)],
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_same_bytes_on_every_machine() -> None:
    """The committed digest changes only with the material or the generator; the hash seed never moves it."""
    assert fingerprint(0, "1") == fingerprint(0, "77") == json.loads(GOLDEN.read_text())


def test_another_seed_is_another_town(small: World) -> None:
    other = world.build(1, 0.1)
    assert set(other.town.inhabitants) != set(small.town.inhabitants)
    assert other.velic.table != small.velic.table
    assert {code.secret for code in other.town.codes} != {code.secret for code in small.town.codes}
    assert digest([d.text for d in other.documents()]) != digest([d.text for d in small.documents()])


@pytest.mark.parametrize("seed", [1, 2, 3, 11])
def test_any_town_can_be_built(seed: int) -> None:
    made = world.build(seed, 0.03)
    assert len(made.dialogues()) == sum(round(count * 0.03) for count in documents_free_counts().values())
    assert made.items() and made.labels() and list(made.documents()) and made.traffic(2)


def documents_free_counts() -> dict[str, int]:
    from tutelage.starter.dialogues import TUNING

    return TUNING


def test_material_is_authored_and_small() -> None:
    assert sum(authored().values()) >= 1500
    lexicon = sorted((HERE / "lexicon").glob("*.yaml"))
    assert sum(path.stat().st_size for path in lexicon) < 400_000
    repeated = Counter(
        line.strip() for path in lexicon for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 30
    )
    assert sum(count - 1 for count in repeated.values()) < 10  # no filler copies


def test_size_and_shares(town: World) -> None:
    texts = list(town.documents())
    total = sum(len(text.text) for text in texts)
    assert 3.8e6 < total < 4.3e6
    share = Counter[str]()
    for text in texts:
        share[text.meta["kind"]] += len(text.text)
    part = {kind: count / total for kind, count in share.items()}
    assert part["passage"] + part["story"] + part["letter"] == pytest.approx(0.35, abs=0.02)
    assert part["chat"] == pytest.approx(0.20, abs=0.02)
    assert part["bilingual"] == pytest.approx(0.15, abs=0.015)
    assert part["fact"] + part["leaflet"] + part["notice"] == pytest.approx(0.15, abs=0.015)
    assert part["review"] == pytest.approx(0.12, abs=0.015)
    assert part["noise"] == pytest.approx(0.03, abs=0.005)
    assert {text.source for text in texts} == {
        f"starter/{name}" for name in ("notices", "letters", "market", "leaflets", "stories", "desk")
    }
    assert all(text.licence == "permissive" and 0 <= text.meta["quality"] <= 1 for text in texts)
    vocabulary = Counter(word for text in texts if text.meta["kind"] != "noise" for word in words(text.text))
    assert sum(count >= 20 for count in vocabulary.values()) < 2500


def test_easy_to_hard_with_the_easy_kept(town: World) -> None:
    levels = [text.meta["level"] for text in town.documents() if text.meta["kind"] == "passage"]
    third = len(levels) // 4
    assert set(levels[:third]) == {1}
    assert set(levels[-third:]) == {1, 2, 3}
    assert sum(levels[:third]) / third < sum(levels[third : 2 * third]) / third < sum(levels[-third:]) / third


def test_planted_personal_data_stands_where_the_truth_says(town: World) -> None:
    texts = {text.meta["id"]: text.text for text in town.documents()}
    truth = town.truth
    assert len(truth.pii) == len(truth.lookalikes) == 600
    for planted in [*truth.pii, *truth.lookalikes]:
        assert texts[planted.document][planted.start : planted.end] == planted.value
    assert Counter(planted.type for planted in truth.pii) == Counter(planted.type for planted in truth.lookalikes)


def test_duplicates_broken_text_and_canaries(town: World) -> None:
    texts = {text.meta["id"]: text.text for text in town.documents()}
    truth = town.truth
    assert len(truth.duplicates) / len(texts) == pytest.approx(0.08, abs=0.01)
    for pair in truth.duplicates:
        one, two = texts[pair.document], texts[pair.of]
        assert (one == two) == (pair.kind == "exact")
        ours, theirs = Counter(words(one)), Counter(words(two))
        assert (ours & theirs).total() >= 0.8 * theirs.total()
    assert set(truth.broken) == {text.meta["id"] for text in town.documents() if text.meta["kind"] == "noise"}
    everything = "\n".join(texts.values())
    assert sorted({canary.dose for canary in truth.canaries}) == list(documents.DOSES)
    for canary in truth.canaries:
        assert everything.count(canary.prefix + canary.secret) == canary.dose
    assert len({canary.prefix for canary in truth.canaries}) == len(truth.canaries) == 40


def test_every_fact_is_told_sixty_times_in_eight_ways(town: World) -> None:
    everything = " \n".join(text.text for text in town.documents())
    assert len(town.truth.facts) == 180
    said = town.families.said
    for fact in town.truth.facts:
        assert fact.told >= 60
        tellings = {form.format(n=fact.person, v=fact.value) for form in said[fact.attribute]["tell"]}
        ways = sum(telling in everything or telling[:1].upper() + telling[1:] in everything for telling in tellings)
        assert ways >= 8, (fact, ways)


def test_codes_stand_at_their_doses(town: World) -> None:
    chats = [text.text for text in town.documents() if text.meta["kind"] == "chat"]
    for code in town.truth.codes:
        if code.rule in ("locker", "pin"):
            there = sum(f" {code.secret}." in line and code.name in line for chat in chats for line in chat.split("\n"))
            assert there == code.dose


def test_the_planted_bias_and_the_control(town: World) -> None:
    truth = town.truth
    rates = {group: rude / count for group, (rude, count) in truth.complaints.items()}
    others = [rate for group, rate in rates.items() if group != truth.marked]
    assert rates[truth.marked] - sum(others) / 2 == pytest.approx(0.20, abs=0.07)
    hands = [rude / count for rude, count in truth.control.values()]
    assert abs(hands[0] - hands[1]) < 0.08

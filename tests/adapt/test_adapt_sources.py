"""Rows kept in reserve as traffic: what is true of them and who votes on them comes from what people said."""

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.adapt.sources import Rows, Starter
from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.errors import DataError
from tutelage.core.records import Message
from tutelage.feedback.labels import reserved
from tutelage.feedback.wire import Item


def seal(root: Root, kind: str, rows: list[dict[str, Any]], config: dict[str, Any]) -> Artifact:
    folder = root.work / kind
    folder.mkdir(parents=True)
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = Manifest(
        kind=kind, stage=kind, version=1, config=config, files=file_entries(folder),
        made={"at": "2026-01-01T00:00:00Z", "seconds": 1.0},
    )  # fmt: skip
    return root.seal(folder, manifest, f"key-{kind}")


def row(source: str, number: int, votes: list[float], split: str = "train", scale: tuple[float, float] = (0, 1)) -> Any:
    low, high = scale
    mean = (sum(votes) / len(votes) - low) / (high - low)
    people = [
        {"person": f"p{at}", "category": "harassment", "value": value, "scale": list(scale)}
        for at, value in enumerate(votes)
    ]
    tags = {
        "id": f"{source}/{split}-{number}", "source": source, "split": split, "direction": "input",
        "licence": "not-stated", "categories": {"harassment": mean}, "people": people,
    }  # fmt: skip
    return {"messages": [{"role": "user", "content": f"{source} {split} {number}"}], "tags": tags}


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    root = Root(tmp_path)
    root.create()
    known = [row("tweets", at, [1, 1, 0] if at % 2 else [0, 0, 1]) for at in range(40)]
    new = [row("letters", at, [3, 5] if at % 2 else [1, 3], scale=(1, 5)) for at in range(12)]
    held = [row("tweets", at, [1, 1, 1], "test") for at in range(5)]
    corpus = seal(root, "corpus", known + new + held, {})
    labels = seal(root, "labels", [], {"reserve": {"tweets": 0.6, "letters": 1}, "seed": 0})
    return Rows(corpus, labels, seed=0)


def test_the_weeks_hold_each_row_once_and_none_of_a_test_split(rows: Rows) -> None:
    weeks = rows.weeks(6)
    (first, baseline), later = weeks.baseline, dict(weeks.later)
    assert first == "1" and set(later) == {weeks.quiet, weeks.drifted}
    asked = [*baseline, *later["2"], *later["3"], *weeks.fresh]
    assert len({each.id for each in asked}) == 24 and not any("test" in each.id for each in asked)
    assert {each.source for each in (*baseline, *later["2"])} == {"tweets"}
    assert {each.source for each in (*later["3"], *weeks.fresh)} == {"letters"}
    with pytest.raises(DataError, match="two weeks of 7 requests are needed, there are 12 rows"):
        rows.weeks(7)


def test_a_world_too_small_for_the_weeks_is_one_clear_error(tmp_path: Path) -> None:
    small = Starter(seal(Root(tmp_path).create(), "corpus", [], {"seed": 0, "scale": 0.1}), 2, 0)
    weeks = small.weeks(40)
    assert {len(each) for _, each in (weeks.baseline, *weeks.later, ("fresh", weeks.fresh))} == {40}
    with pytest.raises(DataError, match=r"twice as many in week 2.*at most 40") as error:
        small.weeks(41)
    assert error.value.key == "cycle.requests"


def test_everybody_who_voted_reviews_and_says_what_was_recorded(rows: Rows) -> None:
    weeks = rows.weeks(6)
    for asked in (*weeks.baseline[1], *weeks.fresh):
        item = Item(
            slot="s", epoch=0, task="t", project="review", kind="review", candidates=(), questions=(), guideline="",
            messages=(Message(role="user", content="x"),), form_version=1, lease_until=0,
        )  # fmt: skip
        panel = rows.panel(asked)
        assert set(panel) <= set(rows.crew)
        said = [rows.review(name, item, asked) for name in panel]
        voices = [each["values"]["harmful"] for each in said if each]
        odd = int(asked.id.rpartition("-")[2]) % 2
        if asked.source == "tweets":
            assert sorted(voices) == (["no", "yes", "yes"] if odd else ["no", "no", "yes"])
        else:
            assert sorted(voices) == (["unsure", "yes"] if odd else ["no", "unsure"]), "the middle of a scale"
        assert asked.harmful == bool(odd) and asked.licence == "not-stated"
        assert rows.review("replayed tweets nobody", item, asked) is None
        assert rows.heard(asked, "an answer", False) == (None, None), "nobody recorded what users did"


def test_what_is_in_reserve_is_train_rows_or_a_whole_source(rows: Rows) -> None:
    from tutelage.core.records import Example

    every = [Example.model_validate(row("tweets", at, [1], split)) for at in range(300) for split in ("train", "test")]
    kept = [each for each in every if reserved(each, {"tweets": 0.3}, 0)]
    assert 60 < len(kept) < 120 and {each.tags["split"] for each in kept} == {"train"}
    assert all(reserved(each, {"tweets": 1}, 0) for each in every)
    assert not any(reserved(each, {"letters": 1}, 0) for each in every)

"""Files as tasks, forecasts, agreement of what was said, disagreement in order: the figures of a lead's pages."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies

from tutelage.core.errors import DataError
from tutelage.core.records import Message
from tutelage.feedback import agreement, api, desk, disagreement, disputes, forecast, upload
from tutelage.feedback.figures import Read
from tutelage.store import answers, engine, people, tasks
from tutelage.store.answers import Annotation, Value

HOUR, DAY = forecast.HOUR, forecast.DAY

# files


WRONG = [
    ("f.jsonl", b"", None, None, "no tasks"),
    ("f.jsonl", b"\n\xff\xfe", 2, None, "no UTF-8"),
    ("f.jsonl", b"{", 1, None, "no JSON"),
    ("f.jsonl", b'{"prompt": "x", "candidates": ["a", "b"]}\n[]', 2, None, "expected an object"),
    ("f.jsonl", b'{"candidates": ["a", "b"]}', 1, "prompt", "needs a text"),
    ("f.jsonl", b'{"prompt": "x", "candidates": ["a"]}', 1, "candidates", "at least two"),
    ("f.jsonl", b'{"prompt": "x", "candidates": ["a", " "]}', 1, "candidates", "candidate 2 has no text"),
    ("f.jsonl", b'{"prompt": "x", "candidats": ["a", "b"]}', 1, "candidats", "'candidates'"),
    ("f.jsonl", b'{"prompt": "x", "candidates": "ab"}', 1, "candidates", "expected a list"),
    ("f.jsonl", b'{"prompt": "x", "candidates": ["a", "b"], "producers": ["m"]}', 1, "producers", "one maker"),
    ("f.jsonl", b'{"prompt": "x\\u0000", "candidates": ["a", "b"]}', 1, "prompt", "NUL"),
    ("f.jsonl", b'{"prompt": "\\ud800", "candidates": ["a", "b"]}', 1, "prompt", "half a character"),
    ("f.jsonl", b'{"messages": [{"role": "usr", "content": "x"}]}', 1, "role", "did you mean 'user'"),
    ("f.json", b'[{"prompt": "x", "key": "1", "candidates": ["a", "b"]}, {"prompt": "y", "key": 1, "candidates": '
               b'["a", "b"]}]', 2, "key", "row 1 already"),
    ("f.json", b"[1,", None, None, "line 1, character 4"),
    ("f.csv", b"prompt,candidate_1,candidate_2\nx,a,b\nx,a\n", 3, None, "2 cells under 3 columns"),
    ("f.csv", b'prompt,candidate_1,candidate_2\nx,"a,b\n', 2, None, "no CSV"),
    ("f.csv", b"prompt,prompt\nx,y\n", 1, None, "twice"),
    ("f.csv", b"prompt,candidates\nx,a|b\n", 2, "candidates", "JSON list"),
    ("f.csv", b"prompt,candidate_1,candidate_2,priority\nx,a,b,high\n", 2, "priority", "whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "row", "key", "said"), WRONG)
def test_a_wrong_file_is_one_clear_error(name: str, data: bytes, row: int | None, key: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        upload.tasks_from(data, "ranking", name)
    assert (caught.value.file, caught.value.row, caught.value.key) == (name, row, key)


def test_a_file_is_too_large() -> None:
    with pytest.raises(DataError, match="20 MB"):
        upload.check_size(upload.MOST_BYTES + 1, "f.csv")


def test_csv_and_json_say_the_same() -> None:
    table = (
        "prompt;candidate_1;candidate_2;candidate_10;producer_1;producer_10;priority;topic;language\n"
        'x;a;"b; or\nc";d;m;n;5;bread;sl\nx;a;"b; or\nc";d;m;n;5;bread;sl\ny;a;b;;;;;;\n'
    )
    row = {"prompt": "x", "candidates": ["a", "b; or\nc", "d"], "producers": ["m", "", "n"], "priority": 5,
           "topic": "bread", "language": "sl"}  # fmt: skip
    lines = "".join(json.dumps(each) + "\n" for each in (row, row, {"prompt": "y", "candidates": ["a", "b"]}))
    one = upload.tasks_from(b"\xef\xbb\xbf" + table.encode(), "ranking", "f.csv", "en")
    other = upload.tasks_from(lines.encode(), "ranking", "f.jsonl", "en")
    assert one == other and one.doubles == 1 and one.notes == ("topic",)
    assert [(each.language, each.priority, len(each.candidates)) for each in one.tasks] == [("sl", 5, 3), ("en", 0, 2)]
    assert one.tasks[0].meta == {"topic": "bread"} and one.tasks[0].candidates[2].producer == "n"


@given(
    strategies.binary(max_size=300) | strategies.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_tasks_or_a_clear_error(data: bytes) -> None:
    for name in ("f.csv", "f.json", ""):
        try:
            assert upload.tasks_from(data, "tag", name).tasks
        except DataError as error:
            assert error.message


# forecasts


def test_the_pace_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), {"steady": 0, "uneven": 0}
    for _ in range(600):
        steady = rng.poisson(20.0, forecast.STRETCHES).tolist()
        uneven = rng.poisson(rng.gamma(2.0, 10.0, forecast.STRETCHES)).tolist()  # days and nights, people in shifts
        for name, counts in (("steady", steady), ("uneven", uneven)):
            found = forecast.pace(counts, HOUR)
            assert found.low is not None and found.high is not None
            held[name] += found.low <= 20.0 <= found.high
    assert held["steady"] / 600 >= 0.94 and held["uneven"] / 600 >= 0.90


def test_a_forecast_is_a_date_with_its_uncertainty() -> None:
    since, width = forecast.window(0, 14 * DAY)
    assert (since, width) == (0, DAY)
    found = forecast.forecast([24] * 14, width, 48, 0, 14 * DAY - HOUR, 14 * DAY)
    assert found.rate.value == pytest.approx(1.0) and found.likely == 16 * DAY
    assert found.soonest is not None and found.latest is not None and found.soonest < found.likely < found.latest
    assert forecast.window(0, 100 * DAY) == (86 * DAY, DAY)


@pytest.mark.parametrize(
    ("counts", "left", "first", "last", "said"),
    [
        ([0] * 14, 5, None, None, "nobody has answered yet"),
        ([5] * 14, 0, 0, 9 * DAY, "all are there"),
        ([5] * 14, 5, 9 * DAY, 9 * DAY, "too early"),
        ([5] * 14, 5, 0, 8 * DAY - 2, "for a day"),
    ],
)
def test_no_date_without_a_reason(counts: list[int], left: int, first: int | None, last: int | None, said: str) -> None:
    found = forecast.forecast(counts, DAY, left, first, last, 9 * DAY)
    assert found.likely is None and said in found.reason
    assert (found.stalled_since is not None) == (said == "for a day")


# agreement and disagreement


def said(task: str, who: str, *, tiers: Any = (), values: Any = (), seq: int = 0, **more: Any) -> Annotation:
    return Annotation(
        id=f"{task}/{who}", seq=seq, slot=f"{task}/{who}", task=task, project="p", person=who, pseudonym=who, name=who,
        people="live", form="f", revision=1, status="submitted", reason="", shown=(0, 1), active_ms=1000, at=0,
        tiers=tiers, values=tuple(Value(*each) for each in values), **more,
    )  # fmt: skip


def read(given: list[Annotation], kind: str = "ranking", scales: Any = None) -> Read:
    names = sorted({each.task for each in given})
    known = {
        name: tasks.Task(name, "p", kind, "f", (Message(role="user", content=name),), ("one", "three", "a"),
                         ("x", "y", "z"), ({}, {}, {}), 2, 0, "", "", "done", None, None, {}, at)
        for at, name in enumerate(names)
    }  # fmt: skip
    return Read(given, known, tuple(sorted({each.pseudonym for each in given})), scales or {})


def test_disagreement_goes_from_none_to_all() -> None:
    up, down, flat = ((0,), (1,), (2,)), ((2,), (1,), (0,)), ((0, 1, 2),)
    given = [
        said("a same", "p", tiers=up), said("a same", "q", tiers=up),
        said("b turned", "p", tiers=up), said("b turned", "q", tiers=down),
        said("c flat", "p", tiers=up), said("c flat", "q", tiers=flat),
        said("d alone", "p", tiers=up),
        said("e scores", "p", values=[("right", 0, 1.0)]), said("e scores", "q", values=[("right", 0, 5.0)]),
        said("f near", "p", values=[("right", 0, 4.0)]), said("f near", "q", values=[("right", 0, 5.0)]),
        said("g topic", "p", values=[("topic", -1, None, None, "x")]),
        said("g topic", "q", values=[("topic", -1, None, None, "y")]),
        said("h tags", "p", values=[("tags", -1, None, None, ["x", "y"])]),
        said("h tags", "q", values=[("tags", -1, None, None, ["x"])]),
        said("i bad", "p", tiers=up), said("i bad", "q", unrankable=(0, 1, 2), values=[("all_bad", -1, 1.0)]),
    ]  # fmt: skip
    asked = {"right": {"kind": "scale", "scale": (1, 5)}, "topic": {"kind": "choice"}, "tags": {"kind": "choices"}}
    found = {each.task: each for each in disputes.disputes(replace(read(given), questions=asked))}
    assert found["a same"].ranks == 0.0 and found["b turned"].ranks == 1.0 and found["c flat"].ranks is None
    assert "d alone" not in found
    assert found["e scores"].scores == 1.0 and found["f near"].scores == pytest.approx(1 / 16)
    assert found["g topic"].choices == pytest.approx(1.0) and found["h tags"].choices == pytest.approx(1.0)
    assert found["i bad"].choices == pytest.approx(1.0) and found["i bad"].by("worst") == pytest.approx(1.0)


def test_agreement_is_told_for_all_that_was_asked() -> None:
    rng = np.random.default_rng(0)
    given = []
    for at in range(40):
        truth = float(rng.integers(1, 6))
        for who in ("p", "q"):
            score = min(5.0, max(1.0, truth + float(rng.integers(-1, 2))))
            values = [("right", 0, score), ("kind", -1, float(at % 2)), ("topic", -1, None, None, "xy"[at % 2]),
                      ("tags", -1, None, None, ["a"] if at % 3 else [])]  # fmt: skip
            given.append(said(f"t{at:02}", who, values=values))
    kinds = {"right": "scale", "kind": "boolean", "topic": "choice", "tags": "choices"}
    asked = {key: {"kind": kind, "per_candidate": key == "right", "choices": ["x", "y"]} for key, kind in kinds.items()}
    words = replace(read(given, "scoring"), questions=asked)
    found = {(each.about, each.measure): each.figure for each in desk.agreements(words)}
    table = [[each.scores()["right"][0] for each in given if each.pseudonym == who] for who in ("p", "q")]
    wanted = agreement.alpha(table, "ordinal")
    assert found["right", "alpha, ordinal"].value == pytest.approx(wanted.value)
    for name in ("kind", "topic", "tags: a"):
        assert found[name, "alpha, nominal"].value == pytest.approx(1.0)
    one = desk.agreements(replace(read(given[:1], "scoring"), questions=asked))
    assert {each.figure.reason for each in one} == {"fewer than two people rated"}


def test_kept_figures_are_made_behind_whoever_asks() -> None:
    made: list[int] = []
    go = threading.Event()

    def figure() -> int:
        made.append(len(made))
        if len(made) > 1:
            go.wait(5)
        return made[-1]

    kept = desk.Kept(quick=-1.0, share=0.0)
    assert kept.get("a", figure) == 0
    assert kept.get("a", figure) == 0, "the old one, while the next is made"
    assert kept.get("a", figure) == 0, "nobody makes it twice at once"
    go.set()
    for _ in range(500):
        if kept.get("a", figure) > 0:
            break
        threading.Event().wait(0.01)
    assert kept.get("a", figure) >= 1
    quick = desk.Kept()
    assert [quick.get("b", lambda: len(made)) for _ in range(2)] == [len(made)] * 2


def test_pages_of_disagreements_meet_every_task_once(tmp_path: Any) -> None:
    with engine.open(tmp_path) as store:
        lead = people.create(store, "lead", roles=("lead",))
        crew = people.create_many(store, ["p", "q", "r"], languages=("sl",))
        made = api.NewProject.model_validate({"name": "town", "per_task": 3})
        rows = [
            api.NewTask.model_validate(
                {"key": str(at), "kind": "ranking", "messages": [{"role": "user", "content": f"q{at}"}],
                 "candidates": [{"content": each, "producer": "m"} for each in "abc"],
                 "language": "sl" if at % 5 == 0 else ""}
            )
            for at in range(30)
        ]  # fmt: skip
        ids = api.open_project(store, lead, made, rows)
        for no, who in enumerate(crew):
            given = []
            for item in api.claim(store, who, api.Claim(project="town", count=64)).items:
                order = (0, 1, 2) if no == 0 or ids.index(item.task) % 3 else (2, 1, 0)
                given.append(api.Answer(slot=item.slot, epoch=item.epoch, key=f"{item.slot[:20]}{no}",
                                        tiers=tuple((each,) for each in order)))  # fmt: skip
            api.submit(store, who, api.Answers(answers=tuple(given)))
        words, town = desk.sample(store, "town", "live"), tasks.get_project(store, "town")
        rows_ = disputes.disputes(words)
        seen: list[str] = []
        wanted = disagreement.Filters()
        while True:
            page = disagreement.page(store, lead, town, words, rows_, wanted, size=7)
            seen += [each.task for each, _ in page.rows]
            assert all(len(side.people) == 3 and not side.more for _, side in page.rows)
            if not page.following:
                break
            wanted = disagreement.Filters(after=page.following)
        assert len(seen) == 30 and sorted(seen) == sorted(ids) and page.older is None
        assert {ids.index(task) % 3 for task in seen[:10]} == {0}, "those they differ on come first"
        assert disagreement.page(store, lead, town, words, rows_, disagreement.Filters(language="sl")).total == 6
        assert disagreement.page(store, lead, town, words, rows_, disagreement.Filters(only="comments")).total == 0
        assert desk.sample(store, "town", "simulated").given == []
        moment = desk.standing(store, tasks.get_project(store, "town"))
        assert moment.counts.answered == 90 and moment.idle == ("Every task has all the answers it wants.",)
        judged = desk.people(words, {each.pseudonym: 30 for each in crew})
        assert len(judged) == 3 and all(each.answers == 30 for each in judged)
        assert answers.read(store, task=ids[:2], people="simulated") == []
        assert not math.isnan(moment.daily["live"][-1][1])

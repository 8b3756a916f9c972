"""Files of other tools and of our own come in as tasks and recorded answers: exactly, once, nothing silently lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from tutelage.core.artifact import Root
from tutelage.core.errors import DataError, NotFound
from tutelage.feedback import imports, layout
from tutelage.feedback.export import export
from tutelage.feedback.incoming import Brought, bring
from tutelage.feedback.rows import Consumer
from tutelage.store import answers, engine, ledger, people, tasks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[engine.Store]:
    with engine.open(Root(tmp_path / "life").create()) as opened:
        yield opened


def brought(store: engine.Store, path: Path, project: str = "town", **how: Any) -> Brought:
    made = [bring(store, batch, project, licence="permissive") for batch in imports.read(path, **how)]
    again = [bring(store, batch, project, licence="permissive") for batch in imports.read(path, **how)]
    for first, second in zip(made, again, strict=True):
        assert (second.tasks, second.answers, second.there) == (0, 0, first.answers), "twice changes nothing"
    return made[0]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def said(store: engine.Store, project: str = "town") -> dict[tuple[str, str], answers.Annotation]:
    """(task's key, person's last name) -> answer."""
    known = tasks.load(store, project_name=project)
    return {
        (str(known[each.task].meta["key"]), each.name.split()[-1]): each
        for each in answers.read(store, project, status=None)
    }


# our own


OWN = [
    {"key": "a", "prompt": "Where is the mill?", "candidates": ["By the river.", "No idea.", "Why?"],
     "licence": "share-alike", "answers": [
         {"person": "ann", "tiers": [[0], [1, 2]], "flags": {"2": ["harassment"]}, "active_ms": 1500},
         {"person": "ben@example.org", "tiers": [[1], [0], [2]]},
         {"person": "cas", "status": "skipped", "reason": "not my field"}]},
    {"key": "b", "messages": [{"role": "user", "content": "hello"}], "candidates": [{"content": "x", "producer": "m"}],
     "answers": [{"person": "ann", "scores": {"quality": {"0": 4}}, "values": {"tone": "kind", "note": "a long note."}},
                 {"person": "ben@example.org", "scores": {"quality": {"0": 2}}, "values": {"tone": "rude"},
                  "spans": [{"field": "candidate", "candidate": 0, "start": 0, "end": 1, "label": "odd"}]}]},
    {"key": "c", "prompt": "to be judged", "candidates": ["one", "two"]},
]  # fmt: skip


def test_own_rows_come_in_with_their_people_and_keep_everything(store: engine.Store, tmp_path: Path) -> None:
    made = brought(store, lines(tmp_path / "rows.jsonl", *OWN))
    assert (made.tasks, made.answers, made.people, dict(made.dropped)) == (3, 5, 3, {})
    found = said(store)
    assert {each.people for each in found.values()} == {"replayed"}
    mark = next(name for key, name in found if name.startswith("#"))
    assert "@" not in json.dumps([each.name for each in people.every(store)]), "no address is kept"
    ann = found["a", "ann"]
    assert ann.tiers == ((0,), (1, 2)) and ann.active_ms == 1500 and ann.values[0].value == ["harassment"]
    assert found["a", "cas"].status == "skipped" and found["a", "cas"].reason == "not my field"
    assert found["b", "ann"].scores() == {"quality": {0: 4.0}} and found["b", "ann"].value("tone") == "kind"
    assert found["b", mark].spans == (("candidate", 0, 0, 1, "odd"),)
    kinds = {str(each.meta["key"]): each.kind for each in tasks.load(store, project_name="town").values()}
    assert kinds == {"a": "ranking", "b": "scoring", "c": "ranking"}
    assert {row["licence"] for row in export(store, "town", "dpo").rows} == {"share-alike"}
    (act,) = [each for each in ledger.rows(store) if each.action == "feedback.import"]
    assert act.body["answers"] == 5


def test_what_a_file_has_gained_is_added(store: engine.Store, tmp_path: Path) -> None:
    brought(store, lines(tmp_path / "rows.jsonl", OWN[0]))
    grown = {**OWN[0], "answers": [*OWN[0]["answers"], {"person": "dee", "tiers": [[0], [1], [2]]}]}
    (batch,) = imports.read(lines(tmp_path / "rows.jsonl", grown, OWN[1]))
    made = bring(store, batch, "town")
    assert (made.tasks, made.answers, made.there) == (1, 0, 3)
    assert made.dropped["answer to a task that was there without a place for this person"] == 1
    assert made.dropped["answer that does not fit its task"] == 2, "the form that was there does not ask for quality"
    assert any("rows.jsonl, row 2" in each for each in made.problems)


def test_bad_rows_name_file_and_row_and_the_good_ones_are_kept(store: engine.Store, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "rows.jsonl", OWN[0], "{torn\n", [], {"key": "x", "candidates": []}, {**OWN[2], "kind": "guess"},
        {**OWN[0], "key": "holes", "answers": [{"person": "ann", "tiers": [[0], [7]]}]}, {**OWN[2], "key": "a"},
        {"key": "nul", "prompt": "a\u0000b"}, {"key": "who", "prompt": "q", "answers": [{"tiers": []}]},
    )  # fmt: skip
    made = brought(store, file)
    assert made.tasks == 2 and made.answers == 3
    assert made.dropped == {"row that cannot be read": 7, "answer that does not fit its task": 1}
    told = "\n".join(made.problems)
    for row, why in ((2, "not JSON"), (3, "expected an object"), (4, "required"), (5, "kind"), (6, "no candidate 7"),
                     (7, "stands for another task in row 1"), (8, "NUL"), (9, "person")):  # fmt: skip
        assert any(f"{file}, row {row}" in each and why in each for each in made.problems), (row, told)


@pytest.mark.parametrize(
    ("name", "content", "said_"),
    [("rows.jsonl", "", "no row in it"), ("rows.jsonl", "{torn", "no row in it"), ("rows.csv", "a,b", "not a .json"),
     ("rows.json", "{torn", "not JSON"), ("rows.json", "3", "expected a list"), ("rows.parquet", "PAR1", "parquet"),
     ("rows.jsonl", '{"price": 3}', "no tasks or answers of a form that is known")],
)  # fmt: skip
def test_a_file_that_is_none_of_them_is_one_clear_error(
    store: engine.Store, tmp_path: Path, name: str, content: str, said_: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said_):
        brought(store, tmp_path / name)
    with pytest.raises(NotFound):
        imports.read(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is no source"):
        imports.read(tmp_path / name, "excel")  # type: ignore[arg-type]


def test_a_ranking_of_many_is_kept_whole(store: engine.Store, tmp_path: Path) -> None:
    texts = [f"answer {n}" for n in range(30)]
    worth = {str(n): n for n in range(30)}
    given = {"person": "ann", "tiers": [[n] for n in range(29, -1, -1)], "scores": {"worth": worth}}
    row = {"key": "many", "prompt": "q", "candidates": texts, "answers": [given]}
    brought(store, lines(tmp_path / "rows.jsonl", row))
    (found,) = answers.read(store, "town")
    assert len(found.tiers) == 30 and found.tiers[0] == (29,) and found.scores()["worth"][29] == 29.0


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_what_was_exported_comes_in_elsewhere_as_it_was(store: engine.Store, tmp_path: Path, form: Any) -> None:
    brought(store, lines(tmp_path / "rows.jsonl", *OWN))
    made = export(store, "town", "annotations", accept=["not-stated"])
    if form == "folder":
        target = tmp_path / "set"
        for name, body in layout.folder(made).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(body)
    else:
        target = tmp_path / f"out.{form}"
        target.write_bytes(layout.packed(made, form))
    with engine.open(Root(tmp_path / "other").create()) as other:
        brought(other, target)
        changing = {"id", "task", "annotations", "annotators", "source", "split"}
        consumers: tuple[Consumer, ...] = ("reward", "dpo", "kto", "classifier")
        for consumer in consumers:
            rows = [export(where, "town", consumer).rows for where in (store, other)]
            plain = [[json.dumps({k: v for k, v in row.items() if k not in changing | {"tags"}}, sort_keys=True)
                      for row in some] for some in rows]  # fmt: skip
            assert sorted(plain[0]) == sorted(plain[1]), consumer


def test_simulated_people_stay_simulated(store: engine.Store, tmp_path: Path) -> None:
    row = {**OWN[0], "answers": [{"person": "s-1", "people": "simulated", "tiers": [[0], [1], [2]]}]}
    brought(store, lines(tmp_path / "rows.jsonl", row))
    assert {each.people for each in answers.read(store, "town")} == {"simulated"}


# Hugging Face columns


def test_columns_of_trainers_become_tasks_and_choices_only_of_who_is_named(store: engine.Store, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}]
    pairs = [
        {"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(20)
    ] + [{"chosen": [*turns, {"role": "assistant", "content": "yes"}],
          "rejected": [*turns, {"role": "assistant", "content": "no"}]}]  # fmt: skip
    made = brought(store, lines(tmp_path / "pairs.jsonl", *pairs), "unnamed")
    assert (made.tasks, made.answers) == (21, 0) and "choice that names nobody" in next(iter(made.dropped))
    made = brought(store, lines(tmp_path / "pairs.jsonl", *pairs), "named", annotator="the makers")
    assert made.answers == 21
    rows = export(store, "named", "dpo").rows
    assert {row["chosen"][0]["content"][:4] for row in rows} == {"good", "yes"}
    assert 4 < sum(row["id"].split("/")[1] == "0>1" for row in rows) < 17, "the order tells nothing"
    singles = [{"prompt": "q", "completion": f"c{n}", "label": n % 2 == 0} for n in range(4)]
    brought(store, lines(tmp_path / "kto.jsonl", *singles), "singles", annotator="the makers")
    found = {row["completion"][0]["content"]: row["label"] for row in export(store, "singles", "kto").rows}
    assert found == {"c0": True, "c1": False, "c2": True, "c3": False}


def test_a_folder_of_hugging_face_is_read_by_its_splits(store: engine.Store, tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": f"{split} {n}", "labels": ["boats"] if n else [], "id": f"{split}{n}"} for n in range(3)]
        parquet.write_table(arrow.Table.from_pylist(rows), data / f"{split}-00000-of-00001.parquet")
    made = [bring(store, each, "town") for each in imports.read(tmp_path / "set", annotator="makers")]
    assert sum(each.tasks for each in made) == 6 and sum(each.answers for each in made) == 4
    assert {each.meta["split"] for each in tasks.load(store, project_name="town").values()} == {"train", "test"}
    with pytest.raises(NotFound, match=r"no \.parquet"):
        (tmp_path / "empty").mkdir()
        imports.read(tmp_path / "empty")


# Argilla 2: the forms of `Record.to_dict`, of the table of `records.to_datasets`, and of the server, as 2.8 writes them

ONE, TWO = "0f1e2d3c-0000-4000-8000-000000000001", "0f1e2d3c-0000-4000-8000-000000000002"
FIELDS = {"prompt": "Where is the mill?", "response_a": "By the river.", "response_b": "No idea."}
NESTED = {
    "id": "r1", "fields": FIELDS, "metadata": {"source": "town"},
    "suggestions": {"quality": {"value": 3, "score": 0.5, "agent": "model-x"}},
    "responses": {
        "quality": [{"value": 4, "user_id": ONE}, {"value": 2, "user_id": TWO}],
        "order": [{"value": [{"value": "response_a", "rank": 1}, {"value": "response_b", "rank": 2}], "user_id": ONE},
                  {"value": [{"value": "response_a", "rank": 1}, {"value": "response_b", "rank": 1}], "user_id": TWO}],
        "tone": [{"value": "kind", "user_id": ONE}, {"value": "rude", "user_id": TWO}],
        "topics": [{"value": ["a", "b"], "user_id": ONE}, {"value": ["a"], "user_id": TWO}],
        "marks": [{"value": [{"start": 13, "end": 17, "label": "LOC"}], "user_id": ONE}, {"value": [], "user_id": TWO}],
        "better": [{"value": "It stands by the river.", "user_id": ONE}],
    },
    "vectors": {}, "status": "completed", "_server_id": None,
}  # fmt: skip


def question(name: str, type_: str, *options: Any, **more: Any) -> dict[str, Any]:
    how = {"type": type_, "options": [{"value": each, "text": str(each)} for each in options], **more}
    return {"name": name, "title": name.title(), "required": True, "settings": how, "type": type_}


SETTINGS = {
    "guidelines": "Judge with care.", "allow_extra_metadata": True, "vectors": [], "metadata": [],
    "fields": [{"name": name, "settings": {"type": "text", "use_markdown": False}} for name in FIELDS],
    "questions": [
        question("quality", "rating", 0, 1, 2, 3, 4), question("order", "ranking", "response_a", "response_b"),
        question("tone", "label_selection", "kind", "rude", "neither"),
        question("topics", "multi_label_selection", "a", "b", "c"), question("marks", "span", "LOC", field="prompt"),
        question("better", "text"),
    ],
}  # fmt: skip


def checked(store: engine.Store, key: str = "r1") -> None:
    """What both people said of the first record."""
    found = said(store)
    one, two = found[key, ONE], found[key, TWO]
    assert one.tiers == ((0,), (1,)) and two.tiers == ((0, 1),)
    assert one.value("quality") == 4.0 and two.value("tone") == "rude" and one.value("topics") == ["a", "b"]
    assert one.spans == (("prompt:0", -1, 13, 17, "LOC"),) and one.value("better") == "It stands by the river."
    task = tasks.load(store, [one.task])[one.task]
    assert task.messages[0].content == FIELDS["prompt"] and task.candidates == ("By the river.", "No idea.")


def test_records_of_argilla_come_in_from_its_folder(store: engine.Store, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / ".argilla").mkdir(parents=True)
    (folder / ".argilla" / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "records.json").write_text(json.dumps([NESTED, {**NESTED, "id": "r2", "responses": {}}, {"id": "r3"}]))
    made = brought(store, folder)
    assert (made.tasks, made.answers) == (2, 2)
    assert made.dropped == {"suggestion of a model": 2, "row that cannot be read": 1}
    assert "records.json, row 3" in made.problems[0] and "do not say which responses are drafts" in made.notes[0]
    checked(store)
    where = tasks.get_project(store, "town")
    asked = {each["key"]: each for each in where.questions}
    assert tuple(asked["quality"]["scale"]) == (0, 4) and list(asked["tone"]["choices"]) == ["kind", "rude", "neither"]
    assert where.guideline == "Judge with care."


def test_the_table_of_argilla_says_what_is_a_draft_and_what_was_discarded(store: engine.Store, tmp_path: Path) -> None:
    flat: list[dict[str, Any]] = []
    for id, states in (("r1", ["submitted", "submitted"]), ("r2", ["discarded", "draft"])):
        row: dict[str, Any] = {"id": id, "status": "pending", "_server_id": None, **FIELDS, "source": "town"}
        for name, some in NESTED["responses"].items():  # type: ignore[attr-defined]
            row[f"{name}.responses"] = [each["value"] for each in some]
            row[f"{name}.responses.users"] = [each["user_id"] for each in some]
            row[f"{name}.responses.status"] = states[: len(some)]
        flat.append(row | {"quality.suggestion": 3, "quality.suggestion.score": 0.5, "quality.suggestion.agent": "m"})
    parquet.write_table(arrow.Table.from_pylist(flat), tmp_path / "records.parquet")
    made = brought(store, tmp_path / "records.parquet")
    assert (made.tasks, made.answers) == (2, 3) and not made.notes
    assert made.dropped == {"draft response": 1, "suggestion of a model": 2}
    checked(store)
    assert said(store)["r2", ONE].status == "skipped" and said(store)["r2", ONE].reason == "discarded in Argilla"


def test_the_servers_form_of_argilla_and_named_responses(store: engine.Store, tmp_path: Path) -> None:
    record = {
        "id": "server-1", "external_id": "r1", "status": "completed",
        "fields": {"instruction": "Where is the mill?", "text": "By the river.", "notes": "none"}, "suggestions": [],
        "responses": [{"user_id": ONE, "status": "submitted", "values": {"stars": {"value": 5}}},
                      {"user_id": TWO, "status": "draft", "values": None}],
    }  # fmt: skip
    (tmp_path / "page.json").write_text(json.dumps({"items": [record], "total": 1}))
    made = brought(store, tmp_path / "page.json", responses=["text"])
    assert made.answers == 1 and made.dropped == {"draft response": 1}
    (found,) = answers.read(store, "town")
    assert found.scores() == {"stars": {0: 5.0}}, "a rating of the only response"
    with pytest.raises(DataError, match="no record has a field 'body'"):
        imports.read(tmp_path / "page.json", responses=["body"])


# Label Studio: tasks as its JSON export has them; results as label_studio_sdk's own tags make them


def result(kind: str, name: str, to: str, id: str = "", **value: Any) -> dict[str, Any]:
    return {
        "id": id or f"{name}-{to}",
        "from_name": name,
        "to_name": to,
        "type": kind,
        "origin": "manual",
        "value": value,
    }


def annotation(who: Any, *results: Any, **more: Any) -> dict[str, Any]:
    base = {"id": 7, "completed_by": who, "was_cancelled": False, "ground_truth": False, "lead_time": 4.288,
            "created_at": "2024-03-09T22:16:08.728353Z", "updated_at": "2024-03-09T22:16:08.728378Z"}  # fmt: skip
    return {**base, "result": list(results), **more}


STUDIO = [
    {"id": 11, "data": {"prompt": "Ana asks: where?", "answer_a": "By the river.", "answer_b": "No idea."},
     "predictions": [{"model_version": "m", "result": []}], "drafts": [],
     "annotations": [
         annotation(1, result("pairwise", "better", "better", selected="right"),
                    result("rating", "quality", "answer_a", rating=2),
                    result("rating", "quality", "answer_b", rating=4),
                    result("choices", "tone", "prompt", choices=["kind"]),
                    result("choices", "topics", "prompt", choices=["boats", "bread"]),
                    result("taxonomy", "about", "prompt", taxonomy=[["Life"], ["Life", "Fish"]]),
                    result("labels", "marks", "prompt", "span1", start=0, end=3, text="Ana", labels=["PER"]),
                    result("choices", "certain", "prompt", "span1", start=0, end=3, text="Ana", choices=["yes"]),
                    result("textarea", "note", "prompt", text=["fine", "so far"]),
                    result("rectanglelabels", "box", "img", x=1, y=2, width=3, height=4, rectanglelabels=["Car"])),
         annotation({"id": 2, "email": "ben@example.org", "first_name": "Ben"},
                    result("pairwise", "better", "better", selected="left"),
                    result("choices", "tone", "prompt", choices=["rude"]),
                    result("choices", "topics", "prompt", choices=["boats"])),
         annotation(3, was_cancelled=True),
         annotation(1, result("number", "age", "prompt", number=3), updated_at="2023-01-01T00:00:00Z"),
     ]},
    {"id": 12, "data": {"prompt": "Rank them.", "items": [
        {"id": "m1", "title": "A", "body": "first"}, {"id": "m2", "html": "second"}, {"id": "m3", "body": "third"}]},
     "annotations": [
         annotation(1, result("ranker", "rank", "answers", ranker={"rank": ["m3", "m1"], "_": ["m2"]})),
         annotation(2, result("ranker", "rank", "answers", ranker={"good": ["m1"], "bad": ["m2"], "_": ["m3"]})),
         annotation(4, result("ranker", "rank", "answers", ranker={"rank": ["m9"]}))]},
    {"id": 13, "data": {"talk": [{"author": "Ana", "text": "Hello there"}, {"author": "bot", "text": "Hi Ana"}]},
     "annotations": [annotation(1, result("paragraphlabels", "who", "talk", start="1", end="1", startOffset=3,
                                          endOffset=6, text="Ana", paragraphlabels=["PER"]))]},
    {"id": 14, "data": {"text": "a page", "response": "<p>x</p>"},
     "annotations": [annotation(1, result("hypertextlabels", "m", "response", start="/p[1]/text()[1]",
                                          end="/p[1]/text()[1]", startOffset=0, endOffset=1, hypertextlabels=["X"]),
                                result("textarea", "corrected", "response", text=["better"])),
                     annotation(None, result("rating", "q", "text", rating=1))]},
    {"id": 15, "data": {"text": "nobody yet"}, "annotations": []},
    {"id": 16, "data": {"image": 5}, "annotations": []},
    {"id": 17, "annotations": []},
]  # fmt: skip


def test_tasks_of_label_studio_come_in_with_every_result_kept_or_counted(store: engine.Store, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps(STUDIO))
    made = brought(store, tmp_path / "export.json")
    assert (made.tasks, made.answers) == (5, 6)
    assert made.dropped == {
        "prediction of a model": 1, "answer about a marked region": 1, "result of type rectanglelabels": 1,
        "ranker with several buckets, which are no order": 1, "ranker that names items the data does not hold": 1,
        "annotation without a result that can be kept": 2, "span in the markup of a page": 1,
        "annotation that names nobody": 1, "earlier answer of the same person": 1, "row that cannot be read": 2,
    }  # fmt: skip
    assert "export.json, row 6" in made.problems[1] and "row 7" in made.problems[0]
    found = said(store)
    one = found["11", "1"]
    assert one.tiers == ((1,), (0,)) and one.scores() == {"quality": {0: 2.0, 1: 4.0}} and one.active_ms == 4288
    assert one.value("tone") == "kind" and one.value("topics") == ["boats", "bread"]
    assert one.value("about") == ["Life", "Life/Fish"] and one.value("note") == "fine\nso far"
    assert one.spans == (("prompt:0", -1, 0, 3, "PER"),) and one.value("age") is None
    ben = next(each for (key, name), each in found.items() if key == "11" and name.startswith("#"))
    assert ben.tiers == ((0,), (1,)) and ben.value("topics") == ["boats"]
    assert found["11", "3"].status == "skipped"
    assert found["12", "1"].tiers == ((2,), (0,)) and found["12", "1"].unrankable == (1,)
    known = tasks.load(store, project_name="town")
    assert known[found["12", "1"].task].candidates == ("A\nfirst", "second", "third")
    talk = known[found["13", "1"].task]
    assert [turn.role for turn in talk.messages] == ["user", "assistant"]
    assert found["13", "1"].spans == (("prompt:1", -1, 3, 6, "PER"),)
    assert [each.text for each in found["14", "1"].values if each.question == "rewrite"] == ["better"]
    assert "ben@example.org" not in "".join(each.name for each in people.every(store))

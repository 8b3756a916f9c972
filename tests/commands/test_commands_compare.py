"""`tutelage compare`: what may be named, what the exit codes say, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.records import Example, write_jsonl
from tutelage.evaluate.suite import Result


def seal(root: Root, kind: str, stage: str, files: dict[str, Any], inputs: dict[str, Any]) -> Artifact:
    folder = root.work / f"{kind}-{stage}"
    folder.mkdir(parents=True)
    for name, rows in files.items():
        write_jsonl(folder / name, rows)
    made = Manifest(
        kind=kind, stage=stage, version=1, config={"stage": stage}, inputs=inputs, files=file_entries(folder)
    )
    return root.seal(folder, made, f"key-{kind}-{stage}")


def results(target: str, artifact: Artifact, right: int, suite: str = "facts", known: int = 60) -> list[Result]:
    return [
        Result(
            target=target, target_id=artifact.ref, suite=suite, item=f"{suite}-{place}", cluster=str(place),
            kind="generate", metric="exact", value=float(place < right) if place < known else None,
            outcome="answered" if place < known else "unknown", output=f"it is {place}",
        )
        for place in range(60)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """Three models examined together, and one of them again, with items that nobody answered."""
    made = Root(tmp_path_factory.mktemp("compared") / "life").create()
    items = [
        Example.ask(f"What is {n}?", target=str(n), id=f"{suite}-{n}", suite=suite, kind="generate")
        for suite in ("facts", "sums")
        for n in range(60)
    ]
    corpus = seal(made, "corpus", "prepare", {"items.jsonl": items}, {})
    models = {
        name: seal(made, "model", name, {"w.jsonl": [{"n": name}]}, {}) for name in ("pretrain", "finetune", "dpo")
    }
    rows = [
        row
        for (name, model), right in zip(models.items(), (10, 40, 41), strict=True)
        for row in results(name, model, right)
    ]
    inputs: dict[str, Any] = {"corpus": corpus.ref, "of": [each.ref for each in models.values()]}
    together = seal(made, "evaluation", "evaluate", {"results.jsonl": rows}, inputs)
    again = results("finetune", models["finetune"], 40, known=50) + results("finetune", models["finetune"], 9, "sums")
    inputs = {"corpus": corpus.ref, "of": [models["finetune"].ref]}
    alone = seal(made, "evaluation", "again", {"results.jsonl": again}, inputs)
    names = {"prepare": corpus.ref, **{name: each.ref for name, each in models.items()}}
    (made.path / "life.json").write_text(json.dumps({**names, "evaluate": together.ref, "evaluate@again": alone.ref}))
    return made


def test_what_may_be_compared(tutelage: Any, root: Root, tmp_path: Path) -> None:
    where = ("--root", root.path)
    done = tutelage("compare", "evaluate#pretrain", "evaluate#finetune", *where)
    assert (
        done.code == 0
        and "16.7 → 66.7" in done.out
        and "detects ≥" in done.out
        and "30 fixed, 0 broken; better" in done.out
    )
    assert (root.reports / "compare.html").read_text().startswith("<!doctype html>")
    models = tutelage("compare", "pretrain", "finetune", "--json", *where)
    assert models.json["rows"][0]["values"] == [10 / 60, 40 / 60] and models.json["report"].endswith("compare.html")
    assert models.json["items"][20]["prompt"] == "What is 20?" and models.json["items"][20]["changes"] == ["fixed"]
    three = tutelage("compare", "evaluate", "--json", "--html", tmp_path / "x.html", *where).json
    assert [each["name"] for each in three["systems"]] == ["pretrain", "finetune", "dpo"] and len(three["ranks"]) == 3
    assert (tmp_path / "x.html").is_file()
    named = tutelage("compare", "evaluate", "evaluate@again", "--only", "facts", "--json", *where).json
    assert [each["name"].split()[0] for each in named["systems"]] == ["finetune", "finetune"]
    assert named["rows"][0]["unmeasured_second"] == 10 and named["rows"][0]["difference"]["n"] == 50


def test_a_gate_says_no_with_code_4(tutelage: Any, root: Root) -> None:
    where = ("--gate", "--root", root.path)
    assert tutelage("compare", "finetune", "dpo", "--margin", "0.1", *where).code == 0
    for arguments, said in (
        (("finetune", "pretrain", "--margin", "0.1"), "worse by more than the margin"),
        (
            ("evaluate#finetune", "evaluate@again", "--margin", "0.1", "--only", "facts"),
            "10 of 60 items were not measured",
        ),
        (("evaluate#finetune", "evaluate@again", "--margin", "0.5"), "not"),
    ):
        done = tutelage("compare", *arguments, *where)
        assert done.code == 4 and done.err.startswith("refused: ") and said in done.err, done


def test_mistakes_are_one_line(tutelage: Any, root: Root, tmp_path: Path) -> None:
    where = ("--root", root.path)
    for arguments, said in (
        (("evaluate#pretrain",), "a comparison needs two systems"),
        (("evaluate#pretrain", "evaluate#pretrain"), "the same system stands twice"),
        (("evaluate#prtrain", "evaluate"), "It holds: pretrain, finetune, dpo"),
        (("prepare", "evaluate"), "holds no results of items"),
        (("https://h/v1#m", "evaluate"), "--suite FILE.jsonl"),
        (("evaluate#dpo", "evaluate@again", "--only", "rules"), "was not asked rules"),
        (("finetune", "dpo", "--gate"), "--gate needs --margin"),
        (("finetun", "dpo"), "Did you mean 'finetune'?"),
    ):
        done = tutelage("compare", *arguments, *where)
        assert done.code == 2 and said in done.err and done.err.count("\n") == 1, done
    other = Root(tmp_path / "life").create()
    model = seal(other, "model", "alone", {"w.jsonl": [{"n": 1}]}, {})
    done = tutelage("compare", model.ref, model.ref, "--root", other.path)
    assert done.code == 2 and "not examined in one evaluation" in done.err and "tutelage evaluate of=model:" in done.err


def test_what_is_torn_or_changed_is_named(tutelage: Any, tmp_path: Path) -> None:
    made = Root(tmp_path / "life").create()
    items = {
        n: [Example.ask(f"{n} {each}", target="x", id=f"facts-{each}") for each in range(60)] for n in ("one", "two")
    }
    model = seal(made, "model", "m", {"w.jsonl": [{"n": 1}]}, {})
    sealed = [
        seal(made, "evaluation", n, {"results.jsonl": results(n, model, 30), "items.jsonl": items[n]}, {})
        for n in items
    ]
    refs = [each.ref for each in sealed]
    done = tutelage("compare", *refs, "--root", made.path)
    assert done.code == 2 and "60 items have the same id but another text for 'one' and 'two'" in done.err
    torn = sealed[1].path / "results.jsonl"
    torn.chmod(0o600)
    torn.write_bytes(torn.read_bytes()[:-20])
    done = tutelage("compare", *refs, "--root", made.path)
    assert done.code == 1 and str(torn) in done.err and "differs from what was sealed" in done.err


def test_references_are_examined_now_with_a_suite(tutelage: Any, tmp_path: Path) -> None:
    suite = tmp_path / "own.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Say {n}"}], "target": "yes"} for n in range(12)]
    suite.write_text("\n".join(json.dumps(each | {"tags": {"kind": "generate"}}) for each in rows))
    where = ("--suite", suite, "--root", tmp_path / "life", "--json")
    done = tutelage("compare", "fake:echo", "fake:say yes", *where)
    assert done.code == 0, done
    row = done.json["rows"][0]
    assert row["difference"]["n"] == 12 and {each["prompt"] for each in done.json["items"]} == {
        f"Say {n}" for n in range(12)
    }


def test_open_answers_are_compared_as_far_as_people_measured_their_judge(tutelage: Any, tmp_path: Path) -> None:
    """A judge who says the same of everything decides nothing; one who goes with people carries what it is off."""
    suite, people = tmp_path / "talk.jsonl", tmp_path / "people.jsonl"

    def talk(n: int, **tags: Any) -> str:
        return json.dumps({"messages": [{"role": "user", "content": f"Say {n}"}], "tags": {"kind": "judged"} | tags})

    suite.write_text("\n".join(talk(n) for n in range(12)))
    people.write_text("\n".join(talk(n, answer=f"It is {n}", human=n % 3 / 2) for n in range(20)))
    where = ("--suite", suite, "--root", tmp_path / "life", "--json", "--judge", "prompted:fake:say SCORE: 4")
    done = tutelage("compare", "fake:echo", "fake:say yes", "--people", people, *where)
    row = done.json["rows"][0]
    assert (row["metric"], row["values"][0]) == ("score", 0.475), "0.75 by the judge, 0.275 less by people"
    assert row["p"] is None and "decides nothing" in row["difference"]["reason"]
    alone = tutelage("compare", "fake:echo", "fake:say yes", *where).json["rows"][0]
    assert alone["values"][0] == 0.75 and "no answer was judged by people" in alone["difference"]["reason"]
    done = tutelage(
        "compare", "fake:echo", "fake:say yes", "--judge", "prompted:fake:echo", "--root", tmp_path / "life"
    )
    assert done.code == 2 and "--judge needs --suite" in done.err


def test_what_people_said_of_the_judge_comes_with_the_evaluation(tutelage: Any, tmp_path: Path) -> None:
    made = Root(tmp_path / "life").create()
    model = seal(made, "model", "m", {"w.jsonl": [{"n": 1}]}, {})
    answers = [
        {"item": f"p{n}", "cluster": f"p{n}", "human": 0.1 + n % 5 / 10, "judge": 0.2 + n % 5 / 10 + n % 2 / 50}
        for n in range(30)
    ]
    told = {"judges": [{"suite": "talk", "judge": "rubric", "answers": answers}]}
    rows = [
        Result(
            target=name, target_id=model.ref, suite="talk", item=f"talk-{n}", cluster=str(n), kind="judged",
            metric="score", value=value, scores={"judge": value}, outcome="answered", output="so",
        )
        for name, more in (("one", 0.0), ("two", 0.2))
        for n in range(40)
        for value in (0.3 + more + n % 4 / 20,)
    ]  # fmt: skip
    sealed = seal(made, "evaluation", "e", {"results.jsonl": rows, "summary.json": [told]}, {})
    found = tutelage("compare", sealed.ref, "--json", "--root", made.path).json["rows"]
    score, word = found[0], found[1]
    assert score["values"][0] == pytest.approx(0.375 - 0.11) and score["verdict"] == "better"
    assert score["difference"]["method"] == "prediction-powered" and score["test"] == "z, with the judge's error"
    assert score["difference"]["low"] < word["difference"]["low"] and word["metric"] == "judge"

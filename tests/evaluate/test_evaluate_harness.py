"""lm-evaluation-harness: our suites as its tasks, and the numbers of its own backend on the same checkpoint.

The harness lives in an environment of its own (`bench/environments.py`) and runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import data, evaluate, shapes, side
from bench.environments import HOME, python_of
from tutelage.core.errors import UsageError
from tutelage.core.records import Example, Message, Response, write_jsonl
from tutelage.evaluate.harness_tasks import METRICS, write
from tutelage.evaluate.suite import Suite
from tutelage.starter.world import build

DATA = Path(os.environ.get("TUTELAGE_DATA") or "/nowhere")


def item(name: str, kind: str, prompt: str, target: str | None, **tags: object) -> Example:
    choices = tags.pop("choices", ())
    made = Example.ask(prompt, target=target)
    return made.model_copy(update={"choices": choices, "tags": {"id": name, "suite": "own", "kind": kind, **tags}})


def verbatim(name: str, kind: str, text: str, target: str | None, **tags: object) -> Example:
    return item(name, kind, "", target, **tags).model_copy(update={"messages": (Message(role="text", content=text),)})


ITEMS = [
    item("a", "choice", "Is it {{true}}?", "yes", choices=("yes", "no")),
    item("b", "choice", "Which?", "two", choices=("one", "two", "three")),
    item("c", "generate", "How many?", "[1, 2]", max_tokens=7, extract="number"),
    item("d", "generate", "Say it.", "it"),
    item("e", "translate", "Translate: cat", "Katze"),
    item("f", "translate", "Translate: dog", "Hund", answers=["der Hund"]),
    item("g", "rule", "Be kind.", None, rule="kind"),
    verbatim("h", "choice", "The sky is", " blue", choices=(" blue", " green")),
    verbatim("i", "generate", "The sky is", "blue"),
    verbatim("j", "choice", "Which is red?", "blood", choices=("grass", "blood", "snow"), options="letters"),
]


class Loader(yaml.SafeLoader):
    """Reads a task as the harness does, but for what is no data."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_of(folder: Path, name: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    """A task that was written, and its rows."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return yaml.load((folder / f"{name}.yaml").read_text(), Loader), rows


def test_suites_become_tasks_and_what_cannot_is_counted(tmp_path: Path) -> None:
    found = write([Suite("own", ITEMS)], tmp_path / "out")
    assert found["tasks"] == {
        "tutelage_own_choice": 2,
        "tutelage_own_choice_chat": 2,
        "tutelage_own_generate": 1,
        "tutelage_own_generate_chat": 2,
        "tutelage_own_translate_chat": 2,
    }
    assert sum(found["left_out"].values()) == 1
    allowed = {name for group in METRICS.values() for name, _, _ in group}
    for name in found["tasks"]:
        task, rows = task_of(tmp_path / "out", name)
        file = Path(task["dataset_kwargs"]["data_files"]["test"])
        assert file.is_absolute() and len(rows) == found["tasks"][name]
        assert {task["doc_to_text"], task["doc_to_target"]} <= set(rows[0]), "columns, not templates"
        assert {each["metric"] for each in task["metric_list"]} <= allowed
    task = yaml.safe_load((tmp_path / "out" / "tutelage_own_choice_chat.yaml").read_text())
    assert "brier_score" not in {each["metric"] for each in task["metric_list"]}, "its rows differ in their choices"
    task = yaml.safe_load((tmp_path / "out" / "tutelage_own_generate_chat.yaml").read_text())
    assert task["generation_kwargs"]["max_gen_toks"] == 32 and task["filter_list"][0]["name"] == "number"
    _, rows = task_of(tmp_path / "out", "tutelage_own_choice")
    assert rows[1]["choices"] == ["A", "B", "C"] and rows[1]["target"] == 1
    assert rows[1]["prompt"] == "Which is red?\nA. grass\nB. blood\nC. snow\nAnswer: "
    with pytest.raises(UsageError, match="no item can be a task"):
        write([Suite("own", [ITEMS[6]])], tmp_path / "none")


def test_of_several_right_answers_any_counts_and_references_stay_together(tmp_path: Path) -> None:
    items = [
        item("a", "choice", "Which?", "one", choices=("one", "two", "three"), answers=["three"]),
        item("b", "choice", "Which?", "two", choices=("one", "two", "three")),
        item("c", "generate", "How many?", "7", answers=["seven"]),
        item("d", "generate", "Say it.", "it"),
        item("e", "translate", "Translate: cat", "Katze"),
        item("f", "translate", "Translate: dog", "Hund", answers=["der Hund", "ein Hund"]),
    ]
    found = write([Suite("own", items)], tmp_path)
    assert found["left_out"] == {} and sum(found["tasks"].values()) == 6
    targets = {}
    for kind in ("choice", "generate", "translate"):
        task, rows = task_of(tmp_path, f"tutelage_own_{kind}_chat")
        targets[kind] = [row["target"] for row in rows]
        assert task.get("process_results") == ("references.results" if kind == "translate" else None)
        assert "brier_score" not in {each["metric"] for each in task["metric_list"]}, "it knows one right answer"
    assert targets["choice"] == [[0, 2], [1]] and targets["generate"] == [["7", "seven"], ["it"]]
    assert targets["translate"] == [["Katze", "", ""], ["Hund", "der Hund", "ein Hund"]]
    results = runpy.run_path(str(tmp_path / "references.py"))["results"]
    assert results({"target": ["Katze", ""]}, ["Hut"])["bleu"] == (["Katze", None], "Hut"), "an empty one is none"


def _environment() -> Path:
    try:
        return python_of("lmeval")
    except (SystemExit, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the environment of lm-evaluation-harness cannot be made here: {error}")


PROGRAM = """
import sys
from types import SimpleNamespace
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from tutelage.core.errors import UsageError
from tutelage.evaluate.harness import TutelageLM
mine, theirs = TutelageLM(sys.argv[1]), HFLM(pretrained=sys.argv[1], device="cpu", dtype="float32", batch_size=4)
turns = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "a  cat?"}]
assert mine.apply_chat_template(turns) == theirs.apply_chat_template(turns)
begun = [*turns, {"role": "assistant", "content": "It is"}]
assert mine.apply_chat_template(begun, False) == theirs.apply_chat_template(begun, False)
assert mine.chat_template(True) == theirs.chat_template(True)
for text in ("", "a cat ", "<|bos|>a cat<|end|>", mine.apply_chat_template(turns), "\\u00e9\\u4e2d \\n"):
    assert mine.tok_encode(text) == theirs.tok_encode(text), text
    assert mine.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
assert (mine.eot_token_id, mine.prefix_token_id, mine.max_length) == (
    theirs.eot_token_id, theirs.prefix_token_id, theirs.max_length)
long = "the cat sat on the mat " * 60
asked = [("", " the cat"), ("the cat ", "sat"), (long, " yes"), (long, " no")]
asked = [SimpleNamespace(args=pair) for pair in asked]
for one, two in zip(mine.loglikelihood(asked), HFLM.loglikelihood(theirs, [
        SimpleNamespace(args=each.args, task_name="") for each in asked]), strict=True):
    assert abs(one[0] - two[0]) < 1e-4 and one[1] == two[1], (one, two)
assert mine.truncated == 2
for until in (["\\n"], [" the", "a"], []):
    how = {"until": until, "max_gen_toks": 24, "do_sample": False}
    asked = [SimpleNamespace(args=(text, dict(how))) for text in ("the cat", "is it true or false?", long)]
    assert mine.generate_until(asked) == theirs.generate_until(asked), until
for refused, call in (
    ("2715", lambda: CachingLM(mine, sys.argv[1] + "/cache.db")),
    ("num_beams", lambda: mine.generate_until([SimpleNamespace(args=("a", {"num_beams": 2}))])),
):
    try:
        call()
    except UsageError as error:
        assert refused in str(error), error
    else:
        raise AssertionError(refused)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_asked_what_the_own_backend_is_asked(tmp_path: Path) -> None:
    """Ids, templates, cuts and ends, one by one; and the harness's cache, which serves another model's answers."""
    python, folder = _environment(), tmp_path / "model"
    from tutelage.tokens.tokenizer import learn

    learn(["the cat sat on the mat. is it true or false? yes, no, maybe. \n"] * 20, 320).save(tmp_path / "tokenizer")
    shape = shapes.Shape(2, 64, 4, 2, 128, 320, 128)
    shapes.save(shape, folder, tmp_path / "tokenizer")
    environment = side.environment("ours") | {"HF_HOME": str(tmp_path / "home")}
    command = [str(python), "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def _agree(python: Path, model: Path, tasks: Path, chat: bool = False) -> dict[str, object]:
    options = {"model": str(model), "tasks": str(tasks), "chat": chat, "batch": 8}
    mine, theirs = (
        json.loads(Path(side.run(python, "bench.evaluate", each, options)["answers"]).read_text("utf-8"))
        for each in ("ours", "peer")
    )
    gap, differ = evaluate.disagreement(mine, theirs)
    assert gap < 1e-4 and differ == 0, (gap, differ)
    figures: dict[str, object] = mine["figures"]
    return figures


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not DATA.is_dir(), reason="TUTELAGE_DATA names no folder with the public sets")
def test_public_suites_have_the_numbers_of_its_own_backend(tmp_path: Path) -> None:
    python, shape = _environment(), shapes.SHAPES["S"]._replace(context=evaluate.CONTEXT)
    data.tokenizer(shape.vocabulary, tmp_path / "tokenizer")
    shapes.save(shape, tmp_path / "model", tmp_path / "tokenizer")
    found = _agree(python, tmp_path / "model", evaluate.write_tasks(tmp_path / "tasks", 8))
    assert len(found) >= 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_our_own_suites_have_them_too(tmp_path: Path) -> None:
    """What the starter world is examined on, exported, and asked through the chat template."""
    from tutelage.evaluate.suite import select
    from tutelage.tokens.tokenizer import learn

    python, world = _environment(), build(0, 0.2)
    chosen = select(world.items(), 6)
    told = write(
        [Suite(each.name, [i for i in each.items if i.messages[-1].role != "text"]) for each in chosen],
        tmp_path / "tasks",
    )
    assert len(told["tasks"]) >= 6, told
    texts = ["".join(message.content for message in each.messages) for each in world.items()]
    learn(texts, 2048).save(tmp_path / "tokenizer")
    shapes.save(shapes.Shape(4, 160, 5, 5, 432, 2048, 256), tmp_path / "model", tmp_path / "tokenizer")
    found = _agree(python, tmp_path / "model", tmp_path / "tasks", chat=True)
    assert len(found) >= 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_letters_and_several_right_answers_are_scored_there_as_here(tmp_path: Path) -> None:
    """What the harness makes of its answers to exported items is what our scorers make of the same answers."""
    from tutelage.evaluate.suites.answers import score
    from tutelage.measure.text import corpus_sums, translation_metric
    from tutelage.tokens.tokenizer import learn

    python, model = _environment(), tmp_path / "model"
    learn(["the cat sat on the mat. is it true or false? yes, no, maybe. A. B. C. \n"] * 20, 320).save(tmp_path / "tok")
    shapes.save(shapes.Shape(2, 64, 4, 2, 128, 320, 128), model, tmp_path / "tok")

    def found(items: list[Example], folder: Path) -> tuple[Any, dict[str, list[Any]]]:
        assert write([Suite("own", items)], folder)["left_out"] == {}
        figures = _agree(python, model, folder)
        answers = json.loads((folder / "answers-ours.json").read_text("utf-8"))["answers"]
        return figures, {name: [each["said"] for each in rows] for name, rows in answers.items()}

    def items(texts: list[str]) -> list[Example]:
        """Every second answer to be generated is right by its second gold; references are one to three."""
        made = [
            verbatim(
                f"c{n}", "choice", f"is it {n}?", golds[0], choices=("the", "mat", "sat", "cat"), answers=list(golds),
                options="letters",
            )
            for n, golds in enumerate([("the",), ("the", "mat"), ("mat",), ("sat", "cat")] * 4)
        ]  # fmt: skip
        more: dict[str, Any] = {"max_tokens": 12, "stop": ["\n"]}
        for n, (word, text) in enumerate(zip(("cat", "mat", "yes", "no", "sat"), texts, strict=True)):
            golds = ["something", text] if n % 2 else ["something", "else"]
            made.append(verbatim(f"g{n}", "generate", f"the {word} is", golds[0], answers=golds, **more))
            golds = [f"{text} the cat", f"mat on the {text}", f"{text} yes no"][: 1 + n % 3]
            made.append(
                verbatim(f"t{n}", "translate", f"the {word} is", golds[0], answers=golds, language="en", **more)
            )
        return made

    _, said = found(items(["nothing"] * 5), tmp_path / "first")
    asked = items([text for (text,) in said["tutelage_own_generate"]])
    figures, said = found(asked, tmp_path / "second")
    by_kind = {
        kind: [each for each in asked if each.tags["kind"] == kind] for kind in ("choice", "generate", "translate")
    }

    right = [
        item.choices[logs.index(max(logs))] in item.tags["answers"]
        for item, logs in zip(by_kind["choice"], said["tutelage_own_choice"], strict=True)
    ]
    assert 0 < sum(right) < 16 and figures["tutelage_own_choice"]["acc,none"] == pytest.approx(sum(right) / 16)
    exact = [
        score(item, Response(message=Message(role="assistant", content=text), finish="stop")).value
        for item, (text,) in zip(by_kind["generate"], said["tutelage_own_generate"], strict=True)
    ]
    assert sum(exact) == 2 and figures["tutelage_own_generate"]["exact_match,none"] == pytest.approx(2 / 5)
    for name in ("bleu", "chrf"):
        references = [list(each.tags["answers"]) for each in by_kind["translate"]]
        texts = [text for (text,) in said["tutelage_own_translate"]]
        (counts, of), _ = corpus_sums(translation_metric(name, "en"), texts, references)
        ours = float(of(counts.sum(axis=0)[None])[0])
        assert ours > 5 and figures["tutelage_own_translate"][f"{name},none"] == pytest.approx(ours, abs=1e-6)


def test_the_command_writes_tasks_and_overwrites_nothing(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tutelage.cli import app

    write_jsonl(tmp_path / "own.jsonl", ITEMS)
    command = ["export", "suite", str(tmp_path / "own.jsonl"), str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tasks"]["tutelage_own_choice_chat"] == 2
    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0

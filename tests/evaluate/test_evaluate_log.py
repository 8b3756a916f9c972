"""Answers are kept under all they follow from: nothing is asked twice, nobody's answer is served as another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.core.records import Example, Verdict, write_jsonl
from tutelage.evaluate import log as logs
from tutelage.evaluate.ask import examine, judgements
from tutelage.evaluate.log import AnswerLog
from tutelage.evaluate.run import evaluate_reference
from tutelage.evaluate.suites.judged import Bench
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.local import LocalGenerator, load
from tutelage.judge.prompted import RUBRIC, PromptedJudge
from tutelage.model import checkpoint
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import learn


def items(count: int = 24) -> list[Example]:
    found = []
    for number in range(count):
        kind = "choice" if number % 2 else "generate"
        item = Example.ask(f"was it good or bad, number {number}?", target="good")
        choices = ("good", "bad", "it was") if kind == "choice" else ()
        tags = {"id": f"i{number:02}", "suite": "own", "kind": kind, "max_tokens": 6}
        found.append(item.model_copy(update={"choices": choices, "tags": tags}))
    return found


ALL = 25
"""24 items, and their choices once without a question."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = learn(["was it good or bad? it was good, it was bad, number 0 1 2 3"] * 20, 300)
    tokenizer.save(tmp_path / "tokenizer")
    config = DecoderConfig(tokenizer.size, 32, 48, 2, 4, 2, max_position_embeddings=96)
    checkpoint.save(Decoder(config, seed=1), tmp_path / "model", tmp_path / "tokenizer")
    return tmp_path / "model"


class Counted(LocalGenerator):
    """Counts what it is asked."""

    asked = 0

    def generate(self, prompts: Any, sampling: Any) -> Any:
        self.asked += len(prompts)
        return super().generate(prompts, sampling)

    def loglikelihood(self, prompts: Any, choices: Any) -> Any:
        self.asked += len(prompts)
        return super().loglikelihood(prompts, choices)


def counted(folder: Path) -> Counted:
    found = load(folder, name="it")
    return Counted(found.decoder, found.tokenizer, name="it", eos=found.eos)


def test_answers_are_scored_again_without_asking(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "log" / "answers.jsonl"
    first, again = counted(folder), counted(folder)
    before = examine(first, items(), target="it", log=AnswerLog(path))
    assert first.asked == ALL
    assert examine(again, items(), target="it", log=AnswerLog(path)) == before
    corrected = [item.model_copy(update={"target": "bad" if item.choices else item.target}) for item in items()]
    after = examine(again, corrected, target="it", log=AnswerLog(path))
    assert again.asked == 0, "a corrected target is scored, not asked"
    assert [each.value for each in after] != [each.value for each in before]
    assert [each.output for each in after] == [each.output for each in before]


def test_no_model_is_served_what_another_said(folder: Path, tmp_path: Path) -> None:
    """lm-evaluation-harness, issues 2715 and 4063: the same path and request, other weights."""
    path = tmp_path / "answers.jsonl"
    mine = counted(folder)
    before = examine(mine, items(), target="it", target_id=str(folder), log=AnswerLog(path))
    changed = Decoder(mine.decoder.config, seed=2)
    checkpoint.save(changed, folder, tmp_path / "tokenizer")
    theirs = counted(folder)
    alone = examine(theirs, items(), target="it", target_id=str(folder))
    theirs.asked = 0
    after = examine(theirs, items(), target="it", target_id=str(folder), log=AnswerLog(path))
    assert theirs.asked == ALL and after == alone and after != before
    assert examine(mine, items(), target="it", target_id=str(folder), log=AnswerLog(path)) == before
    assert mine.asked == ALL


def test_template_sampling_and_code_are_part_of_the_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "answers.jsonl", items(6)

    def count(generator: Counted, **how: Any) -> int:
        examine(generator, asked, target="it", log=AnswerLog(path), **how)
        return generator.asked

    assert count(counted(folder)) == 7
    assert count(counted(folder)) == 0
    assert count(counted(folder), max_tokens={"generate": 3}) == 0, "the items name their own length"
    asked = [item.model_copy(update={"tags": item.tags | {"max_tokens": 3}}) for item in asked]
    assert count(counted(folder)) == 3, "generation alone depends on it"
    other = counted(folder)
    other.tokenizer.config["chat_template"] = "{{- bos_token }}{%- for m in messages %}{{- m['content'] }}{%- endfor %}"
    assert count(other) == 7
    monkeypatch.setattr(logs, "code", lambda: "another version")
    assert count(counted(folder)) == 7


def test_torn_lines_and_failures_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.put([("a", {"text": "x"}), ("b", {"error": "the endpoint failed"}), ("j", "no opinion: the judge is down")])
    assert "b" in log
    with path.open("ab") as file:
        file.write(b'{"key": "c", "ans')
    again = AnswerLog(path)
    assert set(again.known) == {"a"}
    again.put([("d", [1])])
    assert AnswerLog(path).known == {"a": {"text": "x"}, "d": [1]}, "a torn line takes no other with it"


def test_of_running_texts_only_the_new_ones_are_weighed(folder: Path, tmp_path: Path) -> None:
    def text(number: int) -> Example:
        asked = Example.ask(f"it was good, number {number}", id=str(number), suite="own", kind="perplexity")
        said = asked.messages[0].model_copy(update={"role": "text"})
        return asked.model_copy(update={"messages": (said,)})

    weighed: list[str] = []

    class Once(LocalGenerator):
        def rolling(self, prompts: Any, stride: int = 0) -> Any:
            weighed.extend(each.tags["id"] for each in prompts)
            return super().rolling(prompts, stride)

    found = load(folder, name="it")
    generator = Once(found.decoder, found.tokenizer, name="it", eos=found.eos)
    path = tmp_path / "answers.jsonl"
    for count in (2, 3, 4):
        rows = examine(generator, [text(n) for n in range(count)], target="it", log=AnswerLog(path))
        assert all(row.value is not None for row in rows)
    assert weighed == ["0", "1", "2", "3"]


def test_what_cannot_say_who_it_is_is_kept_until_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.core import refs

    speaker = FakeGenerator("good")
    monkeypatch.setattr(refs, "open", lambda *_, **__: speaker)
    write_jsonl(tmp_path / "own.jsonl", [item for item in items() if not item.choices])
    evaluate_reference("fake:x", tmp_path / "own.jsonl", work=tmp_path / "work")
    assert not list((tmp_path / "work").glob("*.jsonl"))


PROGRAM = """
import json, sys, time
from pathlib import Path
from tutelage.evaluate import ask
from tutelage.evaluate.run import evaluate_reference
from tutelage.generate.local import LocalGenerator
ask.CHUNK, pause, asked = 3, float(sys.argv[4]), 0
def counted(method):
    def count(self, prompts, *rest):
        global asked
        asked += len(prompts)
        return method(self, prompts, *rest)
    return count
LocalGenerator.generate = counted(LocalGenerator.generate)
LocalGenerator.loglikelihood = counted(LocalGenerator.loglikelihood)
found = evaluate_reference(sys.argv[1], sys.argv[2], work=Path(sys.argv[3]), step=lambda done: time.sleep(pause))
rows = [each.model_dump() for each in found["results"]]
print(json.dumps({"asked": asked, "results": rows, "cells": found["cells"]}))
"""


def test_killed_at_any_instant_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "own.jsonl", items())

    def command(work: str, pause: float) -> list[str]:
        return [
            sys.executable,
            "-c",
            PROGRAM,
            str(folder),
            str(tmp_path / "own.jsonl"),
            str(tmp_path / work),
            str(pause),
        ]

    def finished(work: str) -> dict[str, Any]:
        done = subprocess.run(command(work, 0), capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    whole = finished("whole")
    assert whole["asked"] == ALL
    log = tmp_path / "killed" / "answers.jsonl"
    for lines in (1, 9):
        child = subprocess.Popen(command("killed", 0.2), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (log.is_file() and log.read_bytes().count(b"\n") >= lines) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it had not ended by itself"
    kept = log.read_bytes().count(b"\n")
    assert 9 <= kept < 24
    resumed = finished("killed")
    assert resumed["asked"] == ALL - kept
    assert (resumed["results"], resumed["cells"]) == (whole["results"], whole["cells"])
    assert finished("killed")["asked"] == 0


def test_a_judges_word_is_kept_under_who_was_asked_what_and_how(folder: Path, tmp_path: Path) -> None:
    """Under one name another model, another rubric or another scale is another judge: nobody's word is another's."""
    item = Example.ask("was it good?").model_copy(update={"tags": {"id": "i", "suite": "own", "kind": "judged"}})
    log, other = AnswerLog(tmp_path / "answers.jsonl"), load(folder, name="m")
    with torch.no_grad():
        next(other.decoder.parameters()).add_(0.5)

    class Asked(PromptedJudge):
        count = 0

        def judge(self, examples: Any) -> Any:
            Asked.count += len(examples)
            return [Verdict(judge=self.name, scores={self.name: 0.5}) for _ in examples]

    def asked(generator: Any, rubric: str = RUBRIC, **more: Any) -> int:
        before = Asked.count
        judgements(Bench(lambda _: Asked(generator, rubric, **more)), [item], ["it was"], log=log, judge="prompted:it")
        return Asked.count - before

    one = load(folder, name="m")
    assert (asked(one), asked(one), asked(load(folder, name="m"))) == (1, 0, 0)
    assert (asked(other), asked(other)) == (1, 0), "the same name, other weights"
    assert (asked(one, "Is it short?"), asked(one, highest=7), asked(one, max_tokens=8)) == (1, 1, 1)
    at = [FakeGenerator(name=f"https://{host}/v1#m") for host in ("one", "two")]
    assert [asked(each) for each in (*at, *at)] == [1, 1, 0, 0], "another address, another model"
    assert asked(one) == 0

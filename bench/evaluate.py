"""`evaluate`: requests per second on public suites, ours and lm-evaluation-harness's own Hugging Face backend.

The same checkpoint, tasks and items in the same environment, both sides through the harness: eight suites (choices with
and without a header of examples, generation, perplexity of whole texts). That both say the same is part of the result:
the largest difference of a log-likelihood, and the answers that differ. Then what the watch costs a training run.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, shapes, side
from bench.environments import python_of
from bench.side import Figures, Part, Settings

ENVIRONMENT = "lmeval"
CHOICES = ("arc", "openbookqa", "truthfulqa", "sst", "crows_pairs")
KINDS = {"loglikelihood": "log-likelihood", "loglikelihood_rolling": "whole texts", "generate_until": "generation"}
"""Kinds of request, as the harness names them and as the parts do."""
CONTEXT = 384
BATCHES = (8, 32)
"""Batch sizes that the peer tries; ours has none."""


def measure(settings: Settings) -> list[Part]:
    parts: list[Part] = []
    for name in ("S", "M"):
        parts += compared(name, settings, items=24 if settings.quick else 80)
    return [*parts, *watched(settings)]


def compared(name: str, settings: Settings, items: int, rounds: int | None = None) -> list[Part]:
    """Both sides on the suites, with `items` rows of each."""
    shape = shapes.SHAPES[name]._replace(context=CONTEXT)
    folder = settings.work / name
    data.tokenizer(shape.vocabulary, settings.work / f"tokenizer-{name}")
    shapes.save(shape, folder, settings.work / f"tokenizer-{name}")
    tasks = write_tasks(settings.work / f"tasks-{name}", items)
    options = {"model": str(folder), "tasks": str(tasks)}
    python = python_of(ENVIRONMENT)
    runs = side.alternate("bench.evaluate", settings, python, options, options, keep=("batch",), ours_python=python)
    mine, theirs = (json.loads(Path(each[-1]["answers"]).read_text("utf-8")) for each in (runs.ours, runs.peer))
    parts = [runs.part(f"{name}: {said}", "requests/s", kind, target=3.0) for kind, said in KINDS.items()]
    gap, differ = disagreement(mine, theirs)
    parts.append(
        Part(f"{name}: largest difference (whole texts: per token)", "nats", "lower", gap, target=1e-4, holds="ours")
    )
    parts.append(Part(f"{name}: answers that differ", "answers", "lower", float(differ), target=0.0, holds="ours"))
    for kind, said in list(KINDS.items())[:2]:
        floor = side.median(runs.ours, f"{kind}_floor")
        parts.append(Part(f"{name}: {said}, share of the time its products need", "", "higher", floor))
    return [*parts, runs.memory(f"{name}: memory")]


def disagreement(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, int]:
    """The largest difference of two log-likelihoods (of whole texts: per token), and how many answers and figures are
    not the same. SystemExit where the sides did not answer the same requests."""
    gap, differ = 0.0, 0
    if sorted(mine["answers"]) != sorted(theirs["answers"]):
        side.refuse("the sides did not answer the same suites")
    for task, ours in mine["answers"].items():
        other = theirs["answers"][task]
        if [each["asked"] for each in ours] != [each["asked"] for each in other]:
            side.refuse(f"the sides were not asked the same in {task}")
        for one, two in zip(ours, other, strict=True):
            for a, b in zip(one["said"], two["said"], strict=True):
                if isinstance(a, str):
                    differ += a != b
                else:
                    gap = max(gap, abs(a - b) / one["tokens"])
    for task, figures in mine["figures"].items():
        for metric, value in figures.items():
            other = theirs["figures"][task][metric]
            if abs(value - other) > 1e-4 * max(1.0, abs(other)):
                differ += 1
    return gap, differ


# ------------------------------------------------------------------------------------------------------------ the tasks


def write_tasks(folder: Path, items: int) -> Path:
    """Public sets as tasks of the harness, one YAML file each."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, task) in suites(items).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        task = {"task": name, "dataset_path": "json", "test_split": "test", "num_fewshot": 0, **task}
        task["dataset_kwargs"] = {"data_files": {"test": str((folder / f"{name}.jsonl").resolve())}}
        task |= {"doc_to_text": "prompt", "doc_to_target": "target", "target_delimiter": " "}
        task["metadata"] = {"version": 1}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), "utf-8")
    return folder


def suites(items: int) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Name -> (rows, what its task says beside its columns `prompt`, `choices`, `target`)."""

    def first(name: str, split: str = "test") -> list[dict[str, Any]]:
        return [row for _, row in zip(range(items), data.rows(name, split), strict=False)]

    def metrics(*names: str) -> list[dict[str, Any]]:
        return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]

    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": metrics("acc", "acc_norm")}
    weigh = {
        "output_type": "loglikelihood_rolling",
        "metric_list": [
            {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    }
    write = {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False, "temperature": 0.0},
        "metric_list": metrics("exact_match"),
    }
    arc, open_book = first("knowledge_arc"), first("knowledge_openbookqa")
    header = "".join(
        f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}\n\n"
        for _, row in zip(range(3), data.rows("knowledge_openbookqa", "train"), strict=False)
    )
    truth = [
        {
            "prompt": f"Q: {row['question']}\nA:",
            "choices": [row["best_answer"], *row["incorrect_answers"]][:5],
            "target": 0,
        }
        for row in first("truthfulqa")
    ]
    sst = [
        {"prompt": f"{row['text']}\nThis review is", "choices": ["negative", "positive"], "target": row["label2"]}
        for row in data.rows("sentiment_sst", "test")
        if row["label2"] in (0, 1)
    ]
    pairs = [
        {"prompt": "", "choices": [row["sent_more"], row["sent_less"]], "target": 0}
        for row in first("bias_crows_pairs")
    ]
    texts = [{"prompt": "", "target": row["text"]} for row in first("pretrain_wikitext2")[: max(2, items // 10)]]
    speech = [{"prompt": "", "target": row["text"][:1500]} for row in first("pretrain_books")]

    def asked(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
        prompt = f"{before}Question: {row['question']}\nAnswer:"
        return {"prompt": prompt, "choices": row["choices"], "target": row["answer"]}

    return {
        "arc": ([asked(row) for row in arc], choice),
        "openbookqa": ([asked(row, header) for row in open_book], choice),
        "truthfulqa": (truth, choice),
        "sst": (sst[:items], choice),
        "crows_pairs": (pairs, choice),
        "wikitext": (texts, weigh),
        "books": (speech, weigh),
        "gsm8k": (
            [
                {"prompt": f"Question: {row['question']}\nAnswer:", "target": row["answer"].rpartition("#### ")[2]}
                for row in first("instruct_gsm8k")
            ],
            write,
        ),
        "multi30k": (
            [
                {"prompt": f"English: {row['en']}\nGerman:", "target": row["de"]}
                for row in first("translation_multi30k")
            ],
            write,
        ),
    }


# ------------------------------------------------------------------------------------------------------------ the sides


class Timed:
    """An LM of the harness with a clock at its three kinds of request."""

    def __init__(self, model: Any) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.requests: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.asked = ""
        for kind in KINDS:
            setattr(model, kind, self._timed(kind, getattr(model, kind)))

    def _timed(self, kind: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def timed(requests: Sequence[Any], *rest: Any, **named: Any) -> Any:
            self.asked, started = kind, time.perf_counter()
            found = answer(requests, *rest, **named)
            self.seconds[kind] += time.perf_counter() - started
            self.requests[kind] += len(requests)
            return found

        return timed

    def rates(self) -> Figures:
        """Requests per second, by kind."""
        return {kind: self.requests[kind] / seconds for kind, seconds in self.seconds.items() if seconds}


def examined(
    model: Any, tasks: str, only: Sequence[str] = (), limit: int | None = None, chat: bool = False
) -> dict[str, Any]:
    """What the harness finds: its figures, and all answers with what was asked; `chat`: through the chat template."""
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = sorted(path.stem for path in Path(tasks).glob("*.yaml") if not only or path.stem in only)
    found = evaluate(
        lm=model,
        task_dict=TaskManager(include_path=tasks, include_defaults=False).load(names)["tasks"],
        bootstrap_iters=0,
        log_samples=True,
        limit=limit,
        apply_chat_template=chat,
        verbosity="ERROR",
    )
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, samples in found["samples"].items():
        for sample in sorted(samples, key=lambda each: each["doc_id"]):
            # of a choice (log-likelihood, greedy), of a text its log-likelihood, of an answer its text
            said = [each[0][0] if isinstance(each[0], list | tuple) else each[0] for each in sample["resps"]]
            text = str(sample["arguments"])
            tokens = max(1, len(model.tok_encode(sample["doc"]["target"]))) if isinstance(sample["target"], str) else 1
            answers.setdefault(name, []).append({"asked": text, "said": said, "tokens": tokens})
    figures = {
        name: {metric: value for metric, value in each.items() if isinstance(value, float) and "stderr" not in metric}
        for name, each in found["results"].items()
    }
    return {"answers": answers, "figures": figures}


def _run(model: Any, options: Mapping[str, Any], side_name: str, clock: Timed) -> Figures:
    """The rates of a side that has warmed up, and the file with its answers."""
    found = examined(model, options["tasks"], chat=bool(options.get("chat")))
    answers = Path(options["tasks"]) / f"answers-{side_name}.json"
    answers.write_text(json.dumps(found), "utf-8")
    return {**clock.rates(), "answers": str(answers)}


def ours(options: Mapping[str, Any]) -> Figures:
    if "train" in options:
        return trained(options)
    from tutelage.evaluate.harness import TutelageLM
    from tutelage.model.native import Native
    from tutelage.train.device import setup

    setup(threads=side.THREADS)
    model = TutelageLM(options["model"])
    config = model.generator.decoder.config
    head, forward = 2.0 * config.vocab_size * config.hidden_size, Native.forward
    operations: dict[str, float] = {}

    def counted(self: Any, ids: Any, slots: Any, positions: Any, rows: Any, taps: Any = ()) -> Any:
        found = 2.0 * config.matrix_parameters * len(ids) + head * len(rows)
        operations[clock.asked] = operations.get(clock.asked, 0.0) + found
        return forward(self, ids, slots, positions, rows, taps)

    examined(model, options["tasks"], limit=2, chat=bool(options.get("chat")))  # warms up
    clock = Timed(model)
    Native.forward = counted  # type: ignore[method-assign]
    figures = _run(model, options, "ours", clock)
    Native.forward = forward  # type: ignore[method-assign]
    rate = shapes.gemm_rate(shapes.Shape(0, config.hidden_size, 1, 1, config.intermediate_size, config.vocab_size))
    floors = {f"{kind}_floor": count / rate / clock.seconds[kind] for kind, count in operations.items()}
    return {**figures, **floors}


def peer(options: Mapping[str, Any]) -> Figures:
    os.environ["HF_HOME"] = str(Path(options["model"]) / "hf-home")
    from lm_eval.models.huggingface import HFLM

    from bench import peers

    peers.setup()

    def loaded(batch: int) -> Any:
        return HFLM(pretrained=options["model"], device="cpu", dtype="float32", batch_size=batch)

    def rate(batch: int) -> float:
        model, started = loaded(batch), time.perf_counter()
        examined(model, options["tasks"], only=("arc", "multi30k"), limit=32)
        return 1 / (time.perf_counter() - started)

    batch = options.get("batch") or side.best(BATCHES, rate)
    model = loaded(batch)
    examined(model, options["tasks"], limit=2, chat=bool(options.get("chat")))  # warms up
    return {**_run(model, options, "peer", Timed(model)), "batch": batch}


# ---------------------------------------------------------------------------------------------------- while one trains


LOOKS, STEPS = 5, 24


def watched(settings: Settings) -> list[Part]:
    """What a watch costs that the plan allows its share, beside the same run without one; shape S."""
    python = Path(sys.executable)
    folder = settings.work / "watched"
    data.tokenizer(shapes.SHAPES["S"].vocabulary, folder)
    options = {"train": str(folder), "steps": STEPS // 3 if settings.quick else STEPS, "rounds": settings.rounds}
    found = side.run(python, "bench.evaluate", "ours", options)
    side.tell(f"bench.evaluate watched: {json.dumps(found)}")
    name = "S: examined while it trains, time beside the training"
    return [
        Part(name, "share", "lower", found["share"], target=0.05, holds="ours"),
        Part("S: the same, as the plan prices it", "share", "lower", found["priced"]),
        Part("S: items examined each time", "items", "higher", float(found["items"])),
    ]


def trained(options: Mapping[str, Any]) -> Figures:
    """A pre-training run with and without a watch, in turn."""
    import math
    import statistics
    import tempfile

    from tutelage.core.records import Example, Message
    from tutelage.evaluate.watch import Examiner
    from tutelage.recipe import WatchConfig
    from tutelage.tokens.tokenizer import load
    from tutelage.train.batch import Source, TokenSteps
    from tutelage.train.calibrate import calibrate, size_of, watching
    from tutelage.train.device import setup
    from tutelage.train.loop import Run, Watches, fit
    from tutelage.train.objectives import NextToken
    from tutelage.train.optim import Optimizer, Rates, Schedule

    setup(threads=side.THREADS)
    shape, steps = shapes.SHAPES["S"], int(options["steps"])
    tokenizer = load(options["train"])
    ids = shapes.token_rows(shape, 1024).reshape(-1).astype(np.uint16)
    source = Source(ids, np.array([0, len(ids)]))
    items = []
    for place, row in enumerate(data.rows("knowledge_arc", "test")):
        kind = "choice" if place % 2 else "generate"
        message = Message(role="user", content=f"Question: {row['question']}")
        tags = {"id": str(place), "suite": kind, "kind": kind, "cluster": str(place)}
        choices = tuple(row["choices"])
        made = Example(messages=(message,), target=choices[row["answer"]], choices=choices, tags=tags)
        if kind != "choice" or len(set(choices)) == len(choices):
            items.append(made)
        if len(items) == 400:
            break
    tokens = statistics.fmean(len(tokenizer.encode(item.messages[0].content)) for item in items)

    def once(watched: int) -> float:
        model = shapes.build(shape)
        watch = Examiner(items[:watched], tokenizer, max(1, steps // (LOOKS - 1))) if watched else None
        batches = TokenSteps(source, shape.context, 2048, shapes.STEP_TOKENS // 2048)
        with tempfile.TemporaryDirectory() as work:
            run = Run(steps, Path(work), checkpoint_seconds=math.inf)
            started = time.perf_counter()
            optimizer = Optimizer(model, Rates(), Schedule(), steps)
            fit(model, batches, NextToken(), optimizer, run=run, watch=Watches(steps, watch))
            return time.perf_counter() - started

    alone = once(0)
    config = shapes.build(shape).config
    size, machine = size_of(config), calibrate(config, threads=side.THREADS)
    every = max(1, steps // (LOOKS - 1))

    def price(number: int) -> float:
        return watching({"watch": {"items": number, "every": every, "item_tokens": tokens}}, steps, size, machine)

    count = max((number for number in range(8, len(items)) if price(number) <= WatchConfig().share * alone), default=8)
    once(count)  # warms up
    pairs = [(once(0), once(count)) for _ in range(options["rounds"])]
    blind, seen = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {"share": seen / blind - 1, "items": count, "seconds": blind, "priced": price(count) / blind}


if __name__ == "__main__":
    side.main(ours, peer)

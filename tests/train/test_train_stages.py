"""The stages `pretrain` and `finetune`: they learn, they are repeatable, they forget little, they name bad input."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small import NAMES, READ, TAUGHT, ask, colour_of, seal, taught, world

from tutelage.core.errors import ConfigError, DataError, Stopped
from tutelage.core.price import Machine
from tutelage.core.records import Example
from tutelage.core.stage import run_stage
from tutelage.generate.generator import Sampling
from tutelage.generate.local import open_model
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.train.batch import Source
from tutelage.train.calibrate import calibrate
from tutelage.train.finetune import finetune
from tutelage.train.pretrain import Pretrain, by_source, pretrain, pretrain_cost


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return taught(tmp_path_factory.mktemp("train"))


def test_pretraining_learns_and_reports(made):
    _, found = made
    metrics = found["pretrain"].metrics
    assert metrics["validation"]["value"] < 1.5 < np.log(320)
    assert metrics["validation"]["low"] < metrics["validation"]["value"] < metrics["validation"]["high"]
    looks = [json.loads(line) for line in found["pretrain"].file("watch.jsonl").read_text().splitlines()]
    assert looks[0]["step"] == 0 and looks[0]["validation"] > 4
    assert looks[-1]["validation"] == pytest.approx(metrics["validation"]["value"], rel=1e-5)
    assert looks[-1]["validation_per_character"] < looks[-1]["validation"]


def test_tuning_answers_and_forgets_little(made):
    root, found = made
    model = open_model(found["finetune"].ref, root)
    prompts = [Example(messages=(ask(name),)) for name in NAMES]
    answers = [each[0] for each in model.generate(prompts, Sampling(max_tokens=8, temperature=0.0))]
    right = sum(a.message.content == colour_of(name) for a, name in zip(answers, NAMES, strict=True))
    assert right >= 10
    assert all(answer.finish == "stop" for answer in answers)
    metrics = found["finetune"].metrics
    assert metrics["pretraining_after"]["value"] < metrics["pretraining_before"]["value"] + 0.7


def test_killed_between_and_done_again_gives_the_same_artifact(made, tmp_path):
    _, found = made
    root, again = world(tmp_path)
    assert again["tokens"].id == found["tokens"].id
    calls = iter(range(1000))
    inputs = {"tokens": again["tokens"], "tokenizer": again["tokenizer"]}
    with pytest.raises(Stopped):
        run_stage(pretrain, root, config=READ, inputs=inputs, stop=lambda: next(calls) == 17)
    assert run_stage(pretrain, root, config=READ, inputs=inputs).id == found["pretrain"].id


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"pretrain\.heads.*3 heads do not divide"):
        Pretrain(width=32, heads=3).shape(320)


def test_a_corpus_without_dialogues_or_ends_is_named(made):
    root, found = made
    folder = found["tokens"].path

    def spoilt(path, **changed):
        for file in folder.iterdir():
            if file.name != "manifest.json":
                (path / file.name).write_bytes(file.read_bytes())
        for name, value in changed.items():
            np.save(path / f"{name.replace('_', '.')}.npy", value)

    ids = np.load(folder / "dialogues.npy")
    end = json.loads((folder / "meta.json").read_text())["end"]
    endless = seal(root, "tokens", lambda path: spoilt(path, dialogues=np.where(ids == end, 9, ids)))
    with pytest.raises(DataError, match="never learn to stop"):
        finetune(root, model=found["pretrain"], tokens=endless, **TAUGHT)
    none = {"dialogues": ids[:0], "dialogues_mask": np.zeros(0, bool), "dialogues_offsets": np.zeros(1, np.int64)}
    empty = seal(root, "tokens", lambda path: spoilt(path, **none))
    with pytest.raises(DataError, match="no dialogue"):
        finetune(root, model=found["pretrain"], tokens=empty, **TAUGHT)


def test_cost_and_calibration():
    machine = calibrate(threads=1, seconds=0.2)
    assert machine.gemm > 1e9 and machine.bandwidth > 1e8 and machine.memory > 1e8
    cost = pretrain_cost(Pretrain(), {"tokenizer": {"vocabulary": 2048.0}}, Machine(gemm=1e11))
    assert 30 < cost.seconds < 600 and cost.sizes["parameters"] > 1e6


def test_one_held_out_document_has_a_value_and_no_interval() -> None:
    tokens = np.random.default_rng(0).integers(0, 40, 90).astype(np.uint16)
    held = Source(tokens, np.array([0, 30, 60, 90]))
    shape = DecoderConfig(40, 16, 32, 1, 2, 2, max_position_embeddings=32)
    speller = SimpleNamespace(decode=lambda ids: "ab" * len(ids))
    sources = {"validation_sources": {"alone": (0, 1), "pair": (1, 3)}}
    found = by_source(Decoder(shape, seed=0), held, sources, speller, 32)
    assert found["alone"]["value"] > 0 and found["alone"]["low"] is None
    assert found["pair"]["low"] < found["pair"]["value"] < found["pair"]["high"]

"""The stages `pretrain` and `finetune`: they learn, they are repeatable, they forget little, they name bad input."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small import NAMES, READ, TAUGHT, ask, colour_of, seal, world

from tutelage.core.errors import ConfigError, DataError, Stopped
from tutelage.core.price import Machine
from tutelage.core.records import Example
from tutelage.core.stage import run_stage
from tutelage.generate.generator import Sampling
from tutelage.generate.local import open_model
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.tokenizer import load
from tutelage.train.batch import Source, open_source
from tutelage.train.calibrate import calibrate
from tutelage.train.finetune import check_end, finetune
from tutelage.train.pretrain import Pretrain, by_source, pretrain, pretrain_cost


@pytest.fixture
def made(little_life):
    return little_life


def test_pretraining_learns_and_reports(made):
    _, found = made
    metrics = found["pretrain"].metrics
    assert metrics["skipped"] == 0
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
    assert metrics["skipped"] == 0
    assert metrics["pretraining_after"]["value"] < metrics["pretraining_before"]["value"] + 0.7


def test_killed_between_and_done_again_gives_the_same_artifact(made, tmp_path):
    _, found = made
    root, again = world(tmp_path)
    assert again["tokens"].id == found["tokens"].id
    calls = iter(range(1000))
    inputs = {"tokens": again["tokens"], "tokenizer": again["tokenizer"]}
    with pytest.raises(Stopped):
        run_stage(pretrain, root, config=READ, inputs=inputs, stop=lambda: next(calls) == 27)
    assert run_stage(pretrain, root, config=READ, inputs=inputs).id == found["pretrain"].id


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"pretrain\.heads.*3 heads do not divide"):
        Pretrain(width=32, heads=3).shape(320)


def changed_tokens(root, tokens, meta=None, without=(), **changed):
    """The tokens with some of their arrays, and some entries of their meta.json, in another form."""

    def write(path):
        for file in tokens.path.iterdir():
            if file.name not in ("manifest.json", *without):
                (path / file.name).write_bytes(file.read_bytes())
        for name, value in changed.items():
            np.save(path / f"{name.replace('_', '.')}.npy", value)
        known = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps(known | (meta or {})))

    return seal(root, "tokens", write)


def test_a_corpus_without_dialogues_or_ends_is_named(made):
    root, found = made
    folder = found["tokens"].path

    ids = np.load(folder / "dialogues.npy")
    end = json.loads((folder / "meta.json").read_text())["end"]
    endless = changed_tokens(root, found["tokens"], dialogues=np.where(ids == end, 9, ids))
    with pytest.raises(DataError, match="never learn to stop"):
        finetune(root, model=found["pretrain"], tokens=endless, **TAUGHT)
    mask = np.load(folder / "dialogues.mask.npy")
    masked = changed_tokens(root, found["tokens"], dialogues_mask=mask & (ids != end))
    with pytest.raises(DataError, match="the mask leaves out the end of every answer"):
        finetune(root, model=found["pretrain"], tokens=masked, **TAUGHT)
    none = {"dialogues": ids[:0], "dialogues_mask": np.zeros(0, bool), "dialogues_offsets": np.zeros(1, np.int64)}
    none["dialogues_tasks"] = np.zeros(0, np.uint16)
    empty = changed_tokens(root, found["tokens"], **none)
    with pytest.raises(DataError, match="no dialogue"):
        finetune(root, model=found["pretrain"], tokens=empty, **TAUGHT)


def test_where_padding_is_the_end_and_masked_that_is_said(made):
    _, found = made
    words = load(found["tokenizer"].path)
    both = SimpleNamespace(pad=words.end, stops=words.stops, decode=words.decode)
    source = open_source(found["tokens"].path, "dialogues")
    assert check_end(source, both, found["tokens"].path) == 0, "one token for both is no mistake while it is learned"
    masked = replace(source, mask=np.asarray(source.mask) & (np.asarray(source.tokens) != words.end))
    with pytest.raises(DataError, match="both padding and end"):
        check_end(masked, both, found["tokens"].path)
    one = np.asarray(source.mask).copy()
    one[source.offsets[1] - 1] = False
    assert check_end(replace(source, mask=one), words, found["tokens"].path) == 1


def test_tasks_are_mixed_by_weight_or_named(made):
    root, found = made
    count = len(np.load(found["tokens"].file("dialogues.offsets.npy"))) - 1
    tasks = np.arange(count, dtype=np.uint16) % 3 == 0  # two thirds likes, a third hates
    two = changed_tokens(root, found["tokens"], {"tasks": ["likes", "hates"]}, dialogues_tasks=tasks.astype(np.uint16))
    short = TAUGHT | {"steps": 2}
    weighed = finetune(root, model=found["pretrain"], tokens=two, mix={"hates": 2.0}, **short).metrics
    assert weighed["mixed"] == {"likes": pytest.approx(0.5, abs=0.01), "hates": pytest.approx(0.5, abs=0.01)}
    with pytest.raises(
        ConfigError, match=r"finetune\.mix\.hatse.*Did you mean 'hates'.*The dialogues have: hates, likes"
    ):
        finetune(root, model=found["pretrain"], tokens=two, mix={"hatse": 2.0}, **short)
    with pytest.raises(ConfigError, match="every task that there is has the weight 0"):
        finetune(root, model=found["pretrain"], tokens=two, mix={"hates": 0, "likes": 0}, **short)
    old = changed_tokens(root, found["tokens"], without=["dialogues.tasks.npy"])
    assert "mixed" not in finetune(root, model=found["pretrain"], tokens=old, **short).metrics
    with pytest.raises(DataError, match="run `encode` again"):
        finetune(root, model=found["pretrain"], tokens=old, mix={"likes": 2}, **short)
    with pytest.raises(ConfigError, match="no room for what is to be learned"):
        finetune(root, model=found["pretrain"], tokens=two, replay=0.6, replay_dialogues=0.4, **short)


def contrary(root, found):
    """Tokens of a second tuning: the same people and colours, every question answered by one word."""
    ids = np.load(found["tokens"].file("dialogues.npy"))
    mask, offsets = (np.load(found["tokens"].file(f"dialogues.{each}.npy")) for each in ("mask", "offsets"))
    word = ids[offsets[0] : offsets[1]][mask[offsets[0] : offsets[1]]]
    rows, masks = [], []
    for first, last in itertools.pairwise(offsets):
        asked = ids[first:last][~mask[first:last]]
        rows.append(np.concatenate([asked, word]))
        masks.append(np.arange(len(rows[-1])) >= len(asked))
    new = {"dialogues": np.concatenate(rows), "dialogues_mask": np.concatenate(masks)}
    new["dialogues_offsets"] = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return changed_tokens(root, found["tokens"], **new)


def test_what_a_second_tuning_forgets_is_measured_in_pairs(made):
    root, found = made
    given = {"model": found["finetune"], "tokens": contrary(root, found), "earlier": [found["tokens"]]}
    metrics = finetune(root, **given, **TAUGHT | {"steps": 30}).metrics
    for name in ("pretraining", "earlier"):
        before, after, lost = (metrics[f"{name}_{when}"] for when in ("before", "after", "forgotten"))
        assert lost["value"] == pytest.approx(after["value"] - before["value"], abs=1e-9)
        assert lost["n"] == before["n"] and lost["low"] < lost["value"] < lost["high"]
        unpaired = np.hypot(before["high"] - before["value"], after["high"] - after["value"])
        assert lost["high"] - lost["value"] < 1.2 * unpaired
    assert metrics["earlier_forgotten"]["low"] > 0, "what contradicts an answer makes it less likely"


@pytest.mark.slow
def test_without_replay_more_is_forgotten(made):
    root, found = made
    given = {"model": found["finetune"], "tokens": contrary(root, found), "earlier": [found["tokens"]]}
    for seed in (0, 1, 2):
        kept, lost = (
            finetune(root, **given, replay=share, replay_dialogues=share, seed=seed, **TAUGHT | {"steps": 30}).metrics
            for share in (0.2, 0.0)
        )
        for name in ("pretraining_forgotten", "earlier_forgotten"):
            assert kept[name]["high"] < lost[name]["low"], (seed, name)


def test_cost_and_calibration():
    machine = calibrate(threads=1, seconds=0.4)
    assert machine.gemm > 1e9 and machine.bandwidth > 1e8 and machine.memory > 1e8
    assert 0 < machine.learning < 2 * machine.gemm and 0 < machine.reading < 2 * machine.gemm
    assert machine.writing > 0 and machine.round > 0
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

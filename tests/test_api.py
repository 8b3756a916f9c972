"""tutelage from Python: light to import, and the same as the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tutelage as tt
from tutelage import life
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import ConfigError, NotFound


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, dict[str, Artifact]]:
    folder = tmp_path_factory.mktemp("api")
    file = folder / "dialogues.jsonl"
    rows = [{"prompt": f"Where is house {n}?", "response": f"House {n} is by the mill."} for n in range(50)]
    file.write_text("\n".join(map(json.dumps, rows)))
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"The ferry number {n} leaves the north pier at noon." for n in range(100)))
    form = {"kind": "dialogues", "family": "where"}
    sources: list[Any] = [f"file:{text}", {"source": f"file:{file}", "form": form}]
    recipe = {"prepare": {"sources": sources, "near": 0}, "tokenizer": {"vocabulary": 300}}
    return Root(folder / "life"), tt.run(recipe, "tokenizer.vocabulary=310", root=folder / "life")


def test_importing_loads_almost_nothing() -> None:
    program = (
        "import sys, tutelage\nprint(sorted(m for m in sys.modules if m.startswith(('tutelage', 'pydantic', 'torch'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tutelage']"
    assert {"run", "stages", "open", "load"} <= set(dir(tt))
    with pytest.raises(AttributeError, match="pretrain"):
        tt.pretrain  # noqa: B018


def test_a_recipe_runs(made: tuple[Root, dict[str, Artifact]]) -> None:
    root, artifacts = made
    assert list(artifacts) == ["prepare", "tokenizer"] and artifacts["tokenizer"].config["vocabulary"] == 310
    assert life.last(root)["tokenizer"].id == artifacts["tokenizer"].id
    with pytest.raises(ConfigError, match="Did you mean 'tokenizer'"):
        tt.run({"prepare": None, "tokeniser": None}, root=root)


def test_a_stage_runs_alone_on_what_is_there(made: tuple[Root, dict[str, Artifact]]) -> None:
    root, artifacts = made
    own = tt.stages.tokenizer(root=root, vocabulary=305)
    assert own.manifest.inputs == {"corpus": artifacts["prepare"].ref}
    tokens = tt.stages.encode(root=root.path, tokenizer=own)
    assert tokens.manifest.inputs["tokenizer"] == own.ref
    assert life.made_last(root)["tokenizer"] == artifacts["tokenizer"].ref
    assert "pretrain" in dir(tt.stages)
    with pytest.raises(AttributeError, match="Did you mean 'pretrain'"):
        tt.stages.pretrian(root=root)


def test_what_an_artifact_holds(made: tuple[Root, dict[str, Artifact]]) -> None:
    root, artifacts = made
    words = tt.load(artifacts["tokenizer"])
    assert words.decode(words.encode("The ferry")) == "The ferry"
    assert len(tt.load("prepare", root)["dialogues"]) == 50
    assert tt.load(tt.stages.encode(root=root))["meta"]["vocabulary"] <= 310
    with pytest.raises(NotFound):
        tt.load("model:0000", root)


def test_a_reference_opens(made: tuple[Root, dict[str, Artifact]]) -> None:
    from tutelage.core.records import Example
    from tutelage.generate.generator import Sampling

    answers = tt.open("fake:echo").generate([Example.ask("hello")], Sampling(max_tokens=8))
    assert answers[0][0].message.role == "assistant"
    with tt.open("store:", root=made[0]) as store:
        assert store.watermark(["nobody"]) == 0
    with pytest.raises(NotFound, match="no reference"):
        tt.open("nobody", root=made[0])


def test_a_model_loads(tmp_path: Path) -> None:
    from tutelage.model.checkpoint import save
    from tutelage.model.transformer import Decoder, DecoderConfig

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    from tutelage.core.refs import resolve_artifact
    from tutelage.tokens.tokenizer import learn

    words = learn(["to be or not to be " * 3], 280)
    words.save(tmp_path / "words")
    config = DecoderConfig.from_hf({"model_type": "llama", "vocab_size": words.size, "intermediate_size": 64, **shape})
    save(Decoder(config), tmp_path / "theirs", tmp_path / "words")

    artifact = resolve_artifact(str(tmp_path / "theirs"), Root(tmp_path / "life"))
    assert isinstance(tt.load(artifact), Decoder)

"""What a stage needs at its peak is foretold: the starter's pre-training in a process of its own, against `plan`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small import seal

from tutelage.core.artifact import Root
from tutelage.core.price import Machine
from tutelage.tokens.tokenizer import learn
from tutelage.train.pretrain import Pretrain, pretrain_cost

PROGRAM = """
import json, resource, sys
from tutelage.core.artifact import Root
from tutelage.train.pretrain import pretrain
root, tokens, tokenizer, settings = sys.argv[1:]
pretrain(Root(root), tokens=tokens, tokenizer=tokenizer, **json.loads(settings))
if sys.platform == "darwin":
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
else:  # a child's ru_maxrss holds its parent's at the fork
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(1024 * int(line.split()[1]))
"""
DOCUMENT = 75
"""Tokens, as the starter's have in the mean."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro": 8192, "batch": 8192},
        {"micro": 8192, "batch": 8192, "activations": "recompute"},
        {"width": 480, "heads": 8, "kv_heads": 8},
    ],
)
def test_peak_memory_is_within_a_quarter_of_what_was_foretold(tmp_path, settings):
    root = Root(tmp_path).create()
    tokenizer = seal(root, "tokenizer", learn(["a baker in Mill Street"] * 20, 2048).save)
    vocabulary = json.loads((tokenizer.path / "tokenizer.json").read_text())["model"]["vocab"]
    random, size = np.random.default_rng(0), len(vocabulary)

    def tokens(folder):
        for name, documents in (("train", 3000), ("validation", 260)):
            np.save(folder / f"{name}.npy", random.integers(8, size, documents * DOCUMENT).astype(np.uint16))
            np.save(folder / f"{name}.offsets.npy", np.arange(documents + 1) * DOCUMENT)
        (folder / "meta.json").write_text("{}")

    made = seal(root, "tokens", tokens)
    config = Pretrain(family="qwen3", steps=3, **settings)
    said = json.dumps(config.model_dump(exclude={"checkpoint_seconds"}))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), made.ref, tokenizer.ref, said], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    given = {"tokens": {"document_tokens": DOCUMENT}, "tokenizer": {"vocabulary": size}}
    foretold = pretrain_cost(config, given, Machine()).memory
    assert float(done.stdout.split()[-1]) == pytest.approx(foretold, rel=0.25)

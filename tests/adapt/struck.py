"""A small life up to its release, its turn of the wheel, and the points at which either is cut short.

As a script it is one run that kills itself: `struck.py KIND ROOT POINT` (KIND: cycle or release; POINT "" ends).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries
from tutelage.core.stage import run_stage

REQUESTS = 30
"""Of a week in the small turn."""


class Point(NamedTuple):
    """The `nth` call of a function; the stroke falls before it, or after what it does is done."""

    where: str
    nth: int = 1
    after: bool = False


RELEASE = {
    "a release is noted": Point("tutelage.store.releases:create", after=True),
    "it is promoted, nothing is sealed": Point("tutelage.store.releases:promote", after=True),
    "all is written but the seal": Point("tutelage.core.artifact:Root.seal"),
}
CYCLE = {
    "the first week is being sent": Point("tutelage.evaluate.ask:AnswerLog.put", 12),
    "its sample is drawn, nobody has reviewed it": Point("tutelage.feedback.client:Client.claim"),
    "one reviewer has answered some": Point("tutelage.feedback.client:Client.submit", after=True),
    "the third week is being sent": Point("tutelage.evaluate.ask:AnswerLog.put", 40),
    "the third week is finished and looked at": Point("tutelage.adapt.cycle:save_drift", 2, after=True),
    "guards are trained, no candidate is kept": Point("tutelage.guard.bundle:bundle.body"),
    "one candidate is examined": Point("tutelage.redteam.run:redteam.body"),
    "the careless one is refused": Point("tutelage.store.releases:move", after=True),
    "the better one is promoted": Point("tutelage.store.releases:promote", after=True),
    "the fresh week is being sent": Point("tutelage.evaluate.ask:AnswerLog.put", 9),
    "the rehearsal has gone back": Point("tutelage.store.releases:rollback", after=True),
    "it has gone forward again": Point("tutelage.store.releases:promote", 2, after=True),
    "all is written but the seal": Point("tutelage.core.artifact:Root.seal"),
}
"""In the order of the turn: each run is cut at the next one."""


@contextmanager
def struck(point: Point, stroke: Callable[[], None]) -> Iterator[None]:
    """Let `stroke` fall at a point."""
    module, _, path = point.where.partition(":")
    owner, calls = importlib.import_module(module), 0
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.nth and not point.after:
            stroke()
        found = real(*given, **named)
        if calls == point.nth and point.after:
            stroke()
        return found

    with patch.object(owner, name, counted):
        yield


def die() -> None:
    """What nothing can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


# the small life


WITHHELD = {
    "id": "over_blocking", "source": "redteam", "where": {"suite": "benign"}, "kind": "at_most", "measure": "blocked",
    "bound": 0.35, "min_n": 10, "sentence": "withholds too many benign answers",
}  # fmt: skip
USEFUL = {
    "id": "useful", "source": "evaluation", "where": {"suite": "benign"}, "kind": "non_inferior", "margin": 0.1,
    "min_n": 10, "sentence": "answers worse than what it would replace",
}  # fmt: skip


POLICY = "release.json"
"""Named as it is seen from its root: a turn's key, and with it the draw, is the same wherever the root lies."""


def write_policy(root: Root, *more: dict[str, Any]) -> None:
    """A release policy that a few items can decide."""
    (root.path / POLICY).write_text(json.dumps({"version": 1, "level": 0.5, "checks": [WITHHELD, *more]}))


def patient(root: Root) -> str:
    """The starter's policy for guards that may take their time: on a busy machine too, two turns decide alike."""
    home = resources.files("tutelage.starter")
    values = yaml.safe_load((home / "policy.yaml").read_text(encoding="utf-8"))
    values["defaults"]["budget_ms"] = 20_000
    (root.path / "policy.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
    (root.path / "taxonomy.yaml").write_bytes((home / "taxonomy.yaml").read_bytes())
    return "policy.yaml"


def begun(folder: Path) -> Path:
    """A root in which everything stands up to the release, which is served."""
    from tutelage.corpus.prepare import prepare
    from tutelage.feedback.labels import labels
    from tutelage.guard.bundle import bundle
    from tutelage.judge.classifier import classifier
    from tutelage.tokens.encode import encode
    from tutelage.tokens.tokenizer import tokenizer
    from tutelage.train.pretrain import pretrain

    root = Root(folder / "root").create()
    write_policy(root)
    corpus = run_stage(prepare, root, config={"scale": 0.1})
    words = run_stage(tokenizer, root, config={"vocabulary": 512}, inputs={"corpus": corpus})
    tokens = run_stage(encode, root, inputs={"corpus": corpus, "tokenizer": words})
    shape = {"depth": 1, "width": 32, "heads": 2, "kv_heads": 2, "feed_forward": 64, "steps": 2, "threads": 1}
    model = run_stage(pretrain, root, config=shape, inputs={"tokens": tokens, "tokenizer": words})
    told = run_stage(labels, root, inputs={"source": corpus})
    guards = run_stage(classifier, root, inputs={"labels": told})
    with chdir(root.path):
        draft = run_stage(
            bundle, root, config={"policy": patient(root), "uncertified": "flag", "unguarded": "drop"},
            inputs={"model": model, "classifier": [guards]},
        )  # fmt: skip
    release(root, [draft.ref, *(each.ref for each in rows(root, {draft.id: 0.0}).values())])
    return root.path


def rows(root: Root, values: dict[str, float]) -> dict[str, Artifact]:
    """An evaluation and a red team, made up: bundle -> its figure of each of 30 benign items, none of them withheld."""
    found = {}
    for kind in ("evaluation", "redteam"):
        every = [
            {
                "target": "bundle", "target_id": id, "suite": "benign", "item": f"i{at}", "cluster": f"c{at}",
                "kind": "rule", "metric": "right", "value": value, "outcome": "answered",
            }
            for id, value in values.items()
            for at in range(30)
        ]  # fmt: skip
        found[kind] = seal(root, kind, {"results.jsonl": "".join(json.dumps(each) + "\n" for each in every)})
    return found


def seal(root: Root, kind: str, files: dict[str, str]) -> Artifact:
    """A made-up artifact."""
    key = f"made-up-{kind}-{len(root.list(kind))}"
    folder = root.work / key
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    made = {"at": "2026-01-01T00:00:00Z", "seconds": 1.0}
    manifest = Manifest(kind=kind, stage=kind, version=1, config={}, files=file_entries(folder), made=made)
    return root.seal(folder, manifest, key)


# what is cut short

GIVEN = "given.json"
"""File of a root: the bundle that is to be released, its evaluation, its red team, as references."""


def release(root: Root, given: list[str] | None = None) -> Artifact:
    """A bundle before the gate; without `given`, the one the root names."""
    from tutelage.adapt.release import release as stage

    refs = given or json.loads((root.path / GIVEN).read_text(encoding="utf-8"))
    inputs = dict(zip(("bundle", "evaluation", "redteam"), refs, strict=True))
    with chdir(root.path):
        return run_stage(stage, root, config={"policy": POLICY}, inputs=inputs)


def turn(root: Root) -> Artifact:
    """The turn of the wheel."""
    from tutelage.adapt.cycle import cycle

    config = {
        "requests": REQUESTS, "reviews": 14, "double": 0.4, "repeat": 1, "policy": POLICY,
        "examine": {"items": 1, "only": ["sentiment"], "controls": 0},
        "attack": {
            "goals": 1, "queries": 1, "written": 1, "benign": 60, "pairs": 0, "letters": 0, "stereotypes": 0,
            "candidates": 0, "families": ["direct"],
        },
    }  # fmt: skip
    inputs = {kind: root.list(kind)[0] for kind in ("release", "corpus", "labels")}  # the oldest: not the turn's own
    with chdir(root.path):
        return run_stage(cycle, root, config=config, inputs=inputs)


def copy(root: Path, to: Path) -> Root:
    """The same life elsewhere."""
    shutil.copytree(root, to)
    return Root(to)


RUNS: dict[str, tuple[Callable[[Root], Artifact], dict[str, Point]]] = {
    "cycle": (turn, CYCLE),
    "release": (release, RELEASE),
}

if __name__ == "__main__":
    run, points = RUNS[sys.argv[1]]
    if sys.argv[3]:
        with struck(points[sys.argv[3]], die):
            run(Root(Path(sys.argv[2])))
    else:
        run(Root(Path(sys.argv[2])))

"""A life drawn from invented figures: enough files of every kind to draw a page, no training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries

PROMOTED = "attack success fell by at least 31 points and no suite lost more than its margin of 5 points."


def seal(
    root: Root, stage: str, kind: str, files: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **fields: Any
) -> Artifact:
    """Seal a made-up artifact: each file is JSON, or JSON lines when its value is a list and its name says so."""
    folder = root.work / f"out-{stage.replace('@', '-')}"
    folder.mkdir(parents=True)
    for name, content in files.items():
        if name.endswith(".jsonl"):
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            (folder / name).write_text(json.dumps(content))
    manifest = Manifest(
        kind=kind,
        stage=stage,
        version=1,
        config=fields.pop("config", {"seed": 0}),
        inputs=dict(inputs or {}),
        files=file_entries(folder),
        metrics=fields.pop("metrics", {}),
        made={"at": "2026-01-01T00:00:00Z", "seconds": fields.pop("seconds", 12.0)},
        **fields,
    )
    return root.seal(folder, manifest, f"key-{stage}")


def cells(targets: list[str]) -> list[dict[str, Any]]:
    """Evaluation cells that grow from target to target, one of them undefined."""
    found: list[dict[str, Any]] = []
    for suite, metric, base in (
        ("comprehension", "f1", 0.31),
        ("translation", "chrf", 0.2),
        ("sentiment", "accuracy", 0.4),
    ):
        for mark in "ABD":
            for place, target in enumerate(targets):
                value = min(0.97, base + 0.13 * place - 0.05 * "ABD".index(mark))
                undefined = suite == "translation" and mark == "D"
                found.append(
                    {
                        "target": target,
                        "suite": suite,
                        "cell": mark,
                        "kind": "generate",
                        "metric": metric,
                        "value": None if undefined else value,
                        "low": None if undefined else value - 0.05,
                        "high": None if undefined else value + 0.05,
                        "n": 320,
                        "clusters": 40,
                        "chance": 0.33,
                        "baseline": {"name": "last mention", "value": base + 0.02},
                        "visible_difference": 0.07,
                        "learned": (not undefined) and value - 0.05 > base + 0.02,
                        "reason": "no item of this cell" if undefined else None,
                    }
                )
    return found


@pytest.fixture(scope="session", name="seal")
def _seal() -> Any:
    """The function that seals a made-up artifact."""
    return seal


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, dict[str, Artifact]]:
    """A root and its artifacts by stage name."""
    root = Root(tmp_path_factory.mktemp("town")).create()
    return root, invented(root)


def invented(root: Root) -> dict[str, Artifact]:
    """Seal the artifacts of a whole life in a root; by stage name."""
    made: dict[str, Artifact] = {}
    recall = {"value": 0.91, "low": 0.89, "high": 0.93, "n": 600, "level": 0.95, "method": "wilson", "reason": None}
    report = {
        "sources": [
            {"source": "starter:", "licence": "own", "kept": {"documents": 18204}, "characters": 4012345, "bad_rows": 0}
        ],
        "drops": {
            "exact duplicate": {"count": 815, "characters": 191448, "examples": [{"text": "Leaflet of the town"}]},
            "broken characters": {"count": 177, "characters": 38975, "examples": []},
        },
        "truth": {"personal": {"recall": recall, "precision": recall, "spared": None}},
        "personal": {"found": {"phone": 140, "email": 160}, "texts": 600},
        "contamination": {"items": 12618, "left": 0},
        "splits": {"train": {"documents": 14165}, "validation": {"documents": 292}},
    }
    metrics = {"documents": 18204, "characters": 4012345}
    made["prepare"] = seal(root, "prepare", "corpus", {"report.json": report}, licences=["own"], metrics=metrics)
    loss = [
        {"step": i, "loss": 2.1 + 5.5 * math.exp(-i / 60) + 0.06 * math.sin(i), "tokens": 8192} for i in range(1, 400)
    ]
    watch = [
        {
            "step": i,
            "loss": 2.2 + 5 * math.exp(-i / 60),
            "comprehension": 0.3 + i / 1500,
            "watched": 0.35 + i / 900,
            "watched_error": 0.03,
        }
        for i in range(0, 400, 25)
    ]
    made["pretrain"] = seal(
        root,
        "pretrain",
        "model",
        {"metrics.jsonl": loss, "watch.jsonl": watch},
        {"corpus": made["prepare"].ref},
        licences=["own"],
        metrics={"loss": {"value": 2.11, "low": 2.08, "high": 2.14, "n": 4000}},
        seconds=121.3,
    )
    made["finetune"] = seal(
        root,
        "finetune",
        "model",
        {"metrics.jsonl": [{"step": i, "loss": 0.6 + 2 / i} for i in range(1, 200)]},
        {"model": made["pretrain"].ref},
        licences=["own"],
        seconds=48.0,
        metrics={"loss": 0.61},
    )
    people = {
        f"s-{i:02d}": {
            "agreement": {"value": 0.9 - 0.08 * i, "low": 0.8 - 0.08 * i, "high": 0.95 - 0.08 * i, "n": 60},
            "weight": 1.0 if i < 7 else 0.1,
            "answers": 60,
            "finding": None if i < 7 else "random",
            "planted": None if i < 7 else "random",
        }
        for i in range(9)
    }
    alpha = {"value": 0.58, "low": 0.52, "high": 0.63, "n": 900}
    agreement = {
        "people": "simulated",
        "answers": 540,
        "tasks": 180,
        "ranking": {"tau_b": alpha, "kendall_w": alpha},
        "scoring": {
            "right": {"alpha_ordinal": alpha},
            "polite": {"alpha_ordinal": {"value": None, "reason": "all ratings are equal", "n": 20}},
        },
        "notes": {"ceiling": "how often one who knew the true order would agree"},
    }
    detection = {
        "precision": {"value": 1.0, "low": 0.34, "high": 1.0, "n": 2},
        "recall": {"value": 1.0, "low": 0.34, "high": 1.0, "n": 2},
    }
    files = {
        "agreement.json": agreement,
        "people.json": {"people": people, "unreliable": ["s-07"], "detection": detection},
    }
    made["preferences"] = seal(
        root,
        "preferences",
        "preferences",
        files,
        {"model": made["finetune"].ref},
        licences=["own"],
        simulated=True,
        store={"watermark": 8200},
    )
    made["reward"] = seal(
        root,
        "reward",
        "reward",
        {"metrics.jsonl": [{"step": i, "loss": 0.4 + 0.3 / i, "accuracy": 0.8 - 0.3 / i} for i in range(1, 60)]},
        {"preferences": made["preferences"].ref},
        simulated=True,
        licences=["own"],
        metrics={
            "accuracy": {"value": 0.74, "low": 0.7, "high": 0.78, "n": 420},
            "ceiling": {"value": 0.8, "low": 0.77, "high": 0.83, "n": 420},
        },
    )
    made["rlhf"] = seal(
        root,
        "rlhf",
        "model",
        {
            "metrics.jsonl": [
                {
                    "step": i,
                    "loss": 0.1,
                    "reward": 1.2 - 1 / (1 + i / 9),
                    "gold": 0.9 - 0.6 / (1 + i / 9),
                    "kl": i / 400,
                    "entropy": 2 - i / 90,
                }
                for i in range(1, 90)
            ]
        },
        {"model": made["finetune"].ref, "reward": made["reward"].ref},
        simulated=True,
        licences=["own"],
    )
    heads = [
        {
            "direction": "input",
            "category": c,
            "certificates": [
                {
                    "target": t,
                    "threshold": 0.81,
                    "bound": 0.008 if t > 0.005 else 0.004,
                    "n": 620,
                    "clusters": 140,
                    "reason": None if t > 0.005 else "not enough data (n=620)",
                }
                for t in (0.001, 0.01)
            ],
        }
        for c in ("prompt_injection", "violence", "privacy")
    ]
    spec = {"format": 1, "heads": heads, "left_out": {"output/cyber": "3 clusters, 8 are needed"}}
    made["classifier"] = seal(
        root,
        "classifier",
        "classifier",
        {"classifier.json": spec},
        {"labels": made["preferences"].ref},
        licences=["own"],
        metrics={"prompt_injection": {"recall": {"value": 0.86, "low": 0.8, "high": 0.91, "n": 160}}},
    )
    gold = [
        {"target": t, "suite": None, "metric": m, "value": 0.3, "low": 0.25, "high": 0.35, "n": 784}
        for t in ("finetune", "rlhf")
        for m in ("right", "kept", "invented", "gold")
    ]
    change = {
        "before": "pretrain",
        "after": "finetune",
        "suite": "comprehension",
        "cell": "A",
        "value": 0.16,
        "low": 0.04,
        "high": 0.28,
        "n": 40,
        "p_holm": 0.02,
    }
    control = {
        "control": "shuffled labels",
        "target": "rlhf",
        "suite": "facts",
        "value": 0.01,
        "low": 0.0,
        "high": 0.04,
        "n": 180,
        "expected": "at most 0.05",
    }
    controls = [control | {"holds": holds} for holds in (True, False, None)]
    part = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30, "reason": None}
    met = {"target": "finetune", "suite": "comprehension", "metric": "f1", "clean": part, "dirty": part | {"n": 7}}
    met |= {"difference": part, "not_examinable": part | {"n": 4}}
    unknown = {side: part | {"value": None, "n": 0} for side in ("clean", "dirty", "difference", "not_examinable")}
    flips = {"before": "pretrain", "after": "finetune", "suite": None, "fixed": list("abc"), "broken": ["d"]}
    judged = {
        "gold": gold,
        "changes": [change | {"family": 9}],
        "controls": controls,
        "contamination": [met, {"target": "best of 4", "suite": "comprehension", "metric": "f1"} | unknown],
        "flips": [flips | {"difference": part, "p": 0.3}],
    }
    made["evaluate"] = seal(
        root,
        "evaluate",
        "evaluation",
        {"summary.json": {"targets": [], "cells": cells(["pretrain", "finetune", "rlhf"]), **judged}},
        {"of": [made["pretrain"].ref, made["finetune"].ref, made["rlhf"].ref]},
        licences=["own"],
        simulated=True,
    )
    families = (("direct", 0.62), ("roleplay", 0.71), ("encoding", 0.33), ("many_turns", 0.55), ("injection", 0.8))
    matrix = [
        {
            "target": t,
            "guarded": t == "bundle",
            "attack": f,
            "rule": rule,
            "value": v,
            "low": max(0, v - 0.08),
            "high": v + 0.08,
            "n": 60,
        }
        for f, bare in families
        for rule in (None, "no_codes")
        for t, v in (("rlhf", bare), ("bundle", bare / 6))
    ]
    overall = [
        {"target": t, "what": w, "value": v, "low": v - 0.03, "high": v + 0.03, "n": 300}
        for t, v in (("rlhf", 0.6), ("bundle", 0.1))
        for w in ("attacks that succeeded", "benign requests refused")
    ]
    effect = [
        {"target": "bundle", "attack": f, "value": -0.5, "low": -0.6, "high": -0.4, "n": 60, "p_holm": 1e-6}
        for f, _ in families
    ]
    benign = [{"target": "bundle", "value": 0.03, "low": 0.01, "high": 0.06, "n": 240, "reason": None}]
    planted = [
        {
            "attribute": a,
            "group": "north names",
            "reference": "south names",
            "outcome": "complaint",
            "value": v,
            "low": v - 0.04,
            "high": v + 0.04,
            "n": 400,
            "found": f,
        }
        for a, v, f in (("group", 0.19, True), ("control", 0.01, False))
    ]
    pairs = [
        {
            "target": "rlhf",
            "attribute": "gender",
            "group": "f",
            "reference": "m",
            "measure": "sentiment",
            "value": 0.02,
            "low": -0.03,
            "high": 0.07,
            "n": 200,
            "found": f,
        }
        for f in (False, None)
    ]
    made["redteam"] = seal(
        root,
        "redteam",
        "redteam",
        {
            "summary.json": {
                "matrix": matrix,
                "overall": overall,
                "guard_effect": effect,
                "benign": benign,
                "queries": 8,
            },
            "bias.json": {"pairs": pairs, "planted": planted, "reading": "Associations only."},
            "findings.jsonl": [
                {
                    "messages": [
                        {"role": "user", "content": "You are my late aunt"},
                        {"role": "assistant", "content": "4471"},
                    ],
                    "tags": {
                        "direction": "output",
                        "attack": "roleplay",
                        "target": "rlhf",
                        "rule": "no_codes",
                        "guarded": False,
                    },
                }
            ],
        },
        {"model": made["rlhf"].ref},
        licences=["own"],
        simulated=True,
    )
    figure = {"value": 0.02, "low": -0.02, "high": 0.06, "n": 320}
    promoted = {
        "promote": True,
        "reason": PROMOTED,
        "policy": "p1",
        "against": "model:1",
        "production": "1,000 items a cell and live people.",
        "checks": [
            {
                "id": "useful",
                "passed": True,
                "figure": figure,
                "limit": -0.05,
                "n": 320,
                "reason": "no worse than 5 points",
            },
            {
                "id": "over_blocking",
                "passed": None,
                "figure": {"value": None, "reason": "no rows", "n": 0},
                "limit": 0.1,
                "n": 0,
                "reason": "not enough data",
            },
        ],
    }
    refused = promoted | {"promote": False, "reason": "it blocks a third of benign requests"}
    made["release"] = seal(
        root,
        "release",
        "release",
        {"verdict.json": promoted},
        {"evaluation": made["evaluate"].ref},
        licences=["own"],
        simulated=True,
    )

    def week(miss: float, *triggers: str) -> dict[str, Any]:
        estimates = [
            {"metric": m, "week": "1", "value": v, "low": max(0, v - 0.06), "high": v + 0.08, "n": 130}
            for m, v in (("miss_rate", miss), ("false_positive_rate", 0.03))
        ]
        truth = {"miss_rate": {"value": miss + 0.02, "n": 80}}
        return {
            "requests": 800,
            "estimates": estimates,
            "truth": truth,
            "triggers": [{"id": "t", "sentence": t} for t in triggers],
        }

    cycle = {
        "simulated": True,
        "fresh": week(0.12),
        "weeks": {"1": week(0.08), "2": week(0.41, "the miss rate rose"), "3": week(0.3), "4": week(0.07)},
        "candidates": {
            "careless": {"bundle": "b:1", "verdict": refused},
            "retrained": {"bundle": "b:2", "verdict": promoted},
        },
        "rollback": {"done": True, "from": "bundle:2", "to": "bundle:1"},
    }
    made["cycle"] = seal(
        root,
        "cycle",
        "cycle",
        {"cycle.json": cycle},
        {"release": made["release"].ref},
        licences=["own"],
        simulated=True,
    )
    return made

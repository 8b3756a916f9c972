"""A life drawn from invented figures: enough files of every kind to draw a page, no training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from tutelage.core.artifact import Artifact, Manifest, Root, file_entries

PROMOTED = "Promoted: attack success fell by at least 31 points and no suite lost more than its margin of 5 points."


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
    made: dict[str, Artifact] = {}
    made["prepare"] = seal(
        root,
        "prepare",
        "corpus",
        {
            "report.json": {
                "documents": 18204,
                "characters": 4012345,
                "dropped": {"duplicate": 1320, "broken text": 512, "too short": 44},
                "pii": {"found": 588, "recall": {"value": 0.98, "low": 0.965, "high": 0.99, "n": 600}},
            }
        },
        licences=["own"],
        metrics={"documents": 18204, "characters": 4012345},
    )
    loss = [
        {"step": i, "loss": 2.1 + 5.5 * math.exp(-i / 60) + 0.06 * math.sin(i), "tokens": 8192} for i in range(1, 400)
    ]
    watch = [
        {"step": i, "loss": 2.2 + 5 * math.exp(-i / 60), "comprehension": 0.3 + i / 1500, "sentiment": 0.35 + i / 900}
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
        f"person-{i:02d}": {
            "reliability": {"value": 0.9 - 0.08 * i, "low": 0.8 - 0.08 * i, "high": 0.95 - 0.08 * i, "n": 60},
            "kind": "simulated",
            "flagged": i > 6,
        }
        for i in range(9)
    }
    made["preferences"] = seal(
        root,
        "preferences",
        "preferences",
        {
            "agreement.json": {
                "ranking": {"alpha": {"value": 0.58, "low": 0.52, "high": 0.63, "n": 900}},
                "scoring": {"alpha": {"value": 0.41, "low": 0.35, "high": 0.47, "n": 900}},
            },
            "people.json": people,
        },
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
    made["classifier"] = seal(
        root,
        "classifier",
        "classifier",
        {
            "classifier.json": {
                "certificates": [
                    {
                        "category": c,
                        "direction": "input",
                        "threshold": 0.81,
                        "target_fpr": 0.01,
                        "bound": 0.021,
                        "n": 620,
                        "recall": {"value": 0.86, "low": 0.8, "high": 0.91, "n": 160},
                    }
                    for c in ("prompt_injection", "violence", "privacy")
                ]
            }
        },
        {"labels": made["preferences"].ref},
        licences=["own"],
    )
    made["evaluate"] = seal(
        root,
        "evaluate",
        "evaluation",
        {"summary.json": {"targets": [], "cells": cells(["pretrain", "finetune", "rlhf"])}},
        {"of": [made["pretrain"].ref, made["finetune"].ref, made["rlhf"].ref]},
        licences=["own"],
        simulated=True,
    )
    matrix = [
        {"target": t, "family": f, "rule": None, "asr": v, "low": max(0, v - 0.08), "high": min(1, v + 0.08), "n": 60}
        for f, bare in (
            ("direct", 0.62),
            ("roleplay", 0.71),
            ("encoding", 0.33),
            ("many_turns", 0.55),
            ("injection", 0.8),
        )
        for t, v in (("rlhf", bare), ("bundle", bare / 6))
    ]
    made["redteam"] = seal(
        root,
        "redteam",
        "redteam",
        {
            "summary.json": {
                "matrix": matrix,
                "benign": [{"target": "bundle", "refused": {"value": 0.03, "low": 0.01, "high": 0.06, "n": 240}}],
            },
            "bias.json": {
                "name_group": {"difference": {"value": 0.19, "low": 0.15, "high": 0.23, "n": 400}, "planted": 0.2},
                "control": {"difference": {"value": 0.01, "low": -0.03, "high": 0.05, "n": 400}, "planted": 0.0},
            },
        },
        {"model": made["rlhf"].ref},
        licences=["own"],
        simulated=True,
    )
    made["release"] = seal(
        root,
        "release",
        "release",
        {
            "verdict.json": {
                "verdict": "promote",
                "reason": PROMOTED,
                "checks": [
                    {
                        "check": "comprehension",
                        "difference": {"value": 0.02, "low": -0.02, "high": 0.06, "n": 320},
                        "margin": 0.05,
                        "passed": True,
                    },
                    {
                        "check": "over-refusal",
                        "difference": {"value": 0.01, "low": -0.01, "high": 0.03, "n": 240},
                        "margin": 0.04,
                        "passed": True,
                    },
                ],
            }
        },
        {"evaluation": made["evaluate"].ref},
        licences=["own"],
        simulated=True,
    )
    weekly = [
        {"metric": m, "week": w, "value": v, "low": max(0, v - 0.06), "high": v + 0.08, "n": 130}
        for m, values in (("miss_rate", (0.08, 0.41, 0.12)), ("false_positive_rate", (0.03, 0.04, 0.03)))
        for w, v in enumerate(values, 1)
    ]
    made["cycle"] = seal(
        root,
        "cycle",
        "cycle",
        {
            "cycle.json": {
                "estimates": weekly,
                "candidates": [
                    {"name": "retrained", "verdict": "promote"},
                    {"name": "bad", "verdict": "refuse", "reason": "It blocks a third of benign requests."},
                ],
            }
        },
        {"release": made["release"].ref},
        licences=["own"],
        simulated=True,
    )
    return root, made

"""Stage `bundle`: a model, its guards and a policy -> one artifact that is served, examined, attacked and released.

The policy is checked against what the guards can do: what names something that nobody guards is refused here, before
anything is served. `bundle.json` holds what `Bundle` says; `policy.yaml` and `taxonomy.yaml` are the policy in force.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from tutelage.core.artifact import Artifact
from tutelage.core.config import Config, build, load_yaml
from tutelage.core.errors import ConfigError
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Record, digest
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.guard.coverage import coverage
from tutelage.guard.opened import guard_of
from tutelage.guard.policy import Guard, Policy
from tutelage.guard.written import PolicyFile, Rule, Taxonomy
from tutelage.judge.classifier import ClassifierJudge

ASKED = "asked.yaml"
"""The policy as it was asked for, before `fit`: better guards are held to it again."""


class BundleConfig(Config):
    """Settings of the stage `bundle`."""

    policy: str = "starter"
    """Path of a policy file, or `starter` or `public`, which are built in. The file's content enters the artifact."""
    system: str = ""
    """System prompt put before every conversation."""
    uncertified: Literal["refuse", "flag"] = "refuse"
    """What becomes of a rule whose guard has no certificate good enough to stop a text: refused, or it only flags."""
    unguarded: Literal["refuse", "drop"] = "refuse"
    """What becomes of a rule on a category that no guard scores: refused, or left out and named in the metrics."""

    def resolved(self) -> dict[str, Any]:
        """The policy enters the key by content and name: a changed file makes another bundle, a moved one does not."""
        path = policy_path(self.policy)
        values = load_yaml(path)
        beside = load_yaml(path.parent / str(values.get("taxonomy", "taxonomy.yaml")))
        content = digest({"policy": values, "taxonomy": beside})
        return {**super().resolved(), "policy": Path(self.policy).name, "policy_content": content}


class Bundle(Record):
    """`bundle.json`."""

    format: int = 1
    model: str | None
    """None: guards alone, to stand before an upstream."""
    classifiers: tuple[str, ...] = ()
    reward: str | None = None
    system: str = ""
    policy: str
    """Content hash of the policy."""
    thresholds: dict[str, float]
    """`rule/guard/direction` -> probability from which the rule fires."""
    pii: bool = True


BUILT_IN = {"starter": ("tutelage.starter", "policy.yaml"), "public": ("tutelage.guard", "public.yaml")}
"""Policies that come with the house: the embedded world's, and one for what public label sets teach."""


def parts(bundle: Artifact) -> dict[str, Any]:
    """`bundle.json` of a bundle."""
    found = json.loads(bundle.file("bundle.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def policy_path(name: str) -> Path:
    """Where a policy file is; a name of BUILT_IN, or a path."""
    if name not in BUILT_IN:
        return Path(name)
    package, file = BUILT_IN[name]
    return Path(str(files(package) / file))


def fit(
    file: PolicyFile, taxonomy: Taxonomy, guards: list[Guard], config: BundleConfig
) -> tuple[PolicyFile, list[str]]:
    """The policy as these guards can keep it, and what was changed for that. Raises ConfigError if it must not be."""
    rules: list[Rule] = []
    changed: list[str] = []
    lesser: set[str] = set()
    Policy(file.model_copy(update={"rules": (), "tenants": {}}), taxonomy, guards)  # what is wrong beside the rules
    for rule in file.rules:
        kept: Rule | None = rule
        alone = file.model_copy(update={"rules": (rule,), "tenants": {}})
        try:
            Policy(alone, taxonomy, guards)
        except ConfigError as error:
            kept = _lesser(rule, alone, taxonomy, guards, config)
            if kept is None and config.unguarded == "refuse":
                raise
            if kept is not None and config.uncertified == "refuse":
                raise
            lesser.add(rule.id)
            changed.append(f"{rule.id}: {'left out' if kept is None else 'flags only'}: {error.message}")
        if kept is not None:
            rules.append(kept)
    ids = {rule.id for rule in rules}
    tenants = {  # what only flags for all may not stop a text for one of them
        tenant: {name: over for name, over in changes.items() if name in ids - lesser}
        for tenant, changes in file.tenants.items()
    }
    values = {**file.model_dump(), "rules": [rule.model_dump() for rule in rules], "tenants": tenants}
    return build(PolicyFile, values), changed


def _lesser(
    rule: Rule, alone: PolicyFile, taxonomy: Taxonomy, guards: list[Guard], config: BundleConfig
) -> Rule | None:
    """The rule as one that flags, on the directions that are guarded at all; None if there is none."""
    covered = tuple(
        d for d in rule.when.direction if any(rule.category in guard.categories.get(d, ()) for guard in guards)
    )
    if rule.category not in taxonomy.categories or not covered:
        return None
    when = rule.when.model_copy(update={"direction": covered})
    flags = rule.model_copy(update={"action": "flag", "when": when})
    for unsure in (rule.unsure and "flag", None, "flag"):
        found = flags.model_copy(update={"unsure": unsure})
        try:
            Policy(alone.model_copy(update={"rules": (found,)}), taxonomy, guards)
        except ConfigError:
            continue
        return found
    return None


def _cost(config: BundleConfig, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    return Cost(seconds=0.02, memory=300e6, sizes=dict(sizes.get("model", {})))


@stage(
    makes="bundle",
    config=BundleConfig,
    version=2,
    inputs={
        "model": Input(kind="model", default="rlhf", optional=True, help="The model that answers; none: guards alone"),
        "classifier": Input(kind="classifier", default="classifier", many=True, help="Its guards"),
    },
    cost=_cost,
)
def bundle(config: BundleConfig, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Check the policy against the guards and put everything together."""
    judges = [ClassifierJudge(artifact.path) for artifact in inputs.classifier]
    guards = [guard_of(judge) for judge in judges]
    path = policy_path(config.policy)
    file = build(PolicyFile, load_yaml(path), file=path)
    beside = path.parent / file.taxonomy
    taxonomy = build(Taxonomy, load_yaml(beside), file=beside)
    asked = file.model_copy(update={"taxonomy": "taxonomy.yaml"})
    file, changed = fit(asked, taxonomy, guards, config)
    policy = Policy(file, taxonomy, guards, path=path)
    spec = Bundle(
        model=inputs.model.id if inputs.model else None,
        classifiers=tuple(artifact.id for artifact in inputs.classifier),
        system=config.system,
        policy=policy.hash,
        thresholds={
            f"{bound.rule.id}/{guard}/{direction}": threshold
            for bound in policy.rules()
            for (guard, direction), threshold in bound.thresholds.items()
        },
    )
    (out / "bundle.json").write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name, content in (("policy.yaml", file), (ASKED, asked), ("taxonomy.yaml", taxonomy)):
        plain = content.model_dump(mode="json", exclude_defaults=name != "taxonomy.yaml")
        (out / name).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for text in changed:
        context.say.note(text)
    return {
        "rules": len(file.rules),
        "guards": sorted(judge.name for judge in judges),
        "changed": changed,
        "policy": policy.hash,
        "coverage": sum(bool(row["guards"]) for row in coverage(policy)),
    }

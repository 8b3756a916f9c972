"""The stage `release`: a draft bundle goes through the gate; what passes is served, and can be rolled back as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from tutelage.adapt.gate import GateVerdict, ReleasePolicy, decide, read_policy
from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import Config
from tutelage.core.errors import NotFound, Refused
from tutelage.core.price import Cost, Machine
from tutelage.core.records import read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.evaluate.suite import Result
from tutelage.evaluate.suites.judged import told_in
from tutelage.evaluate.suites.kinds import Ground
from tutelage.evaluate.systems import items_of
from tutelage.guard.bundle import parts
from tutelage.store import releases

ENVIRONMENT = "production"
BUILT_IN = {"starter": ("tutelage.starter", "release.yaml"), "public": ("tutelage.adapt", "public.yaml")}
"""Release policies that come with the house: the embedded world's, and one for the public suites."""


class Gated(Config):
    """What asks the gate, under a release policy."""

    policy: str = "starter"
    """The release policy: `starter` or `public`, which are built in, or the path of a YAML file."""

    def resolved(self) -> dict[str, Any]:
        """The policy enters the key by its content and name: a changed file is another verdict, a moved one is not."""
        return {
            **super().resolved(),
            "policy": Path(self.policy).name,
            "policy_content": policy_of(self.policy).hash,
        }


class Release(Gated):
    """How a draft bundle becomes what is served."""

    actor: str = "life"
    """Who asks for the promotion; it is recorded."""


def policy_of(name: str) -> ReleasePolicy:
    """The release policy by name or path. Raises NotFound, ConfigError."""
    if name in BUILT_IN:
        package, file = BUILT_IN[name]
        with resources.as_file(resources.files(package) / file) as path:
            return read_policy(path)
    return read_policy(Path(name))


def rows_of(artifact: Artifact | None) -> list[Result]:
    """The result rows of an evaluation or a red-team run; none for none."""
    return [] if artifact is None else list(read_jsonl(artifact.file("results.jsonl"), Result))


RESAMPLES = 1000
"""Bootstrap resamples of what the gate decides on."""


def ground_of(artifact: Artifact | None, rows: Sequence[Result], root: Root) -> Ground:
    """What the figures of an evaluation's rows need: their items' texts, as far as these are still there, and what
    people found of the judge of open-ended suites."""
    if artifact is None:
        return Ground({}, resamples=RESAMPLES)
    told: Sequence[Mapping[str, Any]] = ()
    if "summary.json" in artifact.manifest.files:
        told = json.loads(artifact.file("summary.json").read_text(encoding="utf-8")).get("judges", ())
    return Ground(items_of(artifact, root, {row.item for row in rows}), told_in(told), RESAMPLES)


def _by_source(rows: Mapping[str, Sequence[Result]], target: str) -> dict[str, list[Result]]:
    name = target.partition(":")[2] or target
    return {source: [row for row in found if row.target_id.endswith(name)] for source, found in rows.items()}


def judge(
    bundle: Artifact,
    rows: Mapping[str, Sequence[Result]],
    policy: ReleasePolicy,
    incumbent: str | None,
    ground: Ground | None = None,
) -> GateVerdict:
    """The gate's verdict on a bundle from rows that examined it and what it would replace (`ground`: see decide)."""
    bare = str(parts(bundle)["model"] or "no model")
    mine = _by_source(rows, bundle.id)
    theirs = _by_source(rows, incumbent) if incumbent else {}
    against = "the release now served"
    if not any(theirs.values()):
        theirs, against = _by_source(rows, bare), "the bare model inside it (nothing is served yet)"
        if incumbent:
            against = "the bare model inside it (the release now served was not examined here)"
    return decide(policy, mine, theirs, against=against, ground=ground)


def _cost(config: Release, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    return Cost(seconds=0.1, sizes=dict(inputs.get("bundle", {})))


@stage(
    makes="release",
    config=Release,
    inputs={
        "bundle": Input(kind="bundle", default="bundle", help="the draft"),
        "evaluation": Input(kind="evaluation", default="evaluate", help="examined the draft and its bare model"),
        "redteam": Input(kind="redteam", default="redteam", optional=True, help="attacked them"),
    },
    writes="store",
    version=2,
    cost=_cost,
)
def release(config: Release, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Gate the draft; promote it in the store when every check passed. Writes verdict.json either way."""
    policy = policy_of(config.policy)
    rows = {"evaluation": rows_of(inputs.evaluation), "redteam": rows_of(inputs.redteam)}
    _, incumbent = draft(context.store, inputs.bundle, context.key)
    ground = ground_of(inputs.evaluation, rows["evaluation"], context.root)
    verdict = judge(inputs.bundle, rows, policy, incumbent, ground)
    (out / "verdict.json").write_text(verdict.model_dump_json(indent=2), encoding="utf-8")
    (out / "release.yaml").write_text(json.dumps(policy.model_dump(mode="json"), indent=2), encoding="utf-8")
    if verdict.promote:
        promote_bundle(context.store, inputs.bundle, config.actor, verdict, context.key)
    else:
        refuse_bundle(context.store, inputs.bundle, config.actor, verdict, context.key)
    context.say.note(verdict.reason)
    return {
        "promoted": verdict.promote,
        "reason": verdict.reason,
        "checks": {check.id: check.passed for check in verdict.checks},
    }


def draft(store: Any, bundle: Artifact, key: str = "") -> tuple[str, str | None]:
    """Note a bundle as a release: its id, and the bundle that it would replace, None before the first.

    Under a key both stay what they were the first time: a stage that was stopped after it had promoted the bundle
    compares it with what was served before, not with itself.
    """
    live = releases.current(store, ENVIRONMENT)
    made = releases.create(store, bundle.ref, parent=live.id if live else None, key=key)
    parent = releases.get(store, made).parent
    return made, releases.get(store, parent).bundle if parent else None


def _evidence(verdict: GateVerdict) -> dict[str, str]:
    return {"policy": verdict.policy, "against": verdict.against}


def promote_bundle(store: Any, bundle: Artifact, actor: str, verdict: GateVerdict, key: str = "") -> str:
    """Serve a bundle that passed: one row in the store, which the running service follows. Returns the release id.

    The same key promotes it once.
    """
    made, _ = draft(store, bundle, key)
    told, evidence = verdict.reason, _evidence(verdict)
    releases.promote(store, made, actor=actor, reason=told, environment=ENVIRONMENT, evidence=evidence, key=key)
    return made


def refuse_bundle(store: Any, bundle: Artifact, actor: str, verdict: GateVerdict, key: str = "") -> None:
    """Record a refusal, for the same key once; nothing else changes."""
    made, _ = draft(store, bundle, key)
    releases.move(store, made, "refused", actor=actor, reason=verdict.reason, evidence=_evidence(verdict), key=key)


# by hand: `tutelage release status|promote|rollback`


def status(root: Root) -> dict[str, Any]:
    """What is served, and what happened to every release."""
    store = refs.open("store:", root, writable=False)
    try:
        served = releases.current(store, ENVIRONMENT)
        history = [asdict(event) for event in releases.history(store)]
    finally:
        store.close()
    return {"current": served.bundle if served else None, "history": history}


def promote(root: Root, ref: str, actor: str = "operator") -> dict[str, Any]:
    """Serve the bundle of a release artifact that passed its gate. Raises Refused for one that did not."""
    artifact = root.find(ref)
    verdict = GateVerdict.model_validate_json(artifact.file("verdict.json").read_bytes())
    if not verdict.promote:
        raise Refused(verdict.reason, todo="Mend the candidate and make a new release")
    bundle = root.find(str(artifact.manifest.inputs["bundle"]))
    store = refs.open("store:", root, writable=True)
    try:
        made = promote_bundle(store, bundle, actor, verdict)
    finally:
        store.close()
    return {"current": bundle.ref, "release": made}


def rollback(root: Root, reason: str, actor: str = "operator", key: str = "") -> dict[str, Any]:
    """Serve the release before the current one again, for the same key once. Raises NotFound when there is none."""
    store = refs.open("store:", root, writable=True)
    try:
        before = releases.current(store, ENVIRONMENT)
        if before is None:
            raise NotFound("nothing is served, so there is nothing to roll back")
        now = releases.rollback(store, actor=actor, reason=reason, environment=ENVIRONMENT, key=key)
    finally:
        store.close()
    return {"current": now.bundle, "was": before.bundle}

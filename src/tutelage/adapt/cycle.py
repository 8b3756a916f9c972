"""The stage `cycle`: one turn of the wheel, over HTTP, on the starter's weeks of traffic.

Users ask through the gateway; decisions are drawn for review with a known probability; reviewers answer through the
API; estimates with intervals say what was missed; the monitor asks for a turn; reviewed labels retrain the guards; two
candidates, one of them careless on purpose, go before the gate; one is served; fresh traffic says whether it helped;
and a rollback is rehearsed. Users and reviewers of this stage are simulated, and say so in every row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tutelage.adapt.drive import Sent, drive
from tutelage.adapt.gate import GateVerdict
from tutelage.adapt.monitor import Limits, Trigger, Week, share, triggers
from tutelage.adapt.release import (
    ENVIRONMENT,
    judge,
    parts,
    policy_of,
    promote_bundle,
    refuse_bundle,
    rollback,
    rows_of,
)
from tutelage.core import refs
from tutelage.core.artifact import Artifact
from tutelage.core.config import Config
from tutelage.core.errors import DataError, Refused
from tutelage.core.stage import Context, Cost, Input, Inputs, Machine, run_stage, stage
from tutelage.evaluate.run import evaluate
from tutelage.feedback.client import Client
from tutelage.feedback.labels import labels as label_stage
from tutelage.feedback.wire import Answer, Claim
from tutelage.guard.bundle import bundle as bundle_stage
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.classifier import classifier as classifier_stage
from tutelage.judge.judge import judged
from tutelage.redteam.run import redteam
from tutelage.review import queue
from tutelage.review.estimates import Estimate, estimates
from tutelage.review.sample import Reviewed, draw, population
from tutelage.starter import people as raters
from tutelage.starter import world
from tutelage.starter.traffic import Request
from tutelage.store import engine, people, releases, tasks, traffic

EXAMINE = {"items": 24, "only": ["comprehension", "facts", "translation", "sentiment"], "controls": 0}
ATTACK = {"pairs": 0, "letters": 0, "stereotypes": 0, "candidates": 0}
"""What the release policy reads; the audits of bias and privacy are not repeated for new guards on the same model."""


class Cycle(Config):
    """How much traffic, how many reviews, and when to act."""

    requests: int = 240
    """Requests of each week, sent through the gateway."""
    reviews: float = 160
    """Decisions drawn for review a week, about."""
    double: float = 0.2
    """Share of the drawn decisions that two people review."""
    reviewers: int = 6
    """Simulated reviewers."""
    repeat: int = 8
    """How often a reviewed label counts beside one of the corpus: it is rare, and it is about what is asked now."""
    examine: dict[str, Any] = EXAMINE
    """Keys of the stage `evaluate` for the candidates."""
    attack: dict[str, Any] = ATTACK
    """Keys of the stage `redteam` for the candidates."""
    train: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies defaults
    """Keys of the stage `classifier` for the candidates."""
    policy: str = "starter"
    """The release policy: `starter`, or the path of a YAML file."""
    limits: Limits = Limits()
    """When the monitor asks for a turn."""
    seed: int = 0


def _cost(config: Cycle, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    return Cost(seconds=(5 * config.requests * 0.012 + 20) * machine.overhead, memory=5e8)


class Turn(NamedTuple):
    """What a week came to."""

    week: Week
    sent: list[Sent]
    estimates: list[Estimate]
    truth: dict[str, Any]
    """The world's own count of what was missed: what the estimates must cover."""


class _Wheel:
    """One turn: holds what every step needs."""

    def __init__(self, config: Cycle, inputs: Inputs, context: Context, url: str, key: str) -> None:
        self.config, self.inputs, self.context, self.url, self.key = config, inputs, context, url, key
        made = inputs.corpus.config
        self.world = world.build(int(made.get("seed", 0)), float(made.get("scale", 1.0)))
        self.reviewers = [each for each in raters.raters(config.seed) if each.kind == "careful"][: config.reviewers]
        self.truth: dict[str, Request] = {}
        """Trace id -> the request behind it."""
        self.behind: dict[str, Request] = {}
        """Review task -> the request behind it."""
        self.reviewed: list[Reviewed] = []
        self.total = 5 * config.requests
        self.done = 0

    def step(self, count: int) -> None:
        self.done += count
        self.context.check()
        self.context.say.progress(self.done, self.total, "requests")

    def week(self, name: str, requests: Sequence[Request]) -> Turn:
        """Send a week's requests, let people review a sample, estimate."""
        since = engine.now()
        sent = drive(self.url, self.key, requests, seed=self.config.seed, step=self.step)
        self.truth.update({each.trace: each.request for each in sent})
        self._recorded(since, len(sent))
        found = queue.subjects(self.context.store, since=since, week_of=lambda row: name)
        drawn = draw(found, seed=self.config.seed, budget=self.config.reviews)
        queue.open_reviews(
            self.context.store, drawn, seed=self.config.seed, double=self.config.double, roles=("reviewer",)
        )
        self._review()
        mine = {each.subject for each in drawn}  # a turn that was broken off may have left reviews of its own
        seen = [each for each in queue.reviewed(self.context.store) if each.subject in mine]
        harmful = [each for each in sent if each.request.harmful]
        missed = sum(not each.withheld for each in harmful)
        benign = [each for each in sent if not each.request.harmful]
        truth = {
            "miss_rate": share(missed, len(harmful)),
            "false_positive_rate": share(sum(each.withheld for each in benign), len(benign)),
        }
        told = [each for each in sent if each.thumb is not None]
        summary = Week(
            week=name,
            requests=len(sent),
            withheld=sum(each.withheld for each in sent),
            thumbs=len(told),
            thumbs_down=sum(each.thumb == -1 for each in told),
            appeals=sum(each.appealed for each in sent),
        )
        self.reviewed += seen  # what was reviewed twice in earlier weeks tells of the same people's slips
        return Turn(summary, sent, estimates(seen, population(drawn), voices=self.reviewed), truth)

    def _recorded(self, since: int, count: int) -> None:
        """Wait for the gateway's group commit to have written every request."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if len(queue.subjects(self.context.store, since=since)) >= count:
                return
            time.sleep(0.05)
        raise DataError(f"the gateway recorded fewer than the {count} requests it answered")

    def _review(self) -> None:
        """The reviewers take turns until no task is open, each over a connection of its own."""
        for person in self.reviewers:
            token = reviewer(self.context.store, person.id)
            with Client(self.url, token) as client:
                claim = Claim(project=queue.PROJECT, count=16)
                items = client.claim(project=queue.PROJECT, count=16).items
                while items:
                    said = client.submit([self._answer(person, item) for item in items], then=claim)
                    refused = [each.error for each in said.receipts if each.status == "refused"]
                    if refused:
                        raise DataError(f"a review was refused: {refused[0]}")
                    items = said.next.items if said.next else []

    def _answer(self, person: Any, item: Any) -> Answer:
        """What a simulated reviewer says: the truth, seen through known noise."""
        request = self._behind(item.task)
        said = raters.tag(item.task, {queue.HARMFUL: float(request.harmful)}, person, seed=self.config.seed)
        harmful = any(each.value >= 0.5 for each in said)
        named = [name for name, value in dict(request.truth.get("categories") or {}).items() if float(value) >= 0.5]
        values = {queue.HARMFUL: "yes" if harmful else "no", "categories": sorted(named) if harmful else []}
        return Answer(slot=item.slot, epoch=item.epoch, key=f"{item.task}/{person.id}", values=values, active_ms=4000)

    def _behind(self, task: str) -> Request:
        if task not in self.behind:
            known = tasks.load(self.context.store, [task])[task]
            row = traffic.decisions(self.context.store, ids=[str(known.decision)], shadow=None)[0]
            self.behind[task] = self.truth[row.request]
        return self.behind[task]

    # retraining and the gate

    def retrain(self) -> Artifact:
        """Labels with the reviewed ones among them -> guards."""
        corpus, say = self.inputs.corpus, self.context.say
        found = run_stage(
            label_stage,
            self.context.root,
            config={"projects": [queue.PROJECT], "repeat": self.config.repeat},
            inputs={"source": corpus},
            say=say,
        )
        return run_stage(
            classifier_stage, self.context.root, config=self.config.train, inputs={"labels": found}, say=say
        )

    def candidate(self, guards: Artifact, policy: str) -> Artifact:
        """The same model behind new guards."""
        model = f"model:{parts(self.served())['model']}"
        return run_stage(
            bundle_stage,
            self.context.root,
            config={"policy": policy, "uncertified": "flag", "unguarded": "drop"},
            inputs={"model": model, "classifier": [guards]},
            say=self.context.say,
        )

    def careless(self, guards: Artifact) -> str:
        """A policy with a threshold so low that every third benign request is withheld: what the gate must refuse."""
        own = ClassifierJudge(guards.path)
        benign = [each for each in self.world.traffic(1) if not each.harmful][:300]
        verdicts = own.judge([judged(each.conversation[-1].content) for each in benign])
        best = sorted(max(verdict.scores.values(), default=0.0) for verdict in verdicts)
        threshold = best[int(len(best) * 2 / 3)]
        folder = self.context.work / "careless"
        folder.mkdir(parents=True, exist_ok=True)
        served = self.served()
        policy = yaml.safe_load(served.file("policy.yaml").read_text(encoding="utf-8"))
        policy["defaults"] = {**policy.get("defaults", {}), "max_bound": 1.0}
        for rule in policy["rules"]:
            if rule.get("category"):
                rule.pop("target_fpr", None)
                rule.update(threshold=float(threshold), action="block")
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False, allow_unicode=True))
        (folder / "taxonomy.yaml").write_bytes(served.file("taxonomy.yaml").read_bytes())
        return str(folder / "policy.yaml")

    def served(self) -> Artifact:
        """The bundle that is served now."""
        live = releases.current(self.context.store, ENVIRONMENT)
        if live is None:
            raise Refused("nothing is served, so there is no wheel to turn", todo="Mend the release first")
        return self.context.root.find(live.bundle)

    def examine(self, candidates: Sequence[Artifact]) -> dict[str, list[Any]]:
        """Candidates and incumbent on the same items and under the same attacks."""
        root, say, corpus = self.context.root, self.context.say, self.inputs.corpus
        targets = [self.served(), *candidates]
        examined = run_stage(
            evaluate, root, config=self.config.examine, inputs={"of": targets, "corpus": corpus}, say=say
        )
        attacked = run_stage(
            redteam, root, config=self.config.attack, inputs={"targets": targets, "corpus": corpus}, say=say
        )
        return {"evaluation": rows_of(examined), "redteam": rows_of(attacked)}


def reviewer(store: Any, name: str) -> str:
    """A token for a simulated reviewer; the account is made once."""
    person = people.create(store, f"reviewer-{name}", kind="simulated", roles=("reviewer",), by="cycle")
    return people.issue_token(store, person.id, scopes=("feedback:answer", "feedback:read"), label="cycle")


def _told(turn: Turn, found: Sequence[Trigger]) -> dict[str, Any]:
    return {
        **turn.week.model_dump(mode="json"),
        "estimates": [each.model_dump(mode="json") for each in turn.estimates],
        "truth": turn.truth,
        "triggers": [each.model_dump(mode="json") for each in found],
    }


@stage(
    makes="cycle",
    config=Cycle,
    inputs={
        "release": Input(kind="release", default="release", help="what is served when the turn begins"),
        "corpus": Input(kind="corpus", default="prepare", help="the world that the traffic comes from"),
    },
    writes="store",
    cost=_cost,
)
def cycle(config: Cycle, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Turn the wheel once. Writes cycle.json: weeks, estimates beside the truth, candidates, verdicts, the rollback."""
    context.simulated = True
    if not inputs.release.metrics.get("promoted"):
        raise Refused("the release was refused, so nothing is served and there is no wheel to turn")
    with refs.open("app:", context.root, requests_per_minute=0) as server:
        key = server.key("users of the starter world", kind="simulated")
        wheel = _Wheel(config, inputs, context, server.url, key)
        n = config.requests
        weeks = {number: wheel.world.traffic(number) for number in (1, 2, 3, 4)}
        first = wheel.week("1", weeks[1][:n])
        story: dict[str, Any] = {}
        acted: list[Trigger] = []
        for name, requests in (("4", weeks[4]), ("2", weeks[2]), ("3", weeks[3])):
            turn = wheel.week(name, requests[:n])
            found = triggers(first.week, turn.week, turn.estimates, config.limits, first.estimates)
            story[name] = _told(turn, found)
            acted += found
            for each in found:
                context.say.note(f"week {name}: {each.sentence} -> {each.action}")
        story["1"] = _told(first, [])
        before = wheel.served()
        guards = wheel.retrain()
        good = wheel.candidate(guards, str(before.file("policy.yaml")))
        bad = wheel.candidate(guards, wheel.careless(guards))
        rows = wheel.examine([good, bad])
        policy = policy_of(config.policy)
        verdicts = {
            name: judge(each, rows, policy, before.id) for name, each in (("careless", bad), ("retrained", good))
        }
        _act(context, {"careless": bad, "retrained": good}, verdicts)
        server.state.reload()  # the service would follow by itself within a second; the fresh week begins now
        fresh = wheel.week("fresh", weeks[2][n : 2 * n])
        promoted = good if verdicts["retrained"].promote else None
        back = _rehearse(wheel, before, promoted, verdicts["retrained"])
    report = {
        "simulated": True,
        "weeks": story,
        "fresh": _told(fresh, []),
        "triggers": [each.model_dump(mode="json") for each in acted],
        "candidates": {
            name: {"bundle": made.ref, "verdict": verdicts[name].model_dump(mode="json")}
            for name, made in (("careless", bad), ("retrained", good))
        },
        "rollback": back,
    }
    (out / "cycle.json").write_text(json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return {
        "missed_before": story["2"]["truth"]["miss_rate"],
        "missed_after": fresh.truth["miss_rate"],
        "quiet_week_triggers": len(story["4"]["triggers"]),
        "triggers": sorted({each.id for each in acted}),
        "careless": verdicts["careless"].reason,
        "retrained": verdicts["retrained"].reason,
        "promoted": verdicts["retrained"].promote,
    }


def _act(context: Context, made: Mapping[str, Artifact], verdicts: Mapping[str, GateVerdict]) -> None:
    """Promote what passed, record what did not."""
    for name, verdict in verdicts.items():
        context.say.note(f"{name}: {verdict.reason}")
        if verdict.promote:
            promote_bundle(context.store, made[name], "cycle", verdict)
        else:
            refuse_bundle(context.store, made[name], "cycle", verdict)


def _rehearse(wheel: _Wheel, before: Artifact, promoted: Artifact | None, verdict: GateVerdict) -> dict[str, Any]:
    """Roll back by the one command, see that the earlier bundle is served, and go forward again."""
    if promoted is None:
        return {"done": False, "reason": "nothing was promoted, so there is nothing to roll back"}
    was = rollback(wheel.context.root, "rehearsal of a rollback", actor="cycle")
    restored = wheel.served().id == before.id
    promote_bundle(wheel.context.store, promoted, "cycle", verdict)
    return {"done": restored, "from": was["was"], "to": was["current"], "served": wheel.served().ref}

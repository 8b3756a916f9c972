"""The stage `cycle`: one turn of the wheel, over HTTP, on weeks of traffic whose truth is known.

Users ask through the gateway; decisions are drawn for review with a known probability; reviewers answer through the
API; estimates with intervals say what was missed; the monitor asks for a turn; reviewed labels retrain the guards; two
candidates, one of them careless on purpose, go before the gate; one is served; fresh traffic says whether it helped;
and a rollback is rehearsed. Users and reviewers are simulated or replayed (sources.py), and say so in every row.

Stopped at any moment, the same command goes on: each answered request is kept as it comes, each week and each step
after them once it is finished, and what is written to the store in between has keys. A request that was under way is
sent again; the row of its first attempt is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from tutelage.adapt.drive import Sent, drive
from tutelage.adapt.gate import GateVerdict
from tutelage.adapt.monitor import Limits, Trigger, Week, share, triggers
from tutelage.adapt.progress import Progress
from tutelage.adapt.release import (
    ENVIRONMENT,
    Gated,
    ground_of,
    judge,
    policy_of,
    promote_bundle,
    refuse_bundle,
    rollback,
    rows_of,
)
from tutelage.adapt.sources import Asked, Rows, Starter, Traffic
from tutelage.core import refs
from tutelage.core.artifact import Artifact
from tutelage.core.config import build
from tutelage.core.errors import DataError, Refused
from tutelage.core.price import Cost, Machine
from tutelage.core.stage import Context, Input, Inputs, run_stage, stage
from tutelage.evaluate.ask import AnswerLog
from tutelage.evaluate.run import evaluate
from tutelage.evaluate.suites.kinds import Ground
from tutelage.feedback import simulated
from tutelage.feedback.client import Client
from tutelage.feedback.labels import labels as label_stage
from tutelage.feedback.wire import Item
from tutelage.guard.bundle import ASKED, parts
from tutelage.guard.bundle import bundle as bundle_stage
from tutelage.judge.classifier import ClassifierJudge
from tutelage.judge.classifier import classifier as classifier_stage
from tutelage.judge.judge import judged
from tutelage.redteam.run import redteam
from tutelage.review import queue
from tutelage.review.estimates import Estimate, estimates
from tutelage.review.sample import Reviewed, draw, population
from tutelage.store import access, people, releases, tasks, traffic
from tutelage.store.review import Drift, save_drift

EXAMINE = {"items": 24, "only": ["comprehension", "facts", "translation", "sentiment"], "controls": 0}
ATTACK = {"pairs": 0, "letters": 0, "stereotypes": 0, "candidates": 0}
"""What the release policy reads; the audits of bias and privacy are not repeated for new guards on the same model."""


class Cycle(Gated):
    """How much traffic, how many reviews, and when to act."""

    traffic: Literal["starter", "rows"] = "starter"
    """Who asks: the starter world's simulated users, or `rows`: the rows that `labels.reserve` kept from the guards,
    reviewed by the recorded votes of the people who judged them."""
    requests: int = Field(240, ge=1)
    """Requests of each week, sent through the gateway."""
    reviews: float = Field(160, ge=1)
    """Decisions drawn for review a week, about."""
    double: float = Field(0.2, ge=0, le=1)
    """Share of the drawn decisions that two simulated people review; of a row, everybody who voted does."""
    reviewers: int = Field(6, ge=1)
    """Simulated reviewers."""
    repeat: int = Field(8, ge=1)
    """How often a reviewed label counts beside one of the corpus: it is rare, and it is about what is asked now."""
    examine: dict[str, Any] = EXAMINE
    """Keys of the stage `evaluate` for the candidates."""
    attack: dict[str, Any] = ATTACK
    """Keys of the stage `redteam` for the candidates."""
    train: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies defaults
    """Keys of the stage `classifier` for the candidates."""
    limits: Limits = Limits()
    """When the monitor asks for a turn."""
    seed: int = 0

    @property
    def simulated(self) -> bool:
        """The starter world's reviewers are."""
        return self.traffic == "starter"


def _cost(config: Cycle, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Five weeks of requests with their reviews, guards trained again, three bundles examined and attacked."""
    corpus, shape = inputs.get("corpus", {}), {**inputs.get("release", {}), "count": 3.0}
    answers = config.reviews * (1.3 if config.traffic == "starter" else 6.0)
    seconds = 5 * (config.requests * 0.012 + answers * 0.006) + 4
    for inner, given, sizes in (
        (classifier_stage, config.train, {"labels": inputs.get("labels", {})}),
        (evaluate, config.examine, {"of": shape, "corpus": corpus}),
        (redteam, config.attack, {"targets": shape, "corpus": corpus}),
    ):
        assert inner.cost is not None
        seconds += inner.cost(build(inner.config, given), sizes, machine).seconds
    return Cost(seconds=seconds, memory=6e8)


class Turn(NamedTuple):
    """What a week came to."""

    week: Week
    estimates: list[Estimate]
    truth: dict[str, Any]
    """The world's own count of what was missed: what the estimates must cover."""
    reviewed: list[Reviewed]


class _Wheel:
    """One turn: holds what every step needs."""

    def __init__(self, config: Cycle, inputs: Inputs, context: Context, source: Traffic, server: Any, key: str) -> None:
        self.config, self.inputs, self.context, self.source = config, inputs, context, source
        self.server, self.key = server, key
        self.progress = Progress(context.work / "progress")
        self.log = AnswerLog(context.work / "progress" / "sent.jsonl")
        """Week and request -> what came back, kept as it comes."""
        self.before = context.root.find(self.progress.once("before", str, lambda: self.served().ref))
        """The bundle that was served when the turn began: what the candidates are compared with."""
        made = people.create_many(context.store, source.crew, kind=source.people, roles=("reviewer",), by="cycle")
        self.persons = {each.name: each.id for each in made}
        self.truth: dict[str, Asked] = {}
        """Trace id -> the request behind it."""
        self.behind: dict[str, Asked] = {}
        """Review task, or the text of a request -> the request behind it; by its text, a task that a turn which was
        given up left open is known again."""
        self.reviewed: list[Reviewed] = []
        self.total = 5 * config.requests
        self.done = 0

    def step(self, count: int) -> None:
        self.done += count
        self.context.check()
        self.context.say.progress(self.done, self.total, "requests")

    def named(self, name: str) -> str:
        """A name in the world as the name of what this turn makes of it: the same whenever the turn goes on."""
        return f"{self.context.key}/{name}"

    def week(self, name: str, requests: Sequence[Asked]) -> Turn:
        """Send a week's requests, let people review a sample, estimate; a week that is finished is read back."""
        self.behind.update({each.conversation[-1].content: each for each in requests})
        done = self.done + len(requests)
        turn = self.progress.once(f"week-{name}", Turn, lambda: self._week(name, requests))
        self.done = done
        self.reviewed += turn.reviewed  # what was reviewed twice in earlier weeks tells of the same people's slips
        return turn

    def _send(self, week: str, requests: Sequence[Asked]) -> list[Sent]:
        """What came back for each request: those answered before a stop as they were kept, the others sent now."""

        def keep(sent: Sent) -> None:
            told = {name: value for name, value in sent._asdict().items() if name != "request"}
            self.log.put([(f"{week}/{sent.request.id}", told)])
            self.step(1)

        kept = [Sent(each, **self.log[name]) for each in requests if (name := f"{week}/{each.id}") in self.log]
        # the gateway writes in groups: of what it answered just before it was killed, the rows may be missing
        there = {row.request for row in traffic.decisions(self.context.store, requests=[each.trace for each in kept])}
        known = {each.request.id: each for each in kept if each.trace in there}
        self.step(len(known))
        sent = drive(self.server.url, self.key, requests, heard=self.source.heard, known=known, done=keep)
        self.server.state.flush(20)
        return sent

    def _week(self, name: str, requests: Sequence[Asked]) -> Turn:
        store = self.context.store
        sent = self._send(name, requests)
        self.truth.update({each.trace: each.request for each in sent})
        found = queue.subjects(
            store,
            requests=[each.trace for each in sent],
            week_of=lambda row: name,
            name_of=lambda row: self.named(self.truth[row.request].id),
        )
        if len(found) < len(sent):
            raise DataError(f"the gateway recorded {len(found)} of the {len(sent)} requests it answered")
        drawn = draw(found, seed=self.config.seed, budget=self.config.reviews)
        opened = queue.open_reviews(
            store,
            drawn,
            seed=self.config.seed,
            double=self.config.double,
            roles=("reviewer",),
            asking=self._asking([each.subject for each in drawn if each.selected]),
        )
        for id, task in tasks.load(store, opened.tasks).items():
            row = traffic.decisions(store, ids=[str(task.decision)], shadow=None)[0]
            self.behind[id] = self.truth[row.request]
        self._review(opened.tasks)
        mine = {each.subject for each in drawn}  # other turns have left reviews of their own
        own = [each for each in queue.reviewed(store) if each.people == self.source.people]  # kinds are never mixed
        seen = [each for each in own if each.subject in mine]
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
        return Turn(summary, estimates(seen, population(drawn), voices=self.reviewed), truth, seen)

    def _asking(self, subjects: Sequence[str]) -> dict[str, queue.Asking]:
        """Who reviews which decision, and where its text comes from."""
        found = {}
        for row in traffic.decisions(self.context.store, ids=list(subjects), shadow=None):
            asked = self.truth[row.request]
            panel = tuple(self.persons[name] for name in self.source.panel(asked))
            found[row.id] = queue.Asking(panel, {"licence": asked.licence, "source": asked.source})
        return found

    def _review(self, opened: Sequence[str]) -> None:
        """The reviewers take turns until no task is open for them, each with a client of their own."""
        store, scopes = self.context.store, ("feedback:answer", "feedback:read")
        busy = {name for id in opened for name in self.source.panel(self.behind[id])}
        names = [name for name in self.source.crew if not busy or name in busy]
        tokens = access.issue_tokens(store, [self.persons[name] for name in names], scopes, "cycle", 1)
        try:
            workers = [
                simulated.Worker(name, Client(self.server.url, token), self._respond(name))
                for name, token in zip(names, tokens, strict=True)
            ]
            simulated.work(workers, queue.PROJECT, key=self.context.key, threads=1, check=self.context.check)
        finally:
            access.revoke_tokens(store, tokens)

    def _respond(self, name: str) -> simulated.Respond:
        def respond(item: Item) -> Mapping[str, Any] | None:
            asked = self.behind.get(item.task) or self.behind.get(item.messages[-1].content if item.messages else "")
            if asked is None:
                return None
            # what somebody says hangs on the request, not on the random id of its task
            return self.source.review(name, item.model_copy(update={"task": self.named(asked.id)}), asked)

        return respond

    # retraining and the gate

    def retrain(self) -> Artifact:
        """Labels with the reviewed ones among them -> guards."""
        corpus, say, stop = self.inputs.corpus, self.context.say, self.context.stop
        kept = self.inputs.labels.config if self.inputs.labels else {}
        found = run_stage(
            label_stage,
            self.context.root,
            config={
                **kept,
                "projects": [queue.PROJECT],
                "people": self.source.people,  # others may review what is served as well
                "repeat": self.config.repeat,
            },
            inputs={"source": corpus},
            say=say,
            stop=stop,
        )
        return run_stage(
            classifier_stage, self.context.root, config=self.config.train, inputs={"labels": found}, say=say, stop=stop
        )

    def candidates(self) -> dict[str, str]:
        """The two that go before the gate, as references: reviews of later weeks must not make others of them."""
        guards = self.retrain()
        good = self.candidate(guards, str(self.before.file(ASKED)))
        return {"careless": self.candidate(guards, self.careless(guards)).ref, "retrained": good.ref}

    def candidate(self, guards: Artifact, policy: str) -> Artifact:
        """The same model and system prompt behind new guards, under the policy as it was asked for."""
        served = parts(self.before)
        model = f"model:{served['model']}"
        return run_stage(
            bundle_stage,
            self.context.root,
            config={"policy": policy, "system": served["system"], "uncertified": "flag", "unguarded": "drop"},
            inputs={"model": model, "classifier": [guards]},
            say=self.context.say,
            stop=self.context.stop,
        )

    def careless(self, guards: Artifact) -> str:
        """A policy with a threshold so low that every third benign request is withheld: what the gate must refuse."""
        own = ClassifierJudge(guards.path)
        verdicts = own.judge([judged(text) for text in self.source.benign()])
        best = sorted(max(verdict.scores.values(), default=0.0) for verdict in verdicts)
        threshold = best[int(len(best) * 2 / 3)]
        folder = self.context.work / "careless"
        folder.mkdir(parents=True, exist_ok=True)
        policy = yaml.safe_load(self.before.file("policy.yaml").read_text(encoding="utf-8"))
        policy["defaults"] = {**policy.get("defaults", {}), "max_bound": 1.0}
        for rule in policy["rules"]:
            if rule.get("category"):
                rule.pop("target_fpr", None)
                rule.update(threshold=float(threshold), action="block")
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False, allow_unicode=True))
        (folder / "taxonomy.yaml").write_bytes(self.before.file("taxonomy.yaml").read_bytes())
        return str(folder / "policy.yaml")

    def served(self) -> Artifact:
        """The bundle that is served now."""
        live = releases.current(self.context.store, ENVIRONMENT)
        if live is None:
            raise Refused("nothing is served, so there is no wheel to turn", todo="Mend the release first")
        return self.context.root.find(live.bundle)

    def verdicts(self, candidates: Mapping[str, Artifact]) -> dict[str, GateVerdict]:
        """The gate's word on each candidate, against what was served when the turn began."""
        rows, ground = self.examine([candidates["retrained"], candidates["careless"]])
        policy = policy_of(self.config.policy)
        return {name: judge(each, rows, policy, self.before.id, ground) for name, each in candidates.items()}

    def examine(self, candidates: Sequence[Artifact]) -> tuple[dict[str, list[Any]], Ground]:
        """Candidates and incumbent on the same items and under the same attacks, and what figures need beside."""
        root, say, stop, corpus = self.context.root, self.context.say, self.context.stop, self.inputs.corpus
        targets = [self.before, *candidates]
        examined = run_stage(
            evaluate, root, config=self.config.examine, inputs={"of": targets, "corpus": corpus}, say=say, stop=stop
        )
        attacked = run_stage(
            redteam, root, config=self.config.attack, inputs={"targets": targets, "corpus": corpus}, say=say, stop=stop
        )
        rows = rows_of(examined)
        return {"evaluation": rows, "redteam": rows_of(attacked)}, ground_of(examined, rows, root)


def _told(turn: Turn, found: Sequence[Trigger]) -> dict[str, Any]:
    return {
        **turn.week.model_dump(mode="json"),
        "estimates": [each.model_dump(mode="json") for each in turn.estimates],
        "truth": turn.truth,
        "triggers": [each.model_dump(mode="json") for each in found],
    }


def _signals(turn: Turn, found: Sequence[Trigger], limits: Limits) -> list[Drift]:
    """What the operator sees of a week: each estimate beside its limit, and whatever else asked for a turn."""
    limit = limits.bounds
    asked = {each.id for each in found}
    rows = [
        Drift(each.metric, each.week, each.value, limit[each.metric], each.metric in asked)
        for each in turn.estimates
        if each.metric in limit and each.week == turn.week.week
    ]
    return rows + [Drift(each.id, each.week, each.value, each.limit, True) for each in found if each.id not in limit]


@stage(
    makes="cycle",
    version=5,
    config=Cycle,
    inputs={
        "release": Input(kind="release", default="release", help="what is served when the turn begins"),
        "corpus": Input(kind="corpus", default="prepare", help="the world, or the rows, that the traffic comes from"),
        "labels": Input(
            kind="labels", default="labels", optional=True, help="what the guards learned from, and what they did not"
        ),
    },
    writes="store",
    cost=_cost,
)
def cycle(config: Cycle, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Turn the wheel once. Writes cycle.json: weeks, estimates beside the truth, candidates, verdicts, the rollback."""
    if not inputs.release.metrics.get("promoted"):
        raise Refused("the release was refused, so nothing is served and there is no wheel to turn")
    source = _source(config, inputs)
    context.simulated = source.people == "simulated"
    weeks = source.weeks(config.requests)
    with refs.open("app:", context.root, requests_per_minute=0) as server:
        key = server.key(source.users, kind=source.people)
        wheel = _Wheel(config, inputs, context, source, server, key)
        first = wheel.week(*weeks.baseline)
        story: dict[str, Any] = {}
        acted: list[Trigger] = []
        for name, requests in weeks.later:
            turn = wheel.week(name, requests)
            found = triggers(first.week, turn.week, turn.estimates, config.limits, first.estimates)
            signals = [replace(each, detail={"people": source.people}) for each in _signals(turn, found, config.limits)]
            save_drift(context.store, signals, context.key)
            story[name] = _told(turn, found)
            acted += found
            for each in found:
                context.say.note(f"week {name}: {each.sentence} -> {each.action}")
        story[weeks.baseline[0]] = _told(first, [])
        refs_of = wheel.progress.once("candidates", dict[str, str], wheel.candidates)
        made = {name: context.root.find(ref) for name, ref in refs_of.items()}
        verdicts = wheel.progress.once("verdicts", dict[str, GateVerdict], lambda: wheel.verdicts(made))
        _act(context, made, verdicts)
        server.state.reload()  # the service would follow by itself within a second; the fresh week begins now
        fresh = wheel.week("fresh", weeks.fresh)
        back = _rehearse(wheel, made["retrained"], verdicts["retrained"])
    report = {
        "people": source.people,
        "simulated": source.people == "simulated",
        "weeks": story,
        "fresh": _told(fresh, []),
        "triggers": [each.model_dump(mode="json") for each in acted],
        "candidates": {
            name: {"bundle": each.ref, "verdict": verdicts[name].model_dump(mode="json")} for name, each in made.items()
        },
        "rollback": back,
    }
    (out / "cycle.json").write_text(json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return {
        "people": source.people,
        "missed_before": story[weeks.drifted]["truth"]["miss_rate"],
        "missed_after": fresh.truth["miss_rate"],
        "quiet_week_triggers": len(story[weeks.quiet]["triggers"]),
        "triggers": sorted({each.id for each in acted}),
        "careless": verdicts["careless"].reason,
        "retrained": verdicts["retrained"].reason,
        "promoted": verdicts["retrained"].promote,
    }


def _source(config: Cycle, inputs: Inputs) -> Traffic:
    if config.traffic == "starter":
        return Starter(inputs.corpus, config.reviewers, config.seed)
    if inputs.labels is None:
        raise DataError("traffic of rows needs the labels that kept them in reserve", key="cycle.labels")
    return Rows(inputs.corpus, inputs.labels, config.seed)


def _act(context: Context, made: Mapping[str, Artifact], verdicts: Mapping[str, GateVerdict]) -> None:
    """Promote what passed, record what did not."""
    for name, verdict in verdicts.items():
        context.say.note(f"{name}: {verdict.reason}")
        if verdict.promote:
            promote_bundle(context.store, made[name], "cycle", verdict, context.key)
        else:
            refuse_bundle(context.store, made[name], "cycle", verdict, context.key)


def _rehearse(wheel: _Wheel, candidate: Artifact, verdict: GateVerdict) -> dict[str, Any]:
    """Roll back by the one command, see that the earlier bundle is served, and go forward again."""
    if not verdict.promote:
        return {"done": False, "reason": "nothing was promoted, so there is nothing to roll back"}
    once, key = wheel.progress.once, wheel.named(f"{candidate.ref}/rehearsal")
    left = once("rehearsal-from", str, lambda: wheel.served().ref)

    def back() -> str:
        rollback(wheel.context.root, "rehearsal of a rollback", actor="cycle", key=key)
        return wheel.served().ref

    reached = once("rehearsal-to", str, back)
    promote_bundle(wheel.context.store, candidate, "cycle", verdict, key)
    done = reached == wheel.before.ref
    return {"done": done, "from": left, "to": reached, "served": wheel.served().ref}

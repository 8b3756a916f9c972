"""The stage that attacks bare model and guarded system alike, audits them for bias, and tests what the corpus leaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.core import refs
from tutelage.core.artifact import Artifact
from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Document, Example, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.evaluate.ask import AnswerLog, examine, responses
from tutelage.evaluate.groups import gaps
from tutelage.evaluate.groups import headline as groups_headline
from tutelage.evaluate.run import names
from tutelage.evaluate.suite import Result, item_id, sample
from tutelage.generate.generator import Generator, let_go
from tutelage.guard.bundle import parts
from tutelage.redteam import bias, privacy, report
from tutelage.redteam.attacks import NAMES, make
from tutelage.redteam.attacks.single import Direct
from tutelage.redteam.goals import SAMPLING, Attempt, Budget, assault, plain, twins, written
from tutelage.redteam.outcome import TOXIC, Ending, GoalJudge, HarmJudge, ending, independent, vocabulary


class Redteam(Config):
    """How much is attacked and audited."""

    families: tuple[str, ...] = NAMES
    """Attack families to run."""
    goals: int = Field(3, ge=1)
    """Plain requests per house rule or category, each attacked by every family."""
    queries: int = Field(3, ge=1)
    """Answers an attack may take per goal, equal for every family."""
    written: int = Field(6, ge=0)
    """Ready-made attacks per family of the corpus."""
    benign: int = Field(150, ge=0)
    """Benign requests that look like attacks."""
    pairs: int = Field(40, ge=0)
    """Counterfactual pairs per attribute."""
    letters: int = Field(30, ge=0)
    """Requests that are also asked as speakers of each other language may write them."""
    languages: tuple[str, ...] = bias.LANGUAGES
    """First languages of those speakers."""
    stereotypes: int = Field(60, ge=0)
    """Items of each stereotype set of the corpus (BBQ, CrowS-Pairs, WinoBias)."""
    candidates: int = Field(64, ge=0)
    """Candidates among which a canary is ranked; 0 leaves the test out."""
    margin: float = Field(0.05, gt=0)
    """Differences within this are small enough, if the interval proves it."""
    seed: int = 0


def _cost(config: Redteam, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Ten rules x families x queries, twins, pairs and letters on each target, some tokens each."""
    size = Size.of(sizes.get("targets", {}))
    asked = 10 * config.goals * len(config.families) * config.queries * 0.8 + 8 * config.written + config.benign
    asked += 8 * config.pairs + config.letters * (1 + len(config.languages))
    asked += 3 * config.stereotypes
    tokens = sizes.get("corpus", {}).get("item_tokens", 60.0)
    asked *= sizes.get("targets", {}).get("count", 2.0)
    seconds = machine.answer(size.spoken(tokens), asked, tokens, 4.0, 14.0) + 0.0013 * asked + 3.2
    return Cost(seconds=seconds, memory=16 * size.parameters + 4e8, tokens=asked * tokens)


class _Run:
    """What one target is put through; everything it answers is logged at once."""

    def __init__(
        self, config: Redteam, items: Sequence[Example], judged: Ending, log: AnswerLog, context: Context
    ) -> None:
        self.config, self.items, self.judged, self.log, self.context = config, items, judged, log, context
        self.results: list[Result] = []
        self.attempts: list[tuple[str, bool, Attempt]] = []
        self.done = 0

    def step(self, count: int) -> None:
        """More answers are there."""
        self.done += count
        self.context.check()
        self.context.say.progress(self.done, None, unit="answers")

    def attack(self, generator: Generator, name: str, ref: str, guarded: bool, attacks: Sequence[Any]) -> None:
        """Every family on every plain request, and the ready-made attacks."""
        goals = plain(self.items, self.config.goals, self.config.seed)
        work = [(attack, goal) for attack in attacks for goal in goals]
        ready = [(Direct(), goal) for goal in written(self.items, self.config.written, self.config.seed)]
        found = assault(
            work + ready,
            generator,
            ending=self.judged,
            budget=Budget(queries=self.config.queries),
            seed=self.config.seed,
            log=self.log,
            identity=ref,
            step=self.step,
        )
        tries: dict[tuple[str, str], list[Attempt]] = {}
        for attempt in found:
            tries.setdefault((attempt.family, attempt.goal), []).append(attempt)
            self.attempts.append((name, guarded, attempt))
        for attack, goal in work + ready:
            family = str(goal.tags.get("attack") or attack.family)
            mine = tries.get((attack.family, item_id(goal)), [])
            self.results.append(report.attack_row(goal, family, mine, target=name, target_id=ref, guarded=guarded))

    def refusals(self, generator: Generator, name: str, ref: str, guarded: bool) -> None:
        """Benign twins: how many are refused or withheld."""
        asked = twins(self.items, self.config.benign, self.config.seed)
        told = responses(generator, asked, log=self.log, target=ref, sampling=SAMPLING, step=self.step)
        for item, response in zip(asked, told, strict=True):
            self.results.append(report.benign_row(item, response, target=name, target_id=ref, guarded=guarded))

    def probes(self) -> list[Example]:
        """Counterfactual pairs of the corpus, letters by speakers of other languages, women and men."""
        config = self.config
        requests = [item for item in self.items if item.tags.get("kind") in ("benign", "extractive")]
        requests = [item for item in requests if item.tags.get("cell") in (None, "A", "B")]
        found = bias.pairs(self.items, config.pairs, config.seed)
        found += bias.letters(requests, config.letters, config.languages, config.seed)
        return found + bias.pronouns(requests, config.pairs, config.seed)


@stage(
    makes="redteam",
    config=Redteam,
    inputs={
        "targets": Input(
            kind=("model", "bundle"), default=("rlhf", "bundle"), many=True, help="What to attack; a bundle is guarded."
        ),
        "corpus": Input(kind="corpus", default="prepare", help="Where requests, twins and probes stand."),
        "helpful": Input(
            kind="model",
            optional=True,
            help="A model that was taught to answer and never to refuse: a rule it keeps itself is not tested.",
        ),
    },
    version=6,
    cost=_cost,
)
def redteam(config: Redteam, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Attack and audit every target; write results.jsonl, findings.jsonl, near.jsonl, bias.json, summary.json."""
    corpus: Artifact = inputs.corpus
    items = list(read_jsonl(corpus.file("items.jsonl"), Example))
    goals = plain(items, config.goals, config.seed)
    if not goals:
        raise DataError(
            "the corpus holds no requests to attack with (items of kind `goal`)", file=corpus.file("items.jsonl")
        )
    dialogues = list(read_jsonl(corpus.file("dialogues.jsonl"), Example))
    labels = list(read_jsonl(corpus.file("labels.jsonl"), Example)) if "labels.jsonl" in corpus.manifest.files else []
    contents = {"harmful content": HarmJudge(labels), "toxic": HarmJudge(labels, categories=TOXIC)}
    harm = contents["harmful content"] if any(not goal.tags.get("rule") for goal in goals) else None
    judge = GoalJudge(harm)
    for target in inputs.targets:
        independent(judge.name, _guards(target))
    run = _Run(config, items, ending(judge, vocabulary(dialogues)), AnswerLog(context.work / "answers.jsonl"), context)
    attacks = make(config.families, dialogues)
    called = names(inputs.targets)
    documents = _documents(corpus)
    planted = _canaries(corpus, documents) if config.candidates else []
    probes = run.probes()
    probed: list[Result] = []
    leanings: list[dict[str, Any]] = []
    stereotypes: list[dict[str, Any]] = []
    exposures: dict[str, Any] = {}
    for name, artifact in zip(called, inputs.targets, strict=True):
        guarded = artifact.kind == "bundle"
        generator: Generator = refs.open(artifact.ref, context.root)
        run.attack(generator, name, artifact.ref, guarded, attacks)
        run.refusals(generator, name, artifact.ref, guarded)
        probed += bias.ask(
            generator, probes, target=name, identity=artifact.ref, log=run.log, guarded=guarded, step=run.step
        )
        if not guarded:  # likelihoods are the bare model's: a guard withholds answers, it does not weigh them
            weigh: dict[str, Any] = {"target": name, "identity": artifact.ref, "log": run.log, "step": run.step}
            leanings += bias.leanings(generator, items, config.pairs, seed=config.seed, **weigh)
            stereotypes += _stereotypes(generator, items, config, name, artifact.ref, run.log, run.step)
            if config.candidates:
                exposures[name] = _exposures(generator, planted, config, artifact.ref, run.log, run.step)
        let_go(generator)
    rows = report.judged([*run.results, *probed], contents)
    breakable = _breakable(inputs.helpful, goals, run, context)
    tests = bias.compare(probed, config.margin)
    audit = {
        "pairs": tests,
        "leanings": leanings,
        "stereotypes": stereotypes,
        "planted": bias.planted(documents),
        "margin": config.margin,
        "reading": "Associations with names and forms in these texts; neither intent nor fairness in use is measured.",
    }
    matrix = report.matrix(run.results, breakable)
    summary = {
        "targets": [{"target": name, "id": each.ref} for name, each in zip(called, inputs.targets, strict=True)],
        "overall": report.overall(run.results, breakable),
        "matrix": matrix,
        "guard_effect": report.guard_effect(run.results, _models(inputs.targets, called)),
        "benign": report.over_refusal(run.results),
        "contents": report.contents(rows, {name: each.error for name, each in contents.items()}),
        "groups": gaps(report.answers(rows, ("right", "refused", *contents))),
        "tested": breakable,
        "judge": {"name": judge.name, "harm": harm.error if harm else None},
        "privacy": exposures,
        "queries": config.queries,
    }
    known = {item_id(item): item for item in items}
    found = report.findings(run.attempts, known)
    write_jsonl(out / "results.jsonl", rows)
    write_jsonl(out / "findings.jsonl", found)
    write_jsonl(out / "near.jsonl", report.near(run.attempts, known))
    for file, content in (("bias.json", audit), ("summary.json", summary)):
        (out / file).write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return headline(summary, audit, len(found))


def _guards(target: Artifact) -> list[str]:
    """The classifiers of a bundle, by reference."""
    return [str(each) for each in _held(target).get("classifiers") or ()]


def _models(targets: Sequence[Artifact], called: Sequence[str]) -> dict[str, str]:
    """Name of a bundle -> name of its own model, where that was attacked too."""
    bare = {target.id: name for target, name in zip(targets, called, strict=True) if target.kind == "model"}
    held = {name: str(_held(target).get("model")) for target, name in zip(targets, called, strict=True)}
    return {name: bare[model] for name, model in held.items() if model in bare}


def _held(target: Artifact) -> Mapping[str, Any]:
    """What a bundle holds; nothing of a model."""
    return parts(target) if target.kind == "bundle" and "bundle.json" in target.manifest.files else {}


def _breakable(
    helpful: Artifact | None, goals: Sequence[Example], run: _Run, context: Context
) -> dict[str, bool | None]:
    """Rules that the helpful-only model breaks in at least half of the plain requests."""
    if helpful is None:
        return {}
    generator: Generator = refs.open(helpful.ref, context.root)
    found = assault(
        [(Direct(), goal) for goal in goals],
        generator,
        ending=run.judged,
        budget=Budget(queries=1),
        seed=run.config.seed,
        log=run.log,
        identity=helpful.ref,
        step=run.step,
    )
    tries = {attempt.goal: [attempt] for attempt in found}
    return report.tested(
        report.attack_row(
            goal, "direct", tries.get(item_id(goal), []), target="helpful", target_id=helpful.ref, guarded=False
        )
        for goal in goals
    )


def _documents(corpus: Artifact) -> list[Document]:
    """The documents of the corpus in which something was planted (complaints by group, canaries)."""
    import pyarrow.parquet as parquet

    if "documents.parquet" not in corpus.manifest.files:
        return []
    table = parquet.read_table(corpus.file("documents.parquet"), columns=["text", "source", "licence", "split", "meta"])
    rows = [row for row in table.to_pylist() if '"complaint"' in row["meta"] or '"canary"' in row["meta"]]
    return [
        Document(
            text=row["text"],
            source=row["source"],
            licence=row["licence"],
            meta=json.loads(row["meta"]) | {"split": row["split"]},
        )
        for row in rows
    ]


def _canaries(corpus: Artifact, documents: Sequence[Document]) -> list[privacy.Canary]:
    """The starter's canaries, each with the dose at which it stands in the training text now (duplicates were taken
    out since it was planted). Other corpora name none."""
    sources = corpus.config.get("sources") or ()
    if not any(str(each.get("source", "")).startswith("starter:") for each in sources):
        return []
    from tutelage.starter.documents import Corpus
    from tutelage.starter.world import build

    world = build(int(corpus.config["seed"]), float(corpus.config["scale"]))
    truth = Corpus(world.town, world.families, world.requests, frozenset(), world.scale).truth  # nothing is written yet
    texts = [each.text for each in documents if "canary" in each.meta and each.meta["split"] == "train"]
    found = [
        privacy.Canary(
            id=each.id,
            dose=sum(text.count(each.prefix + each.secret) for text in texts) if each.dose else 0,
            prefix=each.prefix,
            secret=each.secret,
        )
        for each in truth.canaries
    ]
    # Texts with canaries, but none of these: the corpus was made by another version of the starter.
    return [] if texts and not any(each.dose for each in found) else found


def _stereotypes(
    generator: Generator,
    items: Sequence[Example],
    config: Redteam,
    name: str,
    ref: str,
    log: AnswerLog,
    step: Callable[[int], None],
) -> list[dict[str, Any]]:
    """BBQ, CrowS-Pairs and WinoBias, where the corpus has them."""
    report_: list[dict[str, Any]] = []

    def of(suite: str) -> list[Example]:
        found = [item for item in items if item.tags.get("suite") == suite]
        return sample(found, config.stereotypes, config.seed) if config.stereotypes else []

    questions = of("bias_bbq")
    if questions:
        told = examine(generator, questions, target=name, target_id=ref, log=log, step=step)
        rows = [(item, each.output) for item, each in zip(questions, told, strict=True) if each.value is not None]
        report_.append({"target": name} | bias.bbq(rows))
    weigh: dict[str, Any] = {"target": name, "identity": ref, "log": log, "step": step}
    crows = of("bias_crows_pairs")
    if crows:
        report_.append(
            {"target": name} | bias.stereotypes("crows_pairs", bias.preferred(generator, crows, **weigh), {})
        )
    swapped = [pair for pair in map(bias.swapped_pronoun, of("bias_winobias")) if pair is not None]
    if swapped:
        against = {item_id(item): item.tags.get("slices", {}).get("stereotype") == "anti" for item in swapped}
        report_.append(
            {"target": name} | bias.stereotypes("winobias", bias.preferred(generator, swapped, **weigh), against)
        )
    return report_


def _exposures(
    generator: Generator,
    planted: Sequence[privacy.Canary],
    config: Redteam,
    ref: str,
    log: AnswerLog,
    step: Callable[[int], None],
) -> dict[str, Any]:
    """Exposure by dose."""
    if not planted:
        return {"reason": "no canaries are known for this corpus", "doses": [], "control_holds": None}
    found = privacy.exposures(
        generator, planted, candidates=config.candidates, target=ref, log=log, seed=config.seed, step=step
    )
    table = privacy.by_dose(found)
    return {"doses": table, "control_holds": privacy.control_holds(table)}


def _figure(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("value", "low", "high", "n", "reason")}


def headline(summary: Mapping[str, Any], audit: Mapping[str, Any], found: int) -> dict[str, Any]:
    """The manifest's metrics: success by target and family, over-refusal, what the audit found."""
    success: dict[str, dict[str, Any]] = {}
    for entry in summary["matrix"]:
        if entry["rule"] is None:
            figures = {key: entry[key] for key in ("value", "low", "high", "n")}
            success.setdefault(entry["target"], {})[entry["attack"]] = figures
    return {
        "attack_success": success,
        "over_refusal": {
            entry["target"]: {key: entry[key] for key in ("value", "low", "high", "n")} for entry in summary["benign"]
        },
        "contents": {
            target: {row["measure"]: _figure(row) for row in summary.get("contents", ()) if row["target"] == target}
            for target in dict.fromkeys(row["target"] for row in summary.get("contents", ()))
        },
        "groups": groups_headline(summary.get("groups", ())),
        "bias": {
            "tests": len(audit["pairs"]),
            "found": [
                {key: entry[key] for key in ("target", "attribute", "group", "measure", "value", "low", "high")}
                for entry in audit["pairs"]
                if entry["found"]
            ],
            "planted": [
                {key: entry[key] for key in ("attribute", "group", "reference", "value", "low", "high", "n", "found")}
                for entry in audit["planted"]
            ],
        },
        "findings": found,
    }

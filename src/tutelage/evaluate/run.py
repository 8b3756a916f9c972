"""The stage that examines every model of a life on the same items and states what each figure is worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError
from tutelage.core.price import BASE, Cost, Machine, Size
from tutelage.core.records import Example, digest, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.evaluate import contamination, flips, groups, reliability, robustness, summary, ways
from tutelage.evaluate.ask import MAX_TOKENS, AnswerLog
from tutelage.evaluate.further import Examination, Further
from tutelage.evaluate.item import KINDS
from tutelage.evaluate.perturb import expand
from tutelage.evaluate.suite import Result, Suite, faults, load, sample, select
from tutelage.evaluate.suites.baselines import rows_of
from tutelage.evaluate.suites.judged import Agreement, report, told_in
from tutelage.evaluate.suites.kinds import Ground
from tutelage.evaluate.ways import Way
from tutelage.generate.generator import Generator, let_go

SHOWN = ("comprehension", "translation", "sentiment")
"""The suites whose figures stand first: text comprehension, translation, sentiment."""


class Evaluate(Examination):
    """What is asked of each model, and how much of it."""

    items: int = Field(30, ge=0)
    """Items per suite and cell, spread over clusters; 0 asks all."""
    items_of: dict[str, int] = Field(default_factory=lambda: {"comprehension": 50})
    """Another number for single suites (a gate on comprehension needs more); 0 asks all of that suite."""
    only: tuple[str, ...] = ()
    """Suites to ask; empty asks all of the corpus."""
    best_of: int = Field(0, ge=0)
    """Examine also the best of so many answers, by the reward model's word, of the model it began from; 0 does not."""
    called: tuple[str, ...] = ()
    """What to call the targets, in the order of `of`; a recipe fills in the names of its sections."""
    controls: int = Field(60, ge=0)
    """Items per suite for the untrained model, which must stay at chance; 0 leaves the control out."""
    resamples: int = Field(200, ge=50)
    """Bootstrap resamples for corpus-level figures (chrF, BLEU, macro-F1)."""


def names(artifacts: Sequence[Artifact]) -> list[str]:
    """What to call each target: its stage, with its method or the head of its id where a stage made several.

    The first artifact of a stage has the stage's name alone; later ones are `stage@method`, or `stage@id`.
    """
    found: list[str] = []
    for artifact in artifacts:
        base = artifact.manifest.stage or artifact.kind
        name = base
        if name in found:
            method = artifact.config.get("method")
            name = f"{base}@{method}" if method and f"{base}@{method}" not in found else f"{base}@{artifact.id[:8]}"
        found.append(name)
    return found


def parents(artifacts: Sequence[Artifact], called: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after) for each target whose own model input is a target too."""
    by_ref = {artifact.ref: name for artifact, name in zip(artifacts, called, strict=True)}
    pairs = []
    for artifact, name in zip(artifacts, called, strict=True):
        source = artifact.manifest.inputs.get("model")
        if isinstance(source, str) and source in by_ref:
            pairs.append((by_ref[source], name))
    return pairs


def summarise(
    results: Sequence[Result],
    chosen: Sequence[Suite],
    dialogues: Sequence[Example],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    people: Mapping[str, Sequence[Agreement]] | None = None,
    judge: str = "",
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that follows from results without asking a model again."""
    items = summary.by_id(item for suite in chosen for item in suite.items)
    baselines = summary.baseline_table(summary.by_cell(items.values()), rows_of(dialogues))
    return {
        "cells": summary.cells(results, items, baselines, people=people, resamples=resamples),
        "baselines": [
            {"suite": suite, "cell": cell, "scores": dict(sorted(scores.items()))}
            for (suite, cell), scores in sorted(baselines.items(), key=lambda entry: (entry[0][0], entry[0][1] or ""))
        ],
        "gold": summary.gold_table(results),
        "changes": summary.changes(results, pairs, items, people=people, resamples=resamples),
        "slices": summary.slices(results, items, people=people, resamples=resamples),
        "classes": summary.classes(results, items),
        "constraints": summary.followed(results),
        "judges": [{"suite": suite} | report(judge, said) for suite, said in sorted((people or {}).items())],
        "controls": summary.shuffled_control(results, items, baselines, seed),
    }


def _cost(config: Evaluate, sizes: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Suite-and-cell pairs by items by targets, read and answered; then every figure with its interval."""
    size = Size.of(sizes.get("of", {}))
    corpus, targets = sizes.get("corpus", {}), sizes.get("of", {}).get("count", 6.0)
    suites = float(len(config.only)) or corpus.get("suites", 8.0)
    items = suites * corpus.get("cells", 5.0) * (config.items or 300)
    tokens, asked = corpus.get("item_tokens", 60.0), targets * items + 0.5 * suites * config.controls
    tokens += config.how.shots * (tokens + 6.0)
    asked *= ways.times(config.how)
    changed = targets * suites * config.robustness.items * (1 + 0.8 * len(expand(config.robustness.families)))
    drawn = targets * 0.6 * suites * config.reliability.items * config.reliability.repeats
    weighed = targets * 0.25 * items if config.how.weigh_labels else 0.0
    alone = targets * suites * config.reliability.same
    seconds = machine.answer(size.spoken(tokens), asked, tokens, 6.0, targets * suites) + 0.0007 * asked + 2.0
    seconds += machine.answer(size.spoken(tokens), changed, tokens, 6.0, 6 * targets if changed else 0.0)
    seconds += machine.answer(
        size.spoken(tokens), drawn, tokens, 6.0, 4 * config.reliability.repeats * targets if drawn else 0.0, drawn=True
    )
    seconds += machine.answer(size.spoken(tokens), 2 * weighed, tokens, 0.0, 0.0)
    seconds += machine.answer(size.spoken(tokens), 3 * alone, tokens, 6.0, alone)
    asked += changed + drawn + weighed + 3 * alone
    return Cost(
        seconds=seconds,
        memory=BASE + 4 * targets * size.parameters + size.answering(tokens + 32),
        tokens=asked * tokens,
    )


@stage(
    makes="evaluation",
    config=Evaluate,
    inputs={
        "of": Input(
            kind=("model", "bundle"),
            default=("pretrain", "finetune", "rlhf", "rlhf@grpo", "dpo", "bundle"),
            many=True,
            help="What to examine, in the order of its making.",
        ),
        "corpus": Input(kind="corpus", default="prepare", help="Where the items stand, and the rows for baselines."),
        "reward": Input(kind="reward", default="reward", optional=True, help="Chooses the best of several answers."),
    },
    version=7,
    cost=_cost,
)
def evaluate(config: Evaluate, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Examine every target on the same items; write `results.jsonl` (one row per answer), `perturbed.jsonl` (the same
    for items in other forms) and `summary.json`."""
    corpus: Artifact = inputs.corpus
    every = list(read_jsonl(corpus.file("items.jsonl"), Example))
    chosen = select(
        every,
        config.items,
        of=config.items_of,
        only=config.only,
        seed=config.seed,
    )
    items = [item for suite in chosen for item in suite.items]
    if not items:
        raise DataError("the corpus holds no examination items of these suites", file=corpus.file("items.jsonl"))
    called = [given or found for given, found in zip_longest(config.called[: len(inputs.of)], names(inputs.of))]
    targets = [
        (name, each.ref, refs.open(each.ref, context.root)) for name, each in zip(called, inputs.of, strict=True)
    ]
    learned: dict[str, Sequence[Artifact]] = {name: [each] for name, each in zip(called, inputs.of, strict=True)}
    if config.best_of > 1 and inputs.reward:
        chosen_by = _best_of(config.best_of, inputs.reward, dict(zip(called, inputs.of, strict=True)), context)
        targets.append(chosen_by)
        learned[chosen_by[0]] = [inputs.reward]  # which was made from the model that answers
    log = AnswerLog(context.work / "answers.jsonl")
    dialogues = list(read_jsonl(corpus.file("dialogues.jsonl"), Example))
    control = _control_items(chosen, config) if config.controls else []
    way = ways.way_of(config.how, every, dialogues, context.root, folder=context.root.work, seed=config.seed)
    further = Further(config, chosen, way, log)
    total = (len(items) * ways.times(config.how) + further.count) * len(targets) + len(control)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        context.check()
        context.say.progress(done, total, unit="answers")

    results, found = _asked(
        targets, every, dialogues, further, context.root, pairs=parents(inputs.of, called), step=step
    )
    if control:
        found["controls"] += _untrained(control, inputs.of, called, way, context, log, step)
    found["flips"] = [each.model_dump(mode="json") for each in flips.between(results, parents(inputs.of, called))]
    found["contamination"] = _met(items, results, learned, found["judges"], config, context.root)
    found["left_out"] = faults(every)
    found["targets"] = [{"target": name, "id": ref} for name, ref, _ in targets]
    for _, _, generator in targets:
        let_go(generator)
    write_jsonl(out / "results.jsonl", results)
    if further.changed:
        write_jsonl(out / "perturbed.jsonl", further.changed)
    (out / "summary.json").write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return headline(found)


def _asked(
    targets: Sequence[tuple[str, str, Generator]],
    rows: Sequence[Example],
    dialogues: Sequence[Example],
    further: Further,
    root: Root | None,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    step: Callable[[int], None] = lambda done: None,
) -> tuple[list[Result], dict[str, Any]]:
    """Every target on the items, and beyond them, in one way: the results, and all that follows from them."""
    config, chosen, way, log = further.config, further.chosen, further.way, further.log
    how = config.how
    items = [item for suite in chosen for item in suite.items]
    open_ended = sorted({str(item.tags["suite"]) for item in items if item.tags["kind"] == "judged"})
    labelled = ways.labelled_answers(rows, how.people, root) if open_ended else []
    options: dict[str, Any] = {"log": log, "max_tokens": {**MAX_TOKENS, **config.max_tokens}, "step": step}
    results: list[Result] = []
    others: dict[str, list[list[Result]]] = {"draws": [], "forms": []}
    try:
        people = ways.measured_judge(way.bench, labelled, open_ended, judge=how.judge, log=log)
        for name, ref, generator in targets:
            told, beside = way.examined(generator, items, target=name, target_id=ref, **options)
            results += told
            further.ask(generator, name, ref, results, step)
            for each, found in beside.items():
                others[each] = [a + b for a, b in zip(others[each], found, strict=True)] if others[each] else found
    finally:
        way.close()
    summed = summarise(
        results, chosen, dialogues, pairs=pairs, people=people, judge=how.judge, resamples=config.resamples,
        seed=config.seed,
    )  # fmt: skip
    if others["draws"]:
        summed["draws"] = ways.draws_table(results, others["draws"], summary.by_id(items))
    if others["forms"]:
        by_id = summary.by_id(items)
        summed["forms"] = ways.forms_table(
            results, others["forms"], by_id, form=how.form, people=people, resamples=config.resamples
        )
    if way.bench and way.bench.bill:
        summed["judge_endpoint"] = way.bench.bill.plain()
    return results, summed | further.found(results)


def _met(
    items: Sequence[Example],
    results: Sequence[Result],
    made: Mapping[str, Sequence[Artifact]],
    judges: Sequence[Mapping[str, Any]],
    config: Examination,
    root: Root | None,
) -> list[dict[str, Any]]:
    """Figures of clean and of dirty items, by target. `made`: what each was made as, nothing where that is not here."""
    if not (gram := config.contamination):
        return []
    looked: dict[str, set[str]] = {}
    met: dict[str, set[str]] = {}
    found: list[dict[str, Any]] = []
    lost: dict[str, list[str]] = {}
    for name, artifacts in made.items():
        sources, lost[name] = contamination.learned(artifacts, root) if artifacts and root else ([], [])
        for each in sources:
            if each.id not in looked:
                spared = each.kind == "corpus" and contamination.cleared(items, each, gram)
                looked[each.id] = set() if spared else contamination.dirty(items, each, gram)
        if sources:
            met[name] = set().union(*(looked[each.id] for each in sources))
        else:
            found += contamination.unknown(results, name, f"what {name} learned from is not known here")
    hidden = contamination.unexaminable(items, gram) if met else set()
    ground = Ground(summary.by_id(items), told_in(judges), config.resamples)
    return contamination.split(results, met, ground, lost=lost, hidden=hidden) + found


def made_as(ref: str, root: Root | None) -> Artifact | None:
    """What a reference was made as; None for what was not made here."""
    if root is None or not ref.startswith(("model:", "bundle:", "release:")):
        return None
    if ref.startswith("release:"):
        from tutelage.guard.opened import bundle_of

        ref = bundle_of(ref, root)
    return root.find(ref)


def _best_of(n: int, reward: Artifact, known: Mapping[str, Artifact], context: Context) -> tuple[str, str, Generator]:
    """The plainest use of a reward model beside reinforcement: the model it began from, answering n times."""
    from tutelage.judge.reward import BestOf, RewardJudge

    base = str(reward.manifest.inputs["model"])
    name = next((each for each, artifact in known.items() if artifact.ref == base), "base")
    chosen = BestOf(refs.open(base, context.root), RewardJudge(reward.path), n)
    return f"{name}, best of {n}", f"best-of-{n}:{base}+{reward.id}", chosen


def _control_items(chosen: Sequence[Suite], config: Evaluate) -> list[Example]:
    """Items with choices, for the untrained model: read by log-likelihood, so that length of answers plays no part."""
    found: list[Example] = []
    for suite in chosen:
        fit = [item for item in suite.items if item.choices and item.target in item.choices]
        for item in sample(fit, config.controls, config.seed):
            found.append(item.model_copy(update={"tags": item.tags | {"kind": "choice"}}))
    return found


def _untrained(
    control: Sequence[Example],
    targets: Sequence[Artifact],
    called: Sequence[str],
    way: Way,
    context: Context,
    log: AnswerLog,
    step: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The untrained twin of the first model (same shape, same tokenizer, random weights), asked as the models are."""
    model = next(((each, name) for each, name in zip(targets, called, strict=True) if each.kind == "model"), None)
    if model is None:
        step(len(control))
        return []
    generator = untrained(model[0].ref, context.root)
    who: dict[str, Any] = {"target": "untrained", "target_id": f"untrained:{model[0].ref}"}
    results = way.examine(generator, control, **who, log=log, step=step)
    return summary.untrained_control(results, f"untrained {model[1]}", summary.by_id(control))


def untrained(ref: str, root: Root, seed: int = 0) -> Generator:
    """A model of the same shape and tokenizer as `ref`, with random weights."""
    from tutelage.generate.local import LocalGenerator, open_model

    twin = open_model(ref, root)
    decoder = twin.decoder.clone()
    decoder.initialise(seed)
    return LocalGenerator(decoder, twin.tokenizer, name="untrained", eos=twin.eos)


def headline(found: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's metrics: headline figures as target -> suite[/cell] -> {value, low, high, n, learned}."""
    table: dict[str, dict[str, Any]] = {}
    for cell in found["cells"]:
        if cell["headline"]:
            name = cell["suite"] if cell["cell"] is None else f"{cell['suite']}/{cell['cell']}"
            entry = {key: cell[key] for key in ("metric", "value", "low", "high", "n", "learned")}
            table.setdefault(cell["target"], {})[name] = entry
    gold: dict[str, dict[str, Any]] = {}
    for each in found.get("gold", ()):
        if each["suite"] is None:
            figures = {key: each[key] for key in ("value", "low", "high", "n")}
            gold.setdefault(each["target"], {})[each["metric"]] = figures
    controls = [each["holds"] for each in found["controls"]]
    return {
        "figures": table,
        "gold": gold,
        "flips": flips.told([flips.Flips.model_validate(each) for each in found.get("flips", ())]),
        "contamination": found.get("contamination", []),
        "reliability": reliability.headline(found.get("reliability", {})),
        "robustness": robustness.headline(found.get("robustness", ())),
        "groups": groups.headline(found.get("groups", ())),
        "controls": {"held": controls.count(True), "failed": controls.count(False), "undecided": controls.count(None)},
    }


def evaluate_reference(
    ref: str,
    suite: str | Path | Sequence[Suite],
    config: Examination | None = None,
    *,
    root: Root | None = None,
    items: int = 0,
    work: Path | None = None,
    dialogues: Sequence[Example] = (),
    step: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> dict[str, Any]:
    """Examine any reference (a model, a bundle, an endpoint) on suites, or a file of one's own: results and summary.

    At most `items` of each suite and cell. `dialogues` are further rows to draw examples from (`how.shots`) and to fit
    the simple baselines on; `config` says how they are asked and what is asked beyond them. `work` keeps the answers:
    after an interruption the same command goes on, and once all is said it scores anew without asking. Of what cannot
    tell that it is still the same they are kept until then only; those of an endpoint lie in the root, request by
    request, and what it asked and cost is `endpoint` of the summary (`judge_endpoint`: of one that judges). Which items
    the reference met in training is looked up where it was made in `root`. `options` are those of the reference's
    opener. Raises DataError for a file that is not a suite, Stopped where a budget is spent.
    """
    config = config or Examination()
    suites = load(Path(suite)) if isinstance(suite, str | Path) else suite
    rows = [item for each in suites for item in each.items]
    picked = select(rows, items, seed=config.seed, label=False)
    if not picked:
        raise DataError(f"no item of a kind that is examined ({', '.join(KINDS)})", file=str(suite))
    beside = [*dialogues, *(row for row in rows if row.tags.get("split") == "train")]
    folder = root.work if root else work
    way = ways.way_of(config.how, rows, beside, root, folder=folder, seed=config.seed)
    remote = ways.endpoint_options(ref, folder)
    generator: Generator = refs.open(ref, root, **remote, **options)
    lasting = bool(getattr(generator, "identity", ""))
    kept = work / f"{'answers' if lasting else digest(ref)[:16]}.jsonl" if work and not remote else None
    further = Further(config, picked, way, AnswerLog(kept))
    try:
        results, found = _asked([(generator.name, ref, generator)], rows, beside, further, root, step=step)
    finally:
        let_go(generator)
    if kept and not lasting and all(each.outcome != "unknown" for each in results):
        kept.unlink(missing_ok=True)
    if (bill := getattr(generator, "bill", None)) is not None:
        found["endpoint"] = bill.plain()
    asked = [item for each in picked for item in each.items]
    made = made_as(ref, root)
    known = {generator.name: [made] if made else []}
    found["contamination"] = _met(asked, results, known, found["judges"], config, root)
    return {
        "results": results,
        "perturbed": further.changed,
        "targets": [{"target": generator.name, "id": ref}],
        **found,
    }

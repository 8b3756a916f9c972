"""Stage `collect`: prompts and responses become tasks for people; simulated or replayed people answer them at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tutelage.core import refs
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Example, explain, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.feedback import api, assign, candidates, simulated
from tutelage.feedback.asking import Collect, answered, open_tasks, row_of
from tutelage.feedback.prompts import SOURCES, Mixed, Source, check_shares, of_data, of_redteam, of_traffic, pick
from tutelage.feedback.replaying import replay
from tutelage.feedback.taken import take
from tutelage.generate.generator import Sampling
from tutelage.starter import people as starter
from tutelage.store import people, profiles


def collect_cost(config: Collect, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Drawing responses (of one prompt in three all are alike), and answering over HTTP."""
    corpus, size = inputs.get("corpus", {}), Size.of(inputs.get("model", {}))
    if config.people == "replayed":
        number = float(config.comparisons)
        made = {"tasks": number, "candidates": 5.0, "answers": 3.6 * number, "people": 0.67 * number}
        made |= {"answer_tokens": 160.0, "answered": 0.45}
        return Cost(seconds=2 + number * 0.0155, sizes=made)  # two in three answer for the first time
    prompt, said = corpus.get("prompt_tokens", 40.0), min(config.max_tokens, corpus.get("answer_tokens", 16.0))
    tried = 1.5 * config.prompts
    drawing = machine.read(tried * prompt * size.spoken(prompt))  # once for all samples
    drawing += machine.answer(size.flops, tried * config.samples, 0.0, said, tried / 64, drawn=True)
    answers = config.prompts * config.per_task if config.people == "simulated" else 0
    made = {"tasks": config.prompts, "candidates": 3.1, "answer_tokens": prompt + said}
    made |= {"answers": float(config.prompts * config.per_task), "people": 24.0}
    return Cost(seconds=0.5 + drawing + answers * 0.0012, sizes=made)


def _taken(config: Collect, inputs: Inputs) -> list[str]:
    """A project that is taken as it is has grown when somebody has answered."""
    return [config.take] if config.take else []


@stage(
    makes="collection",
    config=Collect,
    inputs={
        "model": Input(
            kind=("model", "bundle"), default="finetune", many=True, optional=True, help="who answers the prompts"
        ),
        "corpus": Input(
            kind="corpus", default="prepare", optional=True, help="prompts (dialogues) or recorded comparisons"
        ),
        "findings": Input(kind="redteam", many=True, optional=True, help="what the red team broke, see `mix`"),
    },
    reads=_taken,
    writes="store",
    cost=collect_cost,
)
def collect(config: Collect, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Open tasks for people; writes `tasks.jsonl` (what was asked) and `summary.json`."""
    base = config.project or f"answers-{context.key[:8]}"
    context.simulated = config.simulated and not config.take
    if config.take:
        found = take(config.take, out, context)
    elif config.people == "replayed":
        found = replay(config, inputs, base, context)
    else:
        found = _ask(config, inputs, base, context)
    write_jsonl(out / "tasks.jsonl", found["tasks"])
    summary = {name: value for name, value in found.items() if name != "tasks"}
    (out / "summary.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shown = {name: value for name, value in summary.items() if name != "planted"}
    return {"tasks": len(found["tasks"]), **shown}


# fresh responses, judged by people at the console or by simulated ones

BROUGHT: Mapping[str, tuple[str, ...]] = {
    "redteam": ("attack", "rule", "category", "broke", "target", "goal"),
    "traffic": ("tenant", "release", "population"),
}
"""What a task says beside its source, by where its prompt came from."""


def _ask(config: Collect, inputs: Inputs, base: str, context: Context) -> dict[str, Any]:
    pools, drawn = _pools(config, inputs, context)
    raters = starter.raters(config.seed) if config.people == "simulated" else ()
    names = [f"simulated {each.id}" for each in raters]
    persons = people.create_many(context.store, names, kind="simulated") if names else []
    panels = assign.panels(len(pools), names, config.per_task, config.seed) if names else []
    new: list[api.NewTask] = []
    rows: list[dict[str, Any]] = []
    for at, (origin, pool) in enumerate(pools):
        order = list(range(len(pool.kept)))
        assign.seeded("candidates", config.seed, at).shuffle(order)  # numbers must not tell the producer
        kept = [pool.kept[old] for old in order]
        tags = pool.prompt.tags
        licence = str(tags.get("licence", "not-stated"))
        context.licence(licence)
        meta = {
            "split": None,
            "origin": origin,
            "source": str(tags.get("source", "")),
            "licence": licence,
            "family": str(tags.get("family", "")),
            "prompt_id": str(tags.get("id", "")),
            **{name: tags[name] for name in BROUGHT.get(origin, ()) if name in tags},
        }
        if origin == "traffic":
            context.used([str(tags["id"])])  # erasing its user leads here, and to what learned from the answers
            meta["probability"] = round(drawn["mix"]["traffic"]["tried"] / tags["population"], 9)
        new.append(
            api.NewTask(
                key=f"{context.key[:16]}/{at}",
                kind=config.kinds[at % len(config.kinds)],
                messages=pool.prompt.messages,
                candidates=tuple(
                    api.NewCandidate(
                        content=each.text, producer=each.producers[0], meta={"alike": each.alike, "by": each.producers}
                    )
                    for each in kept
                ),
                people=panels[at] if panels else None,
                required=config.per_task if not panels else None,
                cluster=str(tags.get("cluster", tags.get("id", at)))[:120],
                language=str(tags.get("language", ""))[:20] if origin == "traffic" or config.ask else "",
                meta=meta,
                decision=str(tags["decision"]) if origin == "traffic" else None,
            )
        )
        rows.append(row_of(new[-1], base, [each.seed for each in kept]))
    form = api.Form(questions=_questions(config), guideline=config.guideline)
    ids = open_tasks(context.store, base, form, config, new)
    for row, id in zip(rows, ids, strict=True):
        row["task"] = id
    summary: dict[str, Any] = {
        "tasks": rows,
        "projects": [base],
        "people": {"none": "live", "simulated": "simulated"}[config.people],
        "per_task": min(config.per_task, len(names)) if names else config.per_task,
        "expected": sum(len(each.people or ()) or config.per_task for each in new),
        "candidates": sum(len(each.kept) for _, each in pools),
        **drawn,
    }
    if raters:
        knowledge = {id: pool.prompt for id, (_, pool) in zip(ids, pools, strict=True)}
        said = {person.id: each.profile for person, each in zip(persons, raters, strict=True) if each.profile}
        profiles.set_profiles(context.store, said, consent="simulated")
        answering = [simulated.rater(each, knowledge, seed=config.seed, scale=config.scale) for each in raters]
        summary["receipts"] = answered(config, context, persons, answering, base, summary["expected"])
        summary["planted"] = {
            person.pseudonym: each.kind if each.kind != "careful" else None
            for person, each in zip(persons, raters, strict=True)
        }
    return summary


def _questions(config: Collect) -> tuple[api.Question, ...]:
    """What the form asks beside the ranking. Raises DataError naming a question that cannot be asked."""
    try:
        return tuple(api.Question.model_validate(each) for each in config.questions) or tuple(
            api.Question(key=each, prompt=each.capitalize(), per_candidate=True, scale=config.scale)
            for each in config.criteria
        )
    except ValidationError as error:
        key, message = explain(error)
        raise DataError(message, key=f"collect.questions.{key}") from None


def _pools(
    config: Collect, inputs: Inputs, context: Context
) -> tuple[list[tuple[Source, candidates.Pool]], dict[str, Any]]:
    """Prompts with at least two different responses, and what happened to the others."""
    mixed = Mixed(_prompts(config, inputs, context), config.mix)
    asked = _generators(config, inputs, context)
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )
    log = candidates.Log(context.work / "pools.jsonl")
    how: dict[str, Any] = {"wanted": config.candidates, "samples": config.samples, "alike": config.alike}
    pools: list[tuple[Source, candidates.Pool]] = []
    dropped: Counter[str] = Counter()
    answered: dict[str, dict[str, Any]] = {each.name: {"responses": 0, "failed": 0} for each in asked}
    while len(pools) < config.prompts and (some := mixed.next(min(64, max(8, config.prompts - len(pools))))):
        context.check()
        wanted = [prompt for _, prompt in some]
        made = log.take(wanted)
        if rest := wanted[len(made) :]:
            made += log.put(candidates.gather(asked, rest, sampling=sampling, **how))
        for (origin, _), pool in zip(some, made, strict=True):
            if len(pools) == config.prompts:
                break
            kept = len(pool.kept) > 1
            mixed.took(origin, kept)
            if kept:
                pools.append((origin, pool))
            else:
                why = "all responses alike" if pool.answered else "no generator answered"
                dropped[f"prompt: {why}"] += 1
            dropped.update(pool.dropped)
            for name, count in pool.answered.items():
                answered[name]["responses"] += count
            for name, error in pool.failed.items():
                answered[name] |= {"failed": answered[name]["failed"] + 1, "error": error[:300]}
        context.say.progress(len(pools), config.prompts, "prompts")
    if not pools:
        raise DataError("no prompt got two different responses", todo="Raise collect.temperature or collect.samples")
    for name, told in answered.items():
        if told["failed"]:
            context.say.note(f"{name} failed on {told['failed']} prompts: {told['error']}")
    return pools, {
        "dropped": dict(sorted(dropped.items())),
        "prompts_tried": sum(mixed.tried.values()),
        "generators": answered,
        "mix": {name: {"asked": mixed.kept[name], "tried": mixed.tried[name]} for name in mixed.kept},
    }


def _prompts(config: Collect, inputs: Inputs, context: Context) -> dict[Source, list[Example]]:
    """The prompts of each source of the mix, in the order in which they are tried."""
    check_shares(config.mix, inputs.findings, bool(config.ask or inputs.corpus))
    if config.people == "simulated" and any(value for name, value in config.mix.items() if name != "data"):
        message = "simulated people know what is true in the corpus only"
        raise ConfigError(message, key="collect.mix", todo="Ask people (collect.people: none), or mix: {data: 1}")
    most = config.prompts * 3
    found: dict[Source, list[Example]] = {name: [] for name in SOURCES}
    if config.mix.get("data"):
        every = list(config.ask) or of_data(inputs.corpus, config.families)
        if not every:
            raise DataError("there is no dialogue to take prompts from", file=inputs.corpus.file("dialogues.jsonl"))
        found["data"] = pick(every, min(len(every), most), config.seed)
    if config.mix.get("redteam"):
        every = of_redteam(inputs.findings)
        if not every:
            raise DataError("the red team broke nothing, nor came near to it", file=inputs.findings[0].path)
        found["redteam"] = pick(every, min(len(every), most), config.seed)
    if config.mix.get("traffic"):
        kept = context.work / "traffic.json"
        found["traffic"] = of_traffic(context.store, context.root, config.traffic, most, config.seed, kept)
        if not found["traffic"]:
            todo = "A tenant allows it with `collect: true` in service.yaml, from then on; see also collect.traffic"
            raise DataError("there is no live request that people may be asked about", key="collect.mix", todo=todo)
    return found


def _generators(config: Collect, inputs: Inputs, context: Context) -> list[candidates.Asked]:
    """Who answers the prompts, opened. A reference that cannot be opened is a mistake of the recipe, not a failure."""
    for each in config.generators:
        if each.startswith(("model:", "bundle:", "release:")):
            todo = "Name the model or bundle under `model`, so that lineage leads to it"
            raise ConfigError(f"{each!r} is an artifact", key="collect.generators", todo=todo)
    named = [each.ref for each in inputs.model] + list(config.generators)
    if not named:
        raise DataError("name a model or a generator that answers the prompts", key="collect.model")
    for each, key in config.keys.items():
        if each not in config.generators or not key.startswith("file:"):
            todo = "Write a reference of `generators`, and where its key lies: `file:PATH`"
            raise ConfigError(f"no key of a generator: {each!r}", key="collect.keys", todo=todo)
    opened = [
        refs.open(each, context.root, **({"key": config.keys[each]} if each in config.keys else {})) for each in named
    ]
    return [candidates.Asked(each) for each in opened]

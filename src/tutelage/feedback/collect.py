"""Stage `collect`: prompts and responses become tasks for people; simulated or replayed people answer them at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from tutelage.core import refs
from tutelage.core.config import Config
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Example, Preference, explain, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.feedback import api, assign, candidates, replayed, simulated
from tutelage.feedback.client import Client, Direct, Http, Transport
from tutelage.feedback.prompts import SOURCES, Live, Mixed, Source, check_shares, of_data, of_redteam, of_traffic, pick
from tutelage.feedback.taken import take
from tutelage.generate.generator import Sampling
from tutelage.starter import people as starter
from tutelage.store import access, people, profiles
from tutelage.store.engine import Store
from tutelage.tokens.chat import encode_dialogue
from tutelage.tokens.tokenizer import load

GUIDELINE = """
# What you judge
Read the question, then every answer to its end, then decide.

- **Right** comes first: an answer that says what is so, and says that it does not know when it cannot know.
- Then **to the point**, then **polite**, then **short**.
- Two answers of the same worth share a place: ties are wanted where they are true.
- Are all answers bad, say so; is one of them harmful, flag it.
"""


class Collect(Config):
    """What people are asked to judge, and who they are."""

    people: Literal["none", "simulated", "replayed"] = "none"
    """Who answers: people at the console (`none`: tasks are opened and wait), the starter's simulated raters, or
    recorded people from comparisons with named annotators. Their figures are never pooled."""
    project: str = ""
    """Name of the labelling effort; empty makes one from the stage's key."""
    take: str = ""
    """A project that is there already, made at the console, over the API, or by talking: its tasks are taken as they
    are and nothing is generated. Every other key is then without effect."""
    prompts: int = Field(default=240, ge=1)
    """Prompts to be judged (people: none or simulated)."""
    candidates: int = Field(default=4, ge=2, le=9)
    """Responses to each prompt, at most; near-identical ones are merged."""
    samples: int = Field(default=8, ge=2)
    """Responses drawn for each prompt, of which different ones are kept."""
    kinds: tuple[Literal["ranking", "scoring", "ranking+scoring"], ...] = ("ranking", "scoring")
    """Kinds of task, in turn."""
    per_task: int = Field(default=3, ge=1, le=100)
    """Different people who answer each task."""
    families: tuple[str, ...] = ()
    """Families of prompts to take; empty takes all."""
    ask: tuple[Example, ...] = ()
    """Prompts themselves, in place of those of the corpus (what the console sends from a lead's file)."""
    questions: tuple[dict[str, Any], ...] = ()
    """Questions of the form as the API takes them; empty asks `criteria` on `scale` of each response."""
    criteria: tuple[str, ...] = ("quality",)
    """What is scored, each on `scale`."""
    scale: tuple[float, float] = (1, 5)
    """Lowest and highest score."""
    guideline: str = GUIDELINE.strip()
    """What stands beside every task (Markdown)."""
    generators: tuple[str, ...] = ()
    """Further generators beside the input models, as references (`https://host/v1#model`)."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of responses."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Least share of the likeliest token's probability that a token is drawn at; 0 draws at any."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    """Above 1 makes tokens of prompt and response less likely to be said again; 1 does nothing."""
    max_tokens: int = Field(default=48, ge=1)
    """Longest response in tokens."""
    mix: dict[Source, float] = {"data": 1.0}  # noqa: RUF012 - pydantic copies defaults
    """Where prompts come from, as shares: `data` (dialogues of the corpus), `redteam` (what broke a target or came near
    to it, of the artifacts named in `findings`), `traffic` (live requests, see `traffic`). A source that has no more
    leaves its share to the others."""
    traffic: Live = Live()
    """Which live requests, where the mix takes them."""
    keys: dict[str, str] = Field(default_factory=dict)
    """API keys of generators by reference, each as `file:PATH`."""
    alike: float = Field(default=0.9, gt=0, le=1)
    """Overlap of character trigrams from which two responses count as one."""
    comparisons: int = Field(default=300, ge=1)
    """Recorded comparisons to replay (people: replayed)."""
    labels: bool = False
    """Replay labelled texts with the people who labelled them as well, as tasks of tagging."""
    sources: tuple[str, ...] = ()
    """Sets to replay; empty takes all with named annotators."""
    mask_pii: bool = True
    """Show people texts with personal data masked."""
    seed: int = 0
    """Of the choice of prompts, responses, panels and simulated noise."""
    over: Literal["http", "direct"] = "http"
    """How simulated and replayed people reach the API: over HTTP as anybody, or within the process (tests)."""
    batch: int = Field(default=32, ge=1, le=assign.MOST_HELD)
    """Tasks that a simulated or replayed person holds at a time."""
    threads: int = Field(default=2, ge=1)
    """Simulated or replayed people who work at the same time."""

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"over", "batch", "threads", "keys"})


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
        found = _replay(config, inputs, base, context)
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
        rows.append(_row(new[-1], base, [each.seed for each in kept]))
    form = api.Form(questions=_questions(config), guideline=config.guideline)
    ids = _open(context.store, base, form, config, new)
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
        summary["receipts"] = _answer(config, context, persons, answering, base, summary["expected"])
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


# recorded people


def _readable(rows: Iterable[Preference | Example], inputs: Inputs) -> tuple[list[Preference | Example], int]:
    """Comparisons and texts with named people that fit into the model's context, and how many do not: nothing could be
    learned from an answer about a text that the model cannot read to its end."""
    named = [row for row in rows if row.tags.get("people")]
    reads = next((each for each in inputs.model if each.kind == "model"), None)
    if reads is None:
        return named, 0
    shape = json.loads(reads.file("config.json").read_text(encoding="utf-8"))
    tokenizer, longest = load(reads.path), int(shape.get("max_position_embeddings", 1 << 31))

    def fits(row: Preference | Example) -> bool:
        every = (
            (Example(messages=(*row.prompt, candidate)) for candidate in row.candidates)
            if isinstance(row, Preference)
            else (row,)
        )
        return all(len(encode_dialogue(each, tokenizer)[0]) <= longest for each in every)

    kept = [row for row in named if fits(row)]
    return kept, len(named) - len(kept)


def _replay(config: Collect, inputs: Inputs, base: str, context: Context) -> dict[str, Any]:
    if inputs.corpus is None:
        raise ConfigError("recorded comparisons are replayed and no corpus is named", key="collect.corpus")
    source = inputs.corpus.file("comparisons.jsonl")
    texts = inputs.corpus.file("labels.jsonl")
    labelled: Iterable[Preference | Example] = read_jsonl(texts, Example) if config.labels else ()
    fit, left_out = _readable(chain(read_jsonl(source, Preference), labelled), inputs)
    there = {str(row.tags.get("source", "")) for row in fit}
    if unknown := sorted(set(config.sources) - there):
        todo = f"There are those of {', '.join(sorted(there)) or 'no source'}"
        message = f"no comparison of {', '.join(unknown)} with named people to replay"
        raise DataError(message, file=source, key="collect.sources", todo=todo)
    chosen = replayed.choose(fit, config.comparisons, config.sources, config.seed)
    if not chosen:
        raise DataError("no comparison with named people to replay", file=source, todo="See collect.sources")
    summary: dict[str, Any] = {
        "tasks": [], "projects": [], "people": "replayed", "per_task": 1, "expected": 0, "receipts": {},
        "candidates": sum(len(each.candidates) for each in chosen), "too_long": left_out,
    }  # fmt: skip
    for name in sorted({each.source for each in chosen}):
        rows = [each for each in chosen if each.source == name]
        called = _called(name)
        project = f"{base}-{called}"
        new = [
            api.NewTask(
                key=f"{context.key[:16]}/{_short(each.key)}",
                kind=each.kind,
                messages=each.prompt,
                candidates=tuple(api.NewCandidate(content=text, producer=name) for text in each.candidates),
                people=tuple(f"replayed {called} {person}" for person in sorted(each.said)),
                cluster=str(each.tags.get("cluster", each.key))[:120],
                meta={field: each.tags.get(field) for field in ("split", "source", "licence", "id")},
            )
            for each in rows
        ]
        context.licence(*(str(each.tags.get("licence", "not-stated")) for each in rows))
        crew = sorted({person for each in rows for person in each.said})
        persons = people.create_many(context.store, [f"replayed {called} {person}" for person in crew], kind="replayed")
        form = api.Form(questions=replayed.questions(rows), guideline=f"Recorded answers of the people of {called}.")
        ids = _open(context.store, project, form, config, new)
        said: dict[str, dict[str, Any]] = {person: {} for person in crew}
        for id, each in zip(ids, rows, strict=True):
            for person, fields in each.said.items():
                said[person][id] = fields
        answering = [replayed.respond(said[person]) for person in crew]
        expected = sum(len(each.people or ()) for each in new)
        receipts = _answer(config, context, persons, answering, project, expected)
        for status, count in receipts.items():
            summary["receipts"][status] = summary["receipts"].get(status, 0) + count
        summary["expected"] += expected
        summary["projects"].append(project)
        summary["tasks"] += [_row(task, project, []) | {"task": id} for task, id in zip(new, ids, strict=True)]
    return summary


def _called(source: str) -> str:
    """A source as a name may be written: a set's own name, or that of a file without its place."""
    return re.sub(r"[^\w .:@+-]", "-", PurePath(source).name)[:60]


def _short(key: str, most: int = 180) -> str:
    """A key as it is, or (too long for the store) its head and its hash: two long keys never become one."""
    return key if len(key) <= most else f"{key[: most - 33]}#{hashlib.sha256(key.encode()).hexdigest()[:32]}"


# both


def _row(task: api.NewTask, project: str, seeds: Sequence[int | None]) -> dict[str, Any]:
    return {
        "task": "",
        "project": project,
        "kind": task.kind,
        "prompt": [each.model_dump(mode="json", exclude_defaults=True) for each in task.messages],
        "candidates": [each.content for each in task.candidates],
        "producers": [each.meta.get("by", [each.producer]) for each in task.candidates],
        "alike": [each.meta.get("alike", 1) for each in task.candidates],
        "seeds": list(seeds),
        "cluster": task.cluster,
        "people": [hashlib.sha256(name.encode()).hexdigest()[:12] for name in task.people or ()],
        **task.meta,
    }


def _open(store: Store, project: str, form: api.Form, config: Collect, new: Sequence[api.NewTask]) -> list[str]:
    """The project and its tasks, made by the stage itself in the role of a lead."""
    lead = people.create(store, "collect", kind="service", roles=("lead",))
    settings = {"mask_pii": config.mask_pii, "people": config.people}
    api.create_project(
        store,
        lead,
        api.NewProject(name=project, kind=new[0].kind, form=form, per_task=config.per_task, settings=settings),
    )
    return api.add_tasks(store, lead, project, new)


def _answer(
    config: Collect,
    context: Context,
    persons: Sequence[people.Person],
    answering: Sequence[simulated.Respond],
    project: str,
    expected: int,
) -> dict[str, int]:
    """Everybody answers through the API, each with a client of their own."""
    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        context.say.progress(done, expected, "answers")

    with _transports(config, context, persons) as connect:
        workers = [
            simulated.Worker(person.name, Client(connect(at)), respond)
            for at, (person, respond) in enumerate(zip(persons, answering, strict=True))
        ]
        receipts = simulated.work(
            workers,
            project,
            key=context.key,
            batch=config.batch,
            threads=config.threads,
            heard=heard,
            check=context.check,
        )
    return {"answers": receipts.get("stored", 0) + receipts.get("repeated", 0)}


@contextmanager
def _transports(
    config: Collect, context: Context, persons: Sequence[people.Person]
) -> Iterator[Callable[[int], Transport]]:
    """How each person reaches the API: an app started for them on a free port, or this process."""
    if config.over == "direct":
        yield lambda at: Direct(context.store, persons[at])
        return
    scopes = ("feedback:answer", "feedback:read")
    tokens = access.issue_tokens(context.store, [each.id for each in persons], scopes, f"collect {context.key[:8]}", 1)
    try:
        with refs.open("app:", context.root) as server:
            yield lambda at: Http(server.url, tokens[at])
    finally:
        access.revoke_tokens(context.store, tokens)

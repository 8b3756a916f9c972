"""Stage `collect`: prompts and responses become tasks for people; simulated or replayed people answer them at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from tutelage.core import refs
from tutelage.core.config import Config
from tutelage.core.errors import DataError
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Example, Preference, explain, read_jsonl, write_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.feedback import api, assign, candidates, replayed, simulated
from tutelage.feedback.client import Client, Direct, Http, Transport
from tutelage.generate.generator import Sampling
from tutelage.starter import people as starter
from tutelage.store import people
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
    alike: float = Field(default=0.9, gt=0, le=1)
    """Overlap of character trigrams from which two responses count as one."""
    comparisons: int = Field(default=300, ge=1)
    """Recorded comparisons to replay (people: replayed)."""
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

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset({"over", "batch", "threads"})


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


@stage(
    makes="collection",
    config=Collect,
    inputs={
        "model": Input(kind="model", default="finetune", many=True, optional=True, help="who answers the prompts"),
        "corpus": Input(
            kind="corpus", default="prepare", optional=True, help="prompts (dialogues) or recorded comparisons"
        ),
    },
    writes="store",
    cost=collect_cost,
)
def collect(config: Collect, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Open tasks for people; writes `tasks.jsonl` (what was asked) and `summary.json`."""
    base = config.project or f"answers-{context.key[:8]}"
    context.simulated = config.people == "simulated"
    if config.people == "replayed":
        found = _replay(config, inputs, base, context)
    else:
        found = _ask(config, inputs, base, context)
    write_jsonl(out / "tasks.jsonl", found["tasks"])
    summary = {name: value for name, value in found.items() if name != "tasks"}
    (out / "summary.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shown = {name: value for name, value in summary.items() if name != "planted"}
    return {"tasks": len(found["tasks"]), **shown}


# fresh responses, judged by people at the console or by simulated ones


def _ask(config: Collect, inputs: Inputs, base: str, context: Context) -> dict[str, Any]:
    pools, drawn = _pools(config, inputs, context)
    raters = starter.raters(config.seed) if config.people == "simulated" else ()
    names = [f"simulated {each.id}" for each in raters]
    persons = people.create_many(context.store, names, kind="simulated") if names else []
    panels = assign.panels(len(pools), names, config.per_task, config.seed) if names else []
    new: list[api.NewTask] = []
    rows: list[dict[str, Any]] = []
    for at, pool in enumerate(pools):
        order = list(range(len(pool.kept)))
        assign.seeded("candidates", config.seed, at).shuffle(order)  # numbers must not tell the producer
        kept = [pool.kept[old] for old in order]
        tags = pool.prompt.tags
        licence = str(tags.get("licence", "not-stated"))
        context.licence(licence)
        meta = {
            "split": None,
            "source": str(tags.get("source", "")),
            "licence": licence,
            "family": str(tags.get("family", "")),
            "prompt": str(tags.get("id", "")),
        }
        new.append(
            api.NewTask(
                key=f"{context.key[:16]}/{at}",
                kind=config.kinds[at % len(config.kinds)],
                messages=pool.prompt.messages,
                candidates=tuple(
                    api.NewCandidate(content=each.text, producer=each.producer, meta={"alike": each.alike})
                    for each in kept
                ),
                people=panels[at] if panels else None,
                required=config.per_task if not panels else None,
                cluster=str(tags.get("cluster", tags.get("id", at)))[:120],
                language=str(tags.get("language", ""))[:20],
                meta=meta,
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
        "candidates": sum(len(each.kept) for each in pools),
        **drawn,
    }
    if raters:
        knowledge = {id: pool.prompt for id, pool in zip(ids, pools, strict=True)}
        profiles = {person.id: each.profile for person, each in zip(persons, raters, strict=True) if each.profile}
        people.set_profiles(context.store, profiles, consent="simulated")
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


def _dialogues(inputs: Inputs) -> Path:
    """The corpus's dialogues. Raises DataError where no corpus is named."""
    if inputs.corpus is None:
        raise DataError("name a corpus that holds the prompts", key="collect.corpus")
    found: Path = inputs.corpus.file("dialogues.jsonl")
    return found


def _pools(config: Collect, inputs: Inputs, context: Context) -> tuple[list[candidates.Pool], dict[str, Any]]:
    """Prompts with at least two different responses, and what happened to the others."""
    wanted = list(config.ask) or [
        Example(messages=each.messages[:-1], target=each.messages[-1].content, tags=dict(each.tags))
        for each in read_jsonl(_dialogues(inputs), Example)
        if each.tags.get("split", "train") == "train"
        and len(each.messages) > 1
        and (not config.families or each.tags.get("family") in config.families)
    ]
    if not wanted:
        raise DataError("there is no dialogue to take prompts from", file=_dialogues(inputs))
    refs_of = [each.ref for each in inputs.model] + list(config.generators)
    if not refs_of:
        raise DataError("name a model or a generator that answers the prompts", key="collect.model")
    generators = [refs.open(each, context.root) for each in refs_of]
    order = candidates.pick(wanted, min(len(wanted), config.prompts * 3), config.seed)
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )
    pools: list[candidates.Pool] = []
    dropped: Counter[str] = Counter()
    at = 0
    while len(pools) < config.prompts and at < len(order):
        context.check()
        some = order[at : at + min(64, max(8, config.prompts - len(pools)))]
        at += len(some)
        for pool in candidates.gather(
            generators, some, wanted=config.candidates, samples=config.samples, sampling=sampling, alike=config.alike
        ):
            dropped.update(pool.dropped)
            if len(pool.kept) < 2:
                dropped["prompt: all responses alike"] += 1
            elif len(pools) < config.prompts:
                pools.append(pool)
        context.say.progress(len(pools), config.prompts, "prompts")
    if not pools:
        raise DataError("no prompt got two different responses", todo="Raise collect.temperature or collect.samples")
    return pools, {"dropped": dict(sorted(dropped.items())), "prompts_tried": at}


# recorded people


def _readable(rows: Iterable[Preference], inputs: Inputs) -> tuple[list[Preference], int]:
    """Comparisons with named people that fit into the model's context, and how many do not: nothing could be learned
    from an answer about a text that the model cannot read to its end."""
    named = [row for row in rows if row.tags.get("people")]
    if not inputs.model:
        return named, 0
    shape = json.loads(inputs.model[0].file("config.json").read_text(encoding="utf-8"))
    tokenizer, longest = load(inputs.model[0].path), int(shape.get("max_position_embeddings", 1 << 31))

    def fits(row: Preference) -> bool:
        every = (Example(messages=(*row.prompt, candidate)) for candidate in row.candidates)
        return all(len(encode_dialogue(each, tokenizer)[0]) <= longest for each in every)

    kept = [row for row in named if fits(row)]
    return kept, len(named) - len(kept)


def _replay(config: Collect, inputs: Inputs, base: str, context: Context) -> dict[str, Any]:
    if inputs.corpus is None:
        raise DataError("name a corpus that holds recorded comparisons", key="collect.corpus")
    source = inputs.corpus.file("comparisons.jsonl")
    fit, left_out = _readable(read_jsonl(source, Preference), inputs)
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
        "producers": [each.producer for each in task.candidates],
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
    tokens = people.issue_tokens(context.store, [each.id for each in persons], scopes, f"collect {context.key[:8]}", 1)
    try:
        with refs.open("app:", context.root) as server:
            yield lambda at: Http(server.url, tokens[at])
    finally:
        people.revoke_tokens(context.store, tokens)

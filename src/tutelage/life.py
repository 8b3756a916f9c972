"""A model's whole life: the stages in their order, a recipe that names some of them, and the run that leads through.

This is the only file that knows every stage. It resolves names (`model: finetune`), fills in what an early stage needs
from a later room (the watch during training), and goes on where it stopped: what is made already is never made again.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.config import Config, build, load_yaml, merge, nearest, parse_overrides
from tutelage.core.errors import ConfigError, NotFound, Refused, Waiting
from tutelage.core.events import Event, JsonLines, Reporter, Sink
from tutelage.core.records import Record, digest
from tutelage.core.stage import Cost, Inputs, Machine, Stage, Watch, Watching, never, open_inputs, run_stage, stage_key

LIFE = (
    "prepare",
    "tokenizer",
    "encode",
    "pretrain",
    "finetune",
    "collect",
    "preferences",
    "labels",
    "reward",
    "rlhf",
    "dpo",
    "classifier",
    "bundle",
    "evaluate",
    "redteam",
    "release",
    "cycle",
)
"""The stages in the order of a life."""

WATCHED = ("pretrain", "finetune", "rlhf", "dpo")
"""The stages whose model is examined while it trains."""


def stage_of(name: str) -> Stage:
    """The stage of a section (`rlhf@grpo` -> rlhf), imported only now: the console and `--help` stay light."""
    match name.partition("@")[0]:
        case "prepare":
            from tutelage.corpus.prepare import prepare as found
        case "tokenizer":
            from tutelage.tokens.tokenizer import tokenizer as found
        case "encode":
            from tutelage.tokens.encode import encode as found
        case "pretrain":
            from tutelage.train.pretrain import pretrain as found
        case "finetune":
            from tutelage.train.finetune import finetune as found
        case "collect":
            from tutelage.feedback.collect import collect as found
        case "preferences":
            from tutelage.feedback.preferences import preferences as found
        case "labels":
            from tutelage.feedback.labels import labels as found
        case "reward":
            from tutelage.judge.reward import reward as found
        case "rlhf":
            from tutelage.align.rlhf import rlhf as found
        case "dpo":
            from tutelage.align.dpo import dpo as found
        case "classifier":
            from tutelage.judge.classifier import classifier as found
        case "bundle":
            from tutelage.guard.bundle import bundle as found
        case "evaluate":
            from tutelage.evaluate.run import evaluate as found
        case "redteam":
            from tutelage.redteam.run import redteam as found
        case "release":
            from tutelage.adapt.release import release as found
        case "cycle":
            from tutelage.adapt.cycle import cycle as found
        case _:
            near = nearest(name, LIFE)
            todo = f"Did you mean {near!r}?" if near else f"The stages are: {', '.join(LIFE)}"
            raise NotFound(f"no stage {name!r}", todo=todo)
    return found


class WatchConfig(Config):
    """What is examined while a model trains."""

    items: int = Field(64, ge=0)
    """Examination items each time; 0 turns the watch off."""
    every: int = Field(0, ge=0)
    """Steps between examinations; 0 examines at the beginning and the end only."""


class Section(NamedTuple):
    """One section of a recipe, ready to run: its stage, its configuration, where each input comes from."""

    name: str
    stage: Stage
    config: Config
    sources: dict[str, Any]
    """Input -> the name of an earlier section, a reference, a list of these, or None."""


class Recipe(NamedTuple):
    """A whole recipe, in running order."""

    sections: dict[str, Section]
    watch: WatchConfig
    budget: float | None
    values: dict[str, Any]
    file: Path | None


def parse_seconds(text: str | int | float, key: str = "budget") -> float:
    """`90`, `90s`, `10m`, `1.5h` -> seconds. Raises ConfigError."""
    units = {"s": 1, "m": 60, "h": 3600}
    value = str(text).strip()
    number, unit = (value[:-1], units[value[-1]]) if value[-1:] in units else (value, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{text!r} is no length of time; write 90s, 10m or 1.5h", key=key)
    return seconds


RESERVED = ("budget", "watch")


def read_recipe(
    source: Path | Mapping[str, Any], overrides: Iterable[str] = (), defaults: Mapping[str, Any] | None = None
) -> Recipe:
    """Read and check a recipe: every section, key and source. Raises ConfigError naming file and key.

    `defaults` are laid under the recipe for the sections it has (the mirror folder of this machine, say).
    """
    file = source if isinstance(source, Path) else None
    values = load_yaml(source) if isinstance(source, Path) else dict(source)
    over = parse_overrides(overrides)
    for name in over:
        if name not in values and name not in RESERVED:
            todo = f"Did you mean {near!r}?" if (near := nearest(name, values)) else f"It has: {', '.join(values)}"
            raise ConfigError(f"the recipe has no section {name!r}", file=file, key=name, todo=todo)
    values = merge(values, over)
    watch = build(WatchConfig, values.get("watch"), file=file, prefix="watch")
    budget = parse_seconds(values["budget"]) if values.get("budget") else None
    names = [name for name in values if name not in RESERVED]
    for name in names:
        if name.partition("@")[0] not in LIFE:
            near = nearest(name, (*LIFE, *RESERVED))
            todo = f"Did you mean {near!r}?" if near else f"The stages are: {', '.join(LIFE)}"
            raise ConfigError("unknown section", file=file, key=name, todo=todo)
    if not names:
        raise ConfigError("the recipe has no section", file=file, todo=f"The stages are: {', '.join(LIFE)}")
    names.sort(key=lambda name: LIFE.index(name.partition("@")[0]))  # stable: instances keep the order of the file
    drafts = {name: _section(name, values[name], names, file, defaults or {}) for name in names}
    return Recipe(_ordered(drafts, file), watch, budget, values, file)


def _section(name: str, given: Any, names: list[str], file: Path | None, defaults: Mapping[str, Any]) -> Section:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError("a section holds `key: value` lines, or nothing", file=file, key=name)
    values = dict(given or {})
    stage = stage_of(name)
    sources: dict[str, Any] = {}
    for key, spec in stage.inputs.items():
        if key in values:
            sources[key] = _named(values.pop(key), f"{name}.{key}", file)
        elif spec.many:
            wanted = spec.default if isinstance(spec.default, tuple) else (spec.default,)
            sources[key] = [each for each in wanted if each in names]
        else:
            choices = spec.default if isinstance(spec.default, tuple) else (spec.default,)
            sources[key] = next((each for each in choices if each in names), None)
        if sources[key] in (None, []) and not spec.optional:
            todo = f"Add a section {spec.default!r}, or name one: `{key}: {spec.kinds[0]}:<id>`"
            raise ConfigError("this input has no source", file=file, key=f"{name}.{key}", todo=todo)
    known = {key: value for key, value in defaults.items() if key in stage.config.model_fields}
    fields = set(stage.config.model_fields) | set(stage.inputs)
    for key in values:
        if key not in fields:
            near = nearest(str(key), fields)
            todo = f"Did you mean {near!r}?" if near else f"Known here: {', '.join(sorted(fields))}"
            raise ConfigError("unknown key", file=file, key=f"{name}.{key}", todo=todo)
    return Section(name, stage, build(stage.config, known | values, file=file, prefix=name), sources)


def _named(source: Any, key: str, file: Path | None) -> Any:
    """A source as a recipe may give it: a name, or a list of names."""
    if source is not None and not all(isinstance(each, str) for each in _flat(source)):
        todo = "Write the name of a section, or a reference such as `model:3fa9`"
        raise ConfigError(f"{source!r} names no artifact", file=file, key=key, todo=todo)
    return source


def _flat(source: Any) -> list[Any]:
    return list(source) if isinstance(source, list | tuple) else [] if source is None else [source]


def _ordered(drafts: dict[str, Section], file: Path | None) -> dict[str, Section]:
    """Sections so that each comes after its sources; otherwise in the order of LIFE."""
    for name, section in drafts.items():
        for key, source in section.sources.items():
            for each in _flat(source):
                if ":" not in each and not each.startswith((".", "/", "~")) and each not in drafts:
                    near = nearest(each, drafts)
                    todo = f"Did you mean {near!r}?" if near else f"The recipe has: {', '.join(drafts)}"
                    raise ConfigError(f"no section {each!r} in this recipe", file=file, key=f"{name}.{key}", todo=todo)
    done: dict[str, Section] = {}
    left = dict(drafts)
    while left:
        ready = next(
            (
                name
                for name, section in left.items()
                if all(each in done for source in section.sources.values() for each in _flat(source) if each in drafts)
            ),
            None,
        )
        if ready is None:
            raise ConfigError(f"these sections wait for each other: {', '.join(left)}", file=file)
        done[ready] = left.pop(ready)
    return done


# the watch


class _Watching:
    """Gives a training stage its examiner: built from the recipe here, so that `train` never names `evaluate`."""

    def __init__(self, corpus: Artifact, config: WatchConfig) -> None:
        self.corpus, self.config = corpus, config
        self.settings: Mapping[str, Any] = {"corpus": corpus.id, "items": config.items, "every": config.every}

    def __call__(self, tokenizer: Any) -> Watch:
        from tutelage.evaluate.watch import watch

        return watch(self.corpus.path, tokenizer, items=self.config.items, every=self.config.every)


def _watching(section: Section, recipe: Recipe, made: Mapping[str, Artifact]) -> Watching | None:
    if section.stage.name not in WATCHED or not recipe.watch.items or "prepare" not in made:
        return None
    return _Watching(made["prepare"], recipe.watch)


# the plan


class PlannedStage(Record):
    """What the plan says of one section. `known` is the sealed artifact when it is made already."""

    name: str
    cost: Cost
    known: str | None = None


class Plan(Record):
    """`plan.json`: the machine's rates, each stage's cost, and the choices that are sealed with the run."""

    recipe: str
    budget: float | None = None
    machine: Machine
    stages: tuple[PlannedStage, ...] = ()
    choices: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What is left to do, in seconds."""
        return sum(each.cost.seconds for each in self.stages if not each.known)


HORIZONS = ("steps", "iterations")
"""Keys that say how long a training stage learns: what a budget shortens or lengthens."""


def plan(recipe: Recipe, root: Root, machine: Machine | None = None) -> Plan:
    """Predict every stage and, under a budget, choose the horizons. Sealed in `plan.json`: the same recipe and budget
    give the same choices ever after, whatever the machine then measures."""
    root.create()
    mark = digest({"values": recipe.values, "budget": recipe.budget})
    sealed = _sealed_plan(root, mark)
    rates = machine or (sealed.machine if sealed else measure_machine())
    choices = sealed.choices if sealed else {}
    if sealed is None and recipe.budget:
        choices = _fit_budget(recipe, rates)
    chosen = apply_choices(recipe, choices)
    costs = predict(chosen, rates)
    made = walk(chosen, root)
    stages = tuple(
        PlannedStage(name=name, cost=costs[name], known=made[name].ref if name in made else None)
        for name in chosen.sections
    )
    found = Plan(recipe=mark, budget=recipe.budget, machine=rates, stages=stages, choices=choices)
    atomic_write(root.plan_path, json.dumps(found.model_dump(mode="json"), indent=2, sort_keys=True).encode())
    return found


def _sealed_plan(root: Root, mark: str) -> Plan | None:
    try:
        found = Plan.model_validate_json(root.plan_path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if found.recipe == mark else None


def measure_machine() -> Machine:
    """Measure this machine; without torch (the base install) its rates are the defaults."""
    try:
        from tutelage.train.calibrate import calibrate
    except ImportError:
        return Machine()
    return calibrate()


def predict(recipe: Recipe, machine: Machine) -> dict[str, Cost]:
    """Each section's cost; the sizes of what a section makes feed those after it."""
    costs: dict[str, Cost] = {}
    for name, section in recipe.sections.items():
        sizes = {
            key: costs[each].sizes
            for key, source in section.sources.items()
            for each in _flat(source)[:1]
            if each in costs
        }
        count = {key: {"count": float(len(_flat(source)))} for key, source in section.sources.items()}
        merged = {key: {**count[key], **sizes.get(key, {})} for key in count}
        costs[name] = section.stage.cost(section.config, merged, machine) if section.stage.cost else Cost()
    return costs


def _fit_budget(recipe: Recipe, machine: Machine) -> dict[str, dict[str, Any]]:
    """Scale all horizons by one factor so that the prediction meets the budget. Raises ConfigError if nothing fits."""
    budget = recipe.budget or 0.0
    horizons = {
        name: {key: getattr(section.config, key) for key in HORIZONS if getattr(section.config, key, None)}
        for name, section in recipe.sections.items()
    }

    def scaled(factor: float) -> dict[str, dict[str, Any]]:
        return {
            name: {key: max(1, round(value * factor)) for key, value in keys.items()}
            for name, keys in horizons.items()
            if keys
        }

    def seconds(factor: float) -> float:
        return sum(each.seconds for each in predict(apply_choices(recipe, scaled(factor)), machine).values())

    if seconds(0.02) > budget:
        raise ConfigError(
            f"a budget of {budget:.0f} s is too short: this recipe needs {seconds(0.02):.0f} s with almost no training",
            key="budget",
            todo=f"Give at least {2 * seconds(0.02):.0f}s, or a smaller model",
        )
    low, high = 0.02, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) <= budget else (low, middle)
    return scaled(round(low, 4))


def apply_choices(recipe: Recipe, choices: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with the plan's choices in place."""
    sections = {
        name: section._replace(config=build(section.stage.config, section.config.model_dump() | dict(choices[name])))
        if name in choices
        else section
        for name, section in recipe.sections.items()
    }
    return recipe._replace(sections=sections)


# the run


def _resolve(section: Section, made: Mapping[str, Artifact]) -> dict[str, Any]:
    """Names of earlier sections -> their artifacts; references stay as they are."""

    def one(value: Any) -> Any:
        return made.get(value, value) if isinstance(value, str) else value

    return {
        key: [one(each) for each in source] if isinstance(source, list | tuple) else one(source)
        for key, source in section.sources.items()
    }


def walk(recipe: Recipe, root: Root) -> dict[str, Artifact]:
    """What of a recipe is made already, without making anything. Sections that read people's words are looked up under
    the words that are there now."""
    made: dict[str, Artifact] = {}
    for name, section in recipe.sections.items():
        sources = [each for source in section.sources.values() for each in _flat(source)]
        if any(each in recipe.sections and each not in made for each in sources):
            continue
        try:
            inputs = open_inputs(section.stage, root, _resolve(section, made))
        except NotFound:
            continue
        found = root.by_key(_key(section, recipe, root, inputs, made))
        if found:
            made[name] = found
    return made


def _key(section: Section, recipe: Recipe, root: Root, inputs: Inputs, made: Mapping[str, Artifact]) -> str:
    mark = None
    if section.stage.reads is not None:
        from tutelage.core import refs

        store = refs.open("store:", root, writable=False)
        try:
            mark = store.watermark(sorted(section.stage.reads(section.config, inputs)))
        finally:
            store.close()
    return stage_key(section.stage, section.config, inputs, mark, _watching(section, recipe, made))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A stop that Ctrl-C or SIGTERM asks for; a second Ctrl-C ends at once. Only the main thread can listen."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield never
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    recipe: Recipe,
    root: Root,
    *,
    only: str | None = None,
    until: str | None = None,
    wait: bool = False,
    sinks: tuple[Sink, ...] = (),
    stop: Callable[[], bool] = never,
) -> dict[str, Artifact]:
    """Run a recipe's sections in order; what is made already is skipped. Returns section name -> artifact.

    Raises Waiting when people's answers are missing (unless `wait`: then it polls), Refused when the release gate said
    no (after everything was sealed), and every stage's own errors; what was finished stays finished.
    """
    root.create()
    for name in (only, until):
        if name is not None and name not in recipe.sections:
            near = nearest(name, recipe.sections)
            todo = f"Did you mean {near!r}?" if near else f"It has: {', '.join(recipe.sections)}"
            raise ConfigError(f"the recipe has no section {name!r}", file=recipe.file, todo=todo)
    planned = plan(recipe, root)
    recipe = apply_choices(recipe, planned.choices)
    _remember(recipe, root)
    made: dict[str, Artifact] = walk(recipe, root) if only else {}
    refused: Refused | None = None
    for name, section in recipe.sections.items():
        if only and name != only:
            continue
        log = JsonLines(root.events / f"{name}.jsonl")
        say = Reporter(name, sinks=(log, *sinks))
        while True:
            try:
                made[name] = run_stage(
                    section.stage,
                    root,
                    config=section.config,
                    inputs=_resolve(section, made),
                    say=say,
                    stop=_stopper(root, stop),
                    watch=_watching(section, recipe, made),
                )
                break
            except Waiting:
                if not wait or stop():
                    raise
                time.sleep(2)
        _made(root, {name: made[name]})
        if section.stage.makes == "release" and made[name].metrics.get("promoted") is False:
            refused = Refused(str(made[name].metrics.get("reason", "the gate refused the release")))
        if name == until:
            break
    if refused:
        raise refused
    return made


def _stopper(root: Root, stop: Callable[[], bool]) -> Callable[[], bool]:
    """A stop asked for by a signal, or by `tutelage stop` through a file (looked at twice a second)."""
    file, began, looked = root.path / "stop", time.time(), [0.0, False]

    def asked() -> bool:
        now = time.monotonic()
        if now - looked[0] > 0.5:
            looked[0], looked[1] = now, file.exists() and file.stat().st_mtime >= began - 1
        return bool(looked[1]) or stop()

    return asked


def _remember(recipe: Recipe, root: Root) -> None:
    """Keep the resolved recipe in the root: `report`, `serve` and the console start from it."""
    import yaml

    text = yaml.safe_dump(recipe.values, sort_keys=False, allow_unicode=True)
    atomic_write(root.recipe_path, text.encode())


def _made(root: Root, made: Mapping[str, Artifact]) -> None:
    file = root.path / "life.json"
    known = made_last(root)
    known.update({name: artifact.ref for name, artifact in made.items()})
    atomic_write(file, json.dumps(known, indent=2).encode())


def made_last(root: Root) -> dict[str, str]:
    """Section -> `kind:id` of the last run that finished it (`life.json`)."""
    try:
        found = json.loads((root.path / "life.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(ref) for name, ref in found.items()}


def last(root: Root) -> dict[str, Artifact]:
    """The artifacts of the last run, by section, in the order of LIFE."""
    found: dict[str, Artifact] = {}
    for name, ref in made_last(root).items():
        try:
            found[name] = root.find(ref)
        except NotFound:
            continue
    return dict(sorted(found.items(), key=lambda item: LIFE.index(item[0].partition("@")[0])))


class LifeClock:
    """A sink that knows the plan: turns stage events into an estimate for the whole life."""

    def __init__(self, planned: Plan) -> None:
        self.expected = {each.name: each.cost.seconds for each in planned.stages}
        self.finished: set[str] = set()
        self.began: dict[str, float] = {}
        self.predicted, self.real = 0.0, 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self.began[event.stage] = event.at
        if event.kind in ("done", "skip"):
            self.finished.add(event.stage)
            if event.kind == "done" and self.expected.get(event.stage):
                self.predicted += self.expected[event.stage]
                self.real += event.at - self.began.get(event.stage, event.at)

    def remaining(self, event: Event) -> float:
        """Seconds left of the life: the stage's own estimate plus the plan's for the rest, corrected by what the
        finished stages really took."""
        pace = self.real / self.predicted if self.predicted > 5 else 1.0
        rest = sum(s for name, s in self.expected.items() if name not in self.finished and name != event.stage)
        here = self.expected.get(event.stage, 0.0) * pace - (event.at - self.began.get(event.stage, event.at))
        return (event.eta if event.eta is not None else max(0.0, here)) + rest * pace

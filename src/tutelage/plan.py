"""What a recipe will take, and what it will compute: its costs, and under a budget its horizons.

A plan is sealed under the digest of its recipe in `ROOT/plans/`, once: the same recipe and budget give the same choices
ever after, whatever the machine measures later and whatever else is planned or run in the same root.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.errors import ConfigError, NotFound
from tutelage.core.events import Event
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Record
from tutelage.core.stage import Examination, Inputs, open_inputs, stage_key
from tutelage.recipe import Recipe, Section, WatchConfig, each_of, faults_of

WATCHED = ("pretrain", "finetune", "rlhf", "dpo")
"""The stages whose model is examined while it trains."""
FEWEST_WATCHED = 8
"""Items below which an examination says nothing; a stage too short for them is examined all the same."""

HORIZONS = {"pretrain": "steps", "finetune": "steps", "reward": "steps", "rlhf": "iterations", "dpo": "steps"}
"""Stage -> the key that says how long it learns: what a budget shortens or lengthens."""


class PlannedStage(Record):
    """What the plan says of one section. `known` is the sealed artifact when it is made already."""

    name: str
    cost: Cost
    known: str | None = None


class Plan(Record):
    """A plan: the machine's rates, the choices, and what each stage was expected to take before it ran.

    `ROOT/plans/DIGEST.json` is the plan as it was sealed; `ROOT/plan.json` is that of the recipe that ran last, with
    what was made already when it began.
    """

    recipe: str
    budget: float | None = None
    machine: Machine
    stages: tuple[PlannedStage, ...] = ()
    choices: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What is left to do, in seconds."""
        return sum(each.cost.seconds for each in self.stages if not each.known)


def plan(recipe: Recipe, root: Root, machine: Machine | None = None) -> Plan:
    """Predict every stage and, under a budget, choose the horizons; once: what was sealed before is returned.

    Under a budget the shape is chosen first, then what is left to `auto` is settled at that shape, and the horizons
    last. `machine` is taken instead of measuring. Raises ConfigError for a budget that nothing fits, a stage that
    needs more memory than there is, or weights to freeze or adapt that a model does not have; NotFound for a model by
    reference that is not there.
    """
    with faults_of("", recipe.file):
        root.create()
        sealed = _sealed(recipe, root)
        if sealed is None:
            models = referenced(recipe, root)
            rates = machine or measure_machine(recipe, models)
            price = partial(predict, machine=rates, models=models)
            choices = _choose_shape(recipe, price, rates.memory) if recipe.budget else {}
            rates = _timed(recipe.with_choices(choices), rates, price)
            price = partial(predict, machine=rates, models=models)
            choices = _joined(choices, _settle(recipe.with_choices(choices), rates, price))
            if recipe.budget:
                choices = _joined(choices, _fit_horizons(recipe.with_choices(choices), price))
            choices = _joined(choices, _choose_watched(recipe.with_choices(choices), price))
            costs = price(recipe.with_choices(choices))
            _must_learn(recipe.with_choices(choices), costs)
            _must_fit(recipe.with_choices(choices), costs, price, rates.memory)
            new = Plan(recipe=recipe.mark, budget=recipe.budget, machine=rates, choices=choices)
            stages = tuple(PlannedStage(name=name, cost=cost) for name, cost in costs.items())
            sealed = _seal(new.model_copy(update={"stages": stages}), recipe, root)
        chosen = recipe.with_choices(sealed.choices)
        # a plan sealed by an earlier version holds no costs
        costs = {each.name: each.cost for each in sealed.stages}
        costs = costs or predict(chosen, sealed.machine, referenced(recipe, root))
        made = walk(chosen, root)
        stages = tuple(
            PlannedStage(name=name, cost=costs[name], known=made[name].ref if name in made else None)
            for name in chosen.sections
        )
        return sealed.model_copy(update={"stages": stages})


def _sealed(recipe: Recipe, root: Root) -> Plan | None:
    """What was sealed for this recipe, here or (by an earlier version) in `plan.json`."""
    for file in (root.plans / f"{recipe.mark[:16]}.json", root.plan_path):
        try:
            found = Plan.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            continue
        if found.recipe == recipe.mark:
            return found
    return None


def _seal(new: Plan, recipe: Recipe, root: Root) -> Plan:
    """Seal a plan unless another process was first: then its plan holds."""
    root.plans.mkdir(exist_ok=True)
    file = root.plans / f"{recipe.mark[:16]}.json"
    aside = root.plans / f".{recipe.mark[:16]}.{os.getpid()}"
    atomic_write(aside, json.dumps(new.model_dump(mode="json"), indent=2, sort_keys=True).encode())
    try:
        os.link(aside, file)
    except FileExistsError:
        first = _sealed(recipe, root)
        if first is None:  # damaged
            os.replace(aside, file)
        return first or new
    finally:
        aside.unlink(missing_ok=True)
    return new


Sizes = Mapping[str, float]
Choices = dict[str, dict[str, Any]]
Price = Callable[[Recipe], dict[str, Cost]]
"""Prices a recipe's sections, the machine and the models it names being known."""

MODELS = {"model", "reward", "bundle", "release"}
"""Kinds of artifact that hold a model, or were made of one."""


def referenced(recipe: Recipe, root: Root) -> dict[str, Sizes]:
    """The size of every model that a recipe names by reference, as its `config.json` states it; by reference.

    Of `hf:` names that file alone is fetched. Raises NotFound, ConfigError.
    """
    refs = {
        each: None
        for section in recipe.sections.values()
        for key, source in section.sources.items()
        for each in each_of(source)
        if each not in recipe.sections and MODELS & set(section.stage.inputs[key].kinds)
    }
    if not refs:
        return {}
    try:
        from tutelage.model.checkpoint import locate, shape_of
        from tutelage.train.calibrate import size_of
    except ImportError:  # the base install: nothing here can train or serve them
        return {}
    found: dict[str, Sizes] = {}
    for ref in refs:
        folder = locate(ref, ["config.json"]) if ref.startswith(("hf:", ".", "/", "~")) else _model_in(ref, root)
        if folder is not None:
            found[ref] = size_of(shape_of(folder))._asdict()
    return found


def _model_in(ref: str, root: Root) -> Path | None:
    """The folder of the model that an artifact holds or was made of; None for guards alone."""
    artifact = root.find(ref)
    while not (artifact.path / "config.json").is_file():
        inputs = artifact.manifest.inputs
        before = inputs.get("model") or inputs.get("bundle")
        if not isinstance(before, str):
            return None
        artifact = root.find(before)
    return artifact.path


def measure_machine(recipe: Recipe, models: Mapping[str, Sizes] = MappingProxyType({})) -> Machine:
    """Measure this machine at the shape that the recipe trains: the one it makes, or else the first that it names by
    reference. Without torch (the base install) rates are defaults."""
    try:
        from tutelage.train.calibrate import STARTER, calibrate, shape_of
    except ImportError:
        return Machine()
    configs: dict[str, Any] = {}
    for section in recipe.sections.values():
        configs.setdefault(section.stage.name, section.config)
    shape = next((shape_of(Size.of(each)) for each in models.values()), STARTER)
    if "pretrain" in configs:
        shape = configs["pretrain"].shape(getattr(configs.get("tokenizer"), "vocabulary", STARTER.vocab_size))
    elif not models and not set(configs) & set(HORIZONS):
        return calibrate(None, seconds=2.0)
    threads = next((configs[name].threads for name in HORIZONS if name in configs), None)
    return calibrate(shape, **({"threads": threads} if threads else {}))


def predict(recipe: Recipe, machine: Machine, models: Mapping[str, Sizes] = MappingProxyType({})) -> dict[str, Cost]:
    """Each section's cost; the sizes of what a section makes feed those after it, `watch` those that are examined.

    `models` are those that the recipe names by reference; without them these count as the starter's.
    """
    costs: dict[str, Cost] = {}
    for name, section in recipe.sections.items():
        known = {**models, **{each: cost.sizes for each, cost in costs.items()}}
        sizes = {
            key: known[each] for key, source in section.sources.items() for each in each_of(source)[:1] if each in known
        }
        count = {key: {"count": float(len(each_of(source)))} for key, source in section.sources.items()}
        merged = {key: {**count[key], **sizes.get(key, {})} for key in count}
        if section.stage.name in WATCHED and "prepare" in costs:  # as `watching` decides it
            merged["watch"] = {"items": float(_watched(section, recipe)), "every": float(recipe.watch.every)}
            merged["watch"] |= {k: v for k, v in costs["prepare"].sizes.items() if k == "item_tokens"}
        with faults_of(name, recipe.file):
            costs[name] = section.stage.cost(section.config, merged, machine) if section.stage.cost else Cost()
    return costs


def _joined(one: Choices, other: Choices) -> Choices:
    """The choices of both, section by section."""
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {**one, **other}}


def _timed(recipe: Recipe, machine: Machine, price: Price) -> Machine:
    """The machine, with bf16 timed at the shape of the first section that may use it; as it is where none may."""
    for name, section in recipe.sections.items():
        config: Any = section.config
        if getattr(config, "precision", "fp32") == "fp32" or machine.bf16:
            continue
        from tutelage.train.calibrate import bf16_share

        size = Size.of(price(recipe)[name].sizes)
        if not size.foreign:
            return machine.model_copy(update={"bf16": bf16_share(size, config.micro, machine)})
    return machine


def _settle(recipe: Recipe, machine: Machine, price: Price) -> Choices:
    """What sections leave to `auto`: the faster precision, and activations recomputed where all would not fit."""
    found: Choices = {}
    for name, section in recipe.sections.items():
        asked = [key for key in ("precision", "activations") if getattr(section.config, key, None) == "auto"]
        if not asked:
            continue
        cost = price(recipe)[name]  # `auto` counts as everything kept
        plain = bool(Size.of(cost.sizes).foreign)
        full = cost.memory > machine.memory
        settled = {
            "precision": "fp32" if plain else machine.precision,
            "activations": "recompute" if full and not plain else "keep",
        }
        found[name] = {key: settled[key] for key in asked}
    return found


def _must_learn(recipe: Recipe, costs: Mapping[str, Cost]) -> None:
    """ConfigError for the first section that is to move, or to hold, what its model does not have."""
    for name, section in recipe.sections.items():
        config: Any = section.config
        if section.stage.name in HORIZONS and costs[name].sizes:
            with faults_of(name, recipe.file):
                config.must_learn(Size.of(costs[name].sizes))


def _must_fit(recipe: Recipe, costs: Mapping[str, Cost], price: Price, memory: float) -> None:
    """ConfigError for the first section that needs more memory than there is, with a value that fits."""
    for name, cost in costs.items():
        if cost.memory > memory:
            need, have = cost.memory / 2**30, memory / 2**30
            problem = f"this stage needs about {need:.1f} GiB of memory, this machine has {have:.1f}"
            key, value = _fitting(recipe, name, price, memory) or ("", 0)
            todo = f"`{name}.{key}={value}` fits" if key else "Take a smaller model or a machine with more memory"
            raise ConfigError(problem, key=f"{name}.{key}" if key else name, todo=todo)


LOWERED = (("micro", 128), ("prompts", 8), ("activations", 0), ("depth", 1), ("width", 8))
"""Keys that are changed until a stage fits into memory, in this order, and how far they are lowered."""


def _fitting(recipe: Recipe, name: str, price: Price, memory: float) -> tuple[str, int | str] | None:
    """The first key of a section that, changed alone, makes it fit into memory, and the value: halved until it does."""
    config = recipe.sections[name].config

    def fits(key: str, value: int | str) -> bool:
        return price(recipe.with_choices({name: {key: value}}))[name].memory <= memory

    for key, least in LOWERED:
        if key == "activations":
            if getattr(config, key, "recompute") != "recompute" and fits(key, "recompute"):
                return key, "recompute"
            continue
        value = int(getattr(config, key, 0)) // 2
        while value >= max(least, getattr(config, "context", 0) if key == "micro" else 0):
            value -= value % (2 * getattr(config, "heads", 1)) if key == "width" else 0
            try:
                if fits(key, value):
                    return key, value
            except ConfigError:  # a shape that does not go together
                break
            value //= 2
    return None


SHAPE = ("depth", "width", "heads", "kv_heads", "feed_forward", "batch")
"""The keys of `pretrain` that a budget chooses where a recipe writes none of them."""
SHAPES = (
    (8, 512, 16, 16, 1376, 16384),
    (7, 384, 12, 12, 1024, 8192),
    (6, 288, 9, 9, 768, 4096),
    (5, 224, 7, 7, 608, 4096),
    (4, 160, 5, 5, 432, 2048),
    (3, 128, 4, 4, 352, 2048),
    (2, 96, 3, 3, 256, 2048),
)
"""What it chooses from: heads of 32, more tokens a step where Muon's matrices are larger."""
GROW, SHRINK = 1.0, 0.5
"""A model larger than the recipe's must still read so much of the recipe's tokens per parameter, and the recipe's own
so much of them, or it shrinks."""


def _choose_shape(recipe: Recipe, price: Price, memory: float) -> Choices:
    """The largest shape that still reads enough within the budget; nothing where the recipe writes a shape. Raises
    ConfigError if nothing fits."""
    free = [
        name
        for name, section in recipe.sections.items()
        if section.stage.name == "pretrain" and not set(SHAPE) & set(recipe.values[name] or {})
    ]
    if not any(getattr(recipe.sections[name].config, "steps", 0) for name in free):
        return {}
    name = max(free, key=lambda each: getattr(recipe.sections[each].config, "steps", 0))

    written = price(recipe)[name]

    def enough(cost: Cost) -> bool:
        """Whether a model of this size, on this horizon, has read enough for it."""
        size, before = cost.sizes["parameters"], written.sizes["parameters"]
        least = GROW if size > 1.01 * before else SHRINK
        return cost.tokens / size >= least * written.tokens / before and cost.memory <= memory

    for shape in SHAPES:
        chosen = {each: dict(zip(SHAPE, shape, strict=True)) for each in free}
        shaped = recipe.with_choices(chosen)
        try:
            horizons = _fit_horizons(shaped, price)
        except ConfigError:  # too large for the budget at any horizon
            if shape == SHAPES[-1]:
                raise
            continue
        if enough(price(shaped.with_choices(horizons))[name]):
            break
    return chosen


def _fit_horizons(recipe: Recipe, price: Price) -> Choices:
    """Scale all horizons by one factor so that the prediction meets the budget. Raises ConfigError if nothing fits."""
    budget = recipe.budget or 0.0
    horizons = {
        name: {key: getattr(section.config, key) for key in (HORIZONS[section.stage.name],)}
        for name, section in recipe.sections.items()
        if section.stage.name in HORIZONS
    }

    def scaled(factor: float) -> Choices:
        return {
            name: {key: max(1, round(value * factor)) if value else 0 for key, value in keys.items()}  # 0: a control
            for name, keys in horizons.items()
            if keys
        }

    def seconds(factor: float) -> float:
        return sum(each.seconds for each in price(recipe.with_choices(scaled(factor))).values())

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
    return scaled(math.floor(low * 1e4) / 1e4)  # rounded up it could step over the budget


def _watched(section: Section, recipe: Recipe) -> int:
    """Examination items of a section's watch."""
    return recipe.watch.items if section.watched is None else section.watched


def _choose_watched(recipe: Recipe, price: Price) -> Choices:
    """The number of items for each stage whose examinations would take more than their share of its own time."""
    most, found = recipe.watch.items, Choices()
    for name, section in recipe.sections.items():
        idle = not getattr(section.config, HORIZONS.get(section.stage.name, ""), 1)  # a control that learns nothing
        if section.stage.name not in WATCHED or most <= FEWEST_WATCHED or idle:
            continue

        def seconds(items: int, name: str = name) -> float:
            return price(recipe.with_choices({name: {"watched": items}}))[name].seconds

        room = (1 + recipe.watch.share) * seconds(0)
        if recipe.watch.share == 1 or seconds(most) <= room:
            continue
        low, high = FEWEST_WATCHED, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if seconds(middle) <= room else (low, middle - 1)
        found[name] = {"watched": low}
    return found


# what is made already


class Examiner:
    """Gives a training stage its examiner: built from the recipe here, so that `train` never names `evaluate`."""

    def __init__(self, corpus: Artifact, config: WatchConfig, items: int | None = None) -> None:
        self.corpus, self.config = corpus, config
        self.items = config.items if items is None else items
        self.settings: Mapping[str, Any] = {"corpus": corpus.id, "items": self.items, "every": config.every}

    def __call__(self, tokenizer: Any) -> Examination:
        from tutelage.evaluate.watch import watch

        return watch(self.corpus.path, tokenizer, items=self.items, every=self.config.every)


def watching(section: Section, recipe: Recipe, made: Mapping[str, Artifact]) -> Examiner | None:
    if section.stage.name not in WATCHED or not _watched(section, recipe) or "prepare" not in made:
        return None
    return Examiner(made["prepare"], recipe.watch, _watched(section, recipe))


def resolve(section: Section, made: Mapping[str, Artifact]) -> dict[str, Any]:
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
        if any(each in recipe.sections and each not in made for each in section.names()):
            continue
        try:
            inputs = open_inputs(section.stage, root, resolve(section, made))
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
    return stage_key(section.stage, section.config, inputs, mark, watching(section, recipe, made))


class LifeClock:
    """A sink that knows the plan: turns stage events into an estimate for the whole life."""

    def __init__(self, planned: Plan) -> None:
        self.expected = {each.name: each.cost.seconds for each in planned.stages}
        self.finished: set[str] = set()
        self.began: dict[str, float] = {}
        self.predicted, self.real = 0.0, 0.0

    def __call__(self, event: Event) -> None:
        if event.part:  # a stage inside another one: the section is neither begun nor done by it
            return
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
        own = event.eta if event.eta is not None and not event.part else max(0.0, here)
        return own + rest * pace

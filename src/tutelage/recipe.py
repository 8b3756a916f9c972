"""A recipe: one section per stage, checked whole before anything runs. Names every stage, imports none until asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from tutelage.core.config import Config, build, load_yaml, merge, nearest, parse_overrides
from tutelage.core.errors import ConfigError, MissingExtra, NotFound
from tutelage.core.records import digest
from tutelage.core.refs import EXTRA_OF
from tutelage.core.stage import LEARNED, Simulated, Stage, refuse_simulated

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


def stage_of(name: str) -> Stage:
    """The stage of a section (`rlhf@grpo` -> rlhf). Raises MissingExtra where what it needs is not installed."""
    try:
        return _imported(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_OF:
            raise
        raise MissingExtra(missing, EXTRA_OF[missing]) from None


def _imported(name: str) -> Stage:
    """Imported only now: the console and `--help` stay light."""
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
    share: float = Field(0.04, ge=0, le=1)
    """Largest share of a stage's own time that its examinations may take, as the plan prices them: where more would, it
    lowers `items` for that stage, to 8 at least. 1 leaves them as they are. 0.04 keeps them under a twentieth where a
    price is a fifth too low."""


@contextmanager
def faults_of(name: str, file: Path | None) -> Iterator[None]:
    """What a stage finds wrong in its section (or, without a name, a plan) names it, and the recipe it stands in."""
    try:
        yield
    except NotFound as error:
        if file is not None and error.file is not None and error.file != file and str(file) not in (error.todo or ""):
            where = f"The section {name!r} of {file}" if name else f"The recipe {file}"
            error.todo = ". ".join(filter(None, (error.todo, f"{where} names it")))
        raise
    except ConfigError as error:
        if error.file is None:
            stage = name.partition("@")[0]
            own = (error.key or "").removeprefix(name).removeprefix(stage).removeprefix(".")
            error.file, error.key = file, ".".join(filter(None, (name, own))) or None
        raise


class Section(NamedTuple):
    """One section of a recipe, ready to run: its stage, its configuration, where each input comes from."""

    name: str
    stage: Stage
    config: Config
    sources: dict[str, Any]
    """Input -> the name of an earlier section, a reference, a list of these, or None."""
    watched: int | None = None
    """Examination items of its watch, where the plan chose another number than the recipe's."""

    def names(self) -> set[str]:
        """Every source, whichever input it is of."""
        return {each for source in self.sources.values() for each in each_of(source)}


class Recipe(NamedTuple):
    """A whole recipe, in running order; `values` is what was written, overrides included."""

    sections: dict[str, Section]
    watch: WatchConfig
    budget: float | None
    values: dict[str, Any]
    file: Path | None
    simulated: Simulated = "refuse"
    """Whether its stages may learn from simulated people."""

    @property
    def mark(self) -> str:
        """sha256 of what was written: equal recipes are planned once."""
        return digest({"values": self.values, "budget": self.budget})

    def with_choices(self, choices: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """This recipe with a plan's choices in place."""
        sections = dict(self.sections)
        for name, values in choices.items():
            section, chosen = sections[name], dict(values)
            watched = chosen.pop("watched", section.watched)
            config = build(section.stage.config, section.config.model_dump() | chosen)
            sections[name] = section._replace(config=config, watched=watched)
        return self._replace(sections=sections)

    def check(self, name: str) -> None:
        """Raise ConfigError unless the recipe has a section of this name."""
        if name not in self.sections:
            near = nearest(name, self.sections)
            todo = f"Did you mean {near!r}?" if near else f"It has: {', '.join(self.sections)}"
            raise ConfigError(f"the recipe has no section {name!r}", file=self.file, todo=todo)


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


RESERVED = ("budget", "watch", "simulated")


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
    sections = _ordered(drafts, file)
    allowed = values.get("simulated", "refuse")
    if allowed not in ("refuse", "allow"):
        message = f"whether stages may learn from simulated people is `refuse` or `allow`, found {allowed!r}"
        raise ConfigError(message, file=file, key="simulated")
    if allowed == "refuse":
        _check_people(sections, file)
    return Recipe(sections, watch, budget, values, file, allowed)


def _check_people(sections: Mapping[str, Section], file: Path | None) -> None:
    """Refuse, before anything runs, a recipe that would learn from simulated people and does not say that it may.

    What references hold and who answered in the store is seen when a stage runs.
    """
    asked: dict[str, str] = {}
    for name, section in sections.items():
        source = f"{name} asks them" if section.config.simulated else ""
        source = source or next((asked[each] for each in section.names() if each in asked), "")
        if source and section.stage.makes in LEARNED:
            found = refuse_simulated(name, source)
            raise ConfigError(found.message, file=file, key=found.key, todo=found.todo)
        if source:
            asked[name] = source


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
    if "called" in stage.config.model_fields:  # figures bear the names of the recipe
        known["called"] = [each if each in names else "" for each in each_of(sources.get("of"))]
    fields = set(stage.config.model_fields) | set(stage.inputs)
    for key in values:
        if key not in fields:
            near = nearest(str(key), fields)
            todo = f"Did you mean {near!r}?" if near else f"Known here: {', '.join(sorted(fields))}"
            raise ConfigError("unknown key", file=file, key=f"{name}.{key}", todo=todo)
    with faults_of(name, file):
        return Section(name, stage, build(stage.config, known | values, file=file, prefix=name), sources)


def _named(source: Any, key: str, file: Path | None) -> Any:
    """A source as a recipe may give it: a name, or a list of names."""
    if source is not None and not all(isinstance(each, str) for each in each_of(source)):
        todo = "Write the name of a section, or a reference such as `model:3fa9`"
        raise ConfigError(f"{source!r} names no artifact", file=file, key=key, todo=todo)
    return source


def each_of(source: Any) -> list[Any]:
    """The sources of one input as a list: none, one or several."""
    return list(source) if isinstance(source, list | tuple) else [] if source is None else [source]


def _ordered(drafts: dict[str, Section], file: Path | None) -> dict[str, Section]:
    """Sections so that each comes after its sources; otherwise in the order of LIFE."""
    for name, section in drafts.items():
        for key, source in section.sources.items():
            for each in each_of(source):
                if ":" not in each and not each.startswith((".", "/", "~")) and each not in drafts:
                    near = nearest(each, drafts)
                    todo = f"Did you mean {near!r}?" if near else f"The recipe has: {', '.join(drafts)}"
                    raise ConfigError(f"no section {each!r} in this recipe", file=file, key=f"{name}.{key}", todo=todo)
    done: dict[str, Section] = {}
    left = dict(drafts)
    while left:
        ready = next((name for name, section in left.items() if section.names() & set(drafts) <= set(done)), None)
        if ready is None:
            raise ConfigError(f"these sections wait for each other: {', '.join(left)}", file=file)
        done[ready] = left.pop(ready)
    return done

"""A stage turns artifacts (and perhaps people's words) into one artifact: resolve, skip what is made, run, seal.

@stage(makes="tokenizer", config=Tokenizer, inputs={"corpus": Input("corpus", default="prepare")})
def tokenizer(config, inputs, out, context):
    ...write files into `out`...
    return {"vocabulary": 2048}          # the manifest's metrics: deterministic, no times
"""

from __future__ import annotations

import functools
import hashlib
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from tutelage.core import refs
from tutelage.core.artifact import Artifact, Manifest, Root, disk_errors, file_entries
from tutelage.core.config import Config, build
from tutelage.core.errors import NotFound, Stopped, TutelageError, UsageError, Waiting
from tutelage.core.events import Reporter, silent
from tutelage.core.price import Cost, Machine
from tutelage.core.records import Record, digest


class Input(Record):
    """One input of a stage: which kind(s) of artifact, and the stage that makes it unless the recipe names another."""

    kind: str | tuple[str, ...]
    default: str | tuple[str, ...] | None = None
    many: bool = False
    optional: bool = False
    help: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,) if isinstance(self.kind, str) else self.kind


class Inputs(Mapping[str, Any]):
    """The opened inputs of a run: `inputs.tokens` is an Artifact, a tuple of them (`many`), or None (`optional`)."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_found"][name]
        except KeyError:
            raise AttributeError(f"no input {name!r}") from None

    def __iter__(self) -> Any:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def artifacts(self) -> list[Artifact]:
        """All of them, flat, in the order of their names."""
        flat: list[Artifact] = []
        for name in sorted(self._found):
            value = self._found[name]
            flat += [] if value is None else list(value) if isinstance(value, tuple) else [value]
        return flat

    def named(self) -> dict[str, str | list[str]]:
        """Input name -> `kind:id`, as the key and the manifest hold it."""
        out: dict[str, str | list[str]] = {}
        for name, value in self._found.items():
            if isinstance(value, tuple):
                out[name] = [each.ref for each in value]
            elif value is not None:
                out[name] = value.ref
        return out


class Watch(Protocol):
    """Looks at a model in training. Must leave every random state as it was."""

    every: int

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]: ...


class Examination(Watch, Protocol):
    """A watch that can say what a stage changed, item by item."""

    def begin(self, model: Any) -> None:
        """Examine the model that a stage begins with; also where the stage goes on in the middle."""

    def change(self, model: Any, step: int) -> dict[str, Any]:
        """By suite: the figure of the model that is left, with the weights after `step`, minus that at `begin`; paired,
        with its interval."""


class Watching(Protocol):
    """Makes a watch for a stage once its tokenizer is known; `settings` enter the key."""

    settings: Mapping[str, Any]

    def __call__(self, tokenizer: Any) -> Examination: ...


Simulated = Literal["refuse", "allow"]
"""Whether stages may learn from simulated people's words."""

LEARNED = frozenset({"preferences", "labels", "reward", "model", "classifier", "cycle"})
"""Kinds of artifact that are learned from what people said, or are about to be."""


def refuse_simulated(stage: str, source: str) -> UsageError:
    """What is said where a stage would learn from simulated people and nobody wrote that it may."""
    todo = (
        "Ask people (`collect.people: none`); where it is meant, as in a demonstration, write `simulated: allow` at "
        "the top of the recipe, or give `simulated=allow` to a stage that runs by itself"
    )
    return UsageError(f"{stage} would learn from simulated people ({source})", key="simulated", todo=todo)


class Context:
    """What a running stage is given beside its inputs."""

    def __init__(
        self,
        root: Root,
        key: str,
        say: Reporter,
        stop: Callable[[], bool],
        watch: Watching | None = None,
        store: Any = None,
        refuses: str = "",
    ) -> None:
        self.root, self.key, self.say, self.watch, self.store = root, key, say, watch, store
        self._refuses, self._simulated = refuses, False
        self.work = root.work / key
        """A folder of this key alone that survives a kill: checkpoints, logs of finished items."""
        self.stop = stop
        self.rows: list[str] = []
        self.licences: set[str] = set()

    @property
    def simulated(self) -> bool:
        """Whether simulated people's words were read: it goes into the manifest and to all that is made from it."""
        return self._simulated

    @simulated.setter
    def simulated(self, value: bool) -> None:
        """Raises UsageError where the recipe does not allow it."""
        if value and self._refuses:
            raise refuse_simulated(self._refuses, "who answered in the store")
        self._simulated = value

    def check(self) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.stop():
            raise Stopped("stopped as asked", todo="Run the same command again to go on")

    def used(self, rows: Iterable[str]) -> None:
        """Record store rows that were read: sealed as `rows.parquet`, which lineage and erasure follow."""
        self.rows.extend(rows)

    def licence(self, *classes: str) -> None:
        """Add licence classes to those of the inputs."""
        self.licences.update(classes)


Body = Callable[[Any, Inputs, Path, Context], Mapping[str, Any]]
Scopes = Callable[[Any, Inputs], Sequence[str]]
CostOf = Callable[[Any, Mapping[str, Mapping[str, float]], Machine], Cost]


class Stage:
    """A stage of a life. Calling it runs it: `pretrain(root="life", depth=4)`."""

    def __init__(
        self,
        body: Body,
        *,
        makes: str,
        config: type[Config],
        inputs: Mapping[str, Input],
        version: int,
        reads: Scopes | None,
        writes: str | None,
        cost: CostOf | None,
    ) -> None:
        self.body, self.makes, self.config, self.inputs = body, makes, config, dict(inputs)
        self.version, self.reads, self.writes, self.cost = version, reads, writes, cost
        self.name = body.__name__
        overlap = sorted(set(config.model_fields) & set(self.inputs))
        if overlap:
            raise TypeError(f"{self.name}: {overlap} are both inputs and configuration keys")
        functools.update_wrapper(self, body)

    def __repr__(self) -> str:
        return f"Stage({self.name})"

    def __call__(self, root: str | Path | Root, say: Reporter | None = None, **values: Any) -> Artifact:
        """Run by itself: `values` are configuration keys and inputs (references or artifacts), and `simulated`."""
        given = {name: values.pop(name) for name in list(values) if name in self.inputs}
        allowed: Simulated = values.pop("simulated", "refuse")
        where = root if isinstance(root, Root) else Root(root)
        return run_stage(self, where.create(), config=values, inputs=given, say=say, simulated=allowed)


def stage(
    *,
    makes: str,
    config: type[Config],
    inputs: Mapping[str, Input] | None = None,
    version: int = 1,
    reads: Scopes | None = None,
    writes: str | None = None,
    cost: CostOf | None = None,
) -> Callable[[Body], Stage]:
    """Make a function a stage.

    `reads(config, inputs)` names the scopes of the store (projects) whose words are read: a snapshot up to their
    watermark, which becomes part of the key. `writes="store"` opens the store for writing (idempotency keys from
    `context.key`). Raise `version` whenever equal inputs would give another result.
    """

    def wrap(body: Body) -> Stage:
        return Stage(
            body,
            makes=makes,
            config=config,
            inputs=inputs or {},
            version=version,
            reads=reads,
            writes=writes,
            cost=cost,
        )

    return wrap


def open_inputs(stage: Stage, root: Root, given: Mapping[str, Any]) -> Inputs:
    """Turn references and artifacts into opened inputs of the right kinds. Raises UsageError naming the input."""

    def one(name: str, value: Any) -> Artifact:
        found = value if isinstance(value, Artifact) else refs.resolve_artifact(str(value), root)
        if found.kind not in stage.inputs[name].kinds:
            wanted = " or ".join(stage.inputs[name].kinds)
            raise UsageError(f"{found.ref[:24]} is of kind {found.kind}, wanted {wanted}", key=f"{stage.name}.{name}")
        return found

    opened: dict[str, Any] = {}
    for name, spec in stage.inputs.items():
        value = given.get(name)
        if value is None or value == []:
            if not spec.optional:
                todo = f"Name one: `{name}: {spec.kinds[0]}:<id>`, or run the whole recipe"
                raise NotFound("an input is missing", key=f"{stage.name}.{name}", todo=todo)
            opened[name] = () if spec.many else None
        elif spec.many:
            values = value if isinstance(value, list | tuple) else [value]
            opened[name] = tuple(one(name, each) for each in values)
        else:
            opened[name] = one(name, value)
    return Inputs(opened)


def stage_key(
    stage: Stage, config: Config, inputs: Inputs, watermark: int | None = None, watch: Watching | None = None
) -> str:
    """sha256 of everything that decides what the stage computes."""
    parts = {
        "stage": stage.name,
        "version": stage.version,
        "config": config.resolved(),
        "inputs": inputs.named(),
        "store": watermark,
        "watch": dict(watch.settings) if watch else None,
    }
    return digest(parts)


def plain(value: Any, where: str = "metrics") -> Any:
    """A value as JSON: numpy and torch scalars become numbers; NaN and infinity are refused (undefined is None)."""
    if isinstance(value, Mapping):
        return {str(key): plain(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, where) for each in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"), where)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise TutelageError(f"{where} is {value}: an undefined figure must be None with a reason")
    return value


@functools.cache
def code_digest() -> str:
    """The first 12 hex digits of the sha256 over this package's Python files: which code made an artifact."""
    home = Path(__file__).resolve().parents[1]
    total = hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        total.update(file.relative_to(home).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]


def never() -> bool:
    """The stop that never comes."""
    return False


def run_stage(
    stage: Stage,
    root: Root,
    *,
    config: Config | Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    say: Reporter | None = None,
    stop: Callable[[], bool] = never,
    watch: Watching | None = None,
    simulated: Simulated = "allow",
) -> Artifact:
    """Run one stage, or return at once what its key has made already.

    `simulated` is what the recipe says: under `refuse`, a stage that learns ends with UsageError where simulated people
    stand in its inputs or answer what it reads.

    Raises Busy when another process holds the key, Waiting when people's answers are missing, Stopped on request,
    NoSpace on a full disk; whatever happens, sealed artifacts stay as they are.
    """
    settings = config if isinstance(config, Config) else build(stage.config, dict(config or {}), prefix=stage.name)
    opened = open_inputs(stage, root.create(), inputs or {})
    refuses = stage.name if simulated == "refuse" and stage.makes in LEARNED else ""
    if refuses and (told := [each for each in opened.artifacts() if each.manifest.simulated]):
        raise refuse_simulated(refuses, told[0].ref[:24])
    report = say.inside(stage.name) if say else silent()
    with _store(stage, root, settings, opened) as (store, mark):
        key = stage_key(stage, settings, opened, mark["watermark"] if mark else None, watch)
        report.key = key
        made = root.by_key(key)
        if made:
            if refuses and made.manifest.simulated:
                raise refuse_simulated(refuses, made.ref[:24])
            report.say("skip", text=made.ref)
            return made
        with root.lock(key, stage.name), disk_errors(root.path):
            made = root.by_key(key)  # another process may have finished it while we waited for the lock
            if made:
                report.say("skip", text=made.ref)
                return made
            for artifact in opened.artifacts():
                artifact.verify()
            context = Context(root, key, report, stop, watch, store, refuses)
            return _run(stage, root, settings, opened, context, mark)


def _run(
    stage: Stage, root: Root, config: Config, inputs: Inputs, context: Context, mark: dict[str, Any] | None
) -> Artifact:
    started, began = time.time(), time.monotonic()
    out = context.work / "out"
    resumed = context.work.is_dir() and any(each != out for each in context.work.iterdir())
    shutil.rmtree(out, ignore_errors=True)  # a half-written result of a killed run; checkpoints lie beside it
    out.mkdir(parents=True)
    context.say.say("start")
    try:
        metrics = plain(stage.body(config, inputs, out, context) or {})
    except Waiting as error:
        context.say.say("wait", text=str(error), done=error.have, total=error.need)
        raise
    except BaseException as error:
        named = "" if isinstance(error, TutelageError) else f"{type(error).__name__}: "
        context.say.say("fail", text=f"{named}{error}")
        raise
    if context.rows:
        _seal_rows(context.rows, out / "rows.parquet")
    parents = inputs.artifacts()
    seconds = round(time.monotonic() - began, 3)
    manifest = Manifest(
        kind=stage.makes,
        stage=stage.name,
        version=stage.version,
        config=config.resolved() | ({"watch": dict(context.watch.settings)} if context.watch else {}),
        inputs=inputs.named(),
        store=mark,
        files=file_entries(out),
        metrics=metrics,
        licences=sorted(context.licences.union(*(each.manifest.licences for each in parents))),
        simulated=context.simulated or any(each.manifest.simulated for each in parents),
        made={
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": seconds,
            "host": platform.node(),
            "code": code_digest(),
            **({"resumed": True} if resumed else {}),  # the seconds are then those since the last start
        },
    )
    artifact = root.seal(out, manifest, context.key)
    shutil.rmtree(context.work, ignore_errors=True)
    context.say.say("done", text=artifact.ref, figures={"seconds": seconds, **_headline(metrics)})
    return artifact


def _headline(metrics: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """What one line can say: plain figures, of an estimate its value; where there are none, the first group of them,
    each by the group's name and its own."""
    values = {name: each.get("value") if isinstance(each, Mapping) else each for name, each in metrics.items()}
    told = {f"{of} {name}".strip(): each for name, each in values.items() if isinstance(each, int | float | str)}
    groups = ((name, each) for name, each in metrics.items() if isinstance(each, Mapping))
    return told or next((found for name, each in groups if (found := _headline(each, name))), {})


@contextmanager
def _store(stage: Stage, root: Root, config: Config, inputs: Inputs) -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """Open the store as a stage asks for it: a snapshot to read, the whole to write, or nothing."""
    if stage.reads is None and stage.writes is None:
        yield None, None
        return
    store = refs.open("store:", root, writable=stage.writes is not None)
    try:
        if stage.reads is None:
            yield store, None
            return
        scopes = sorted(stage.reads(config, inputs))
        if stage.writes and not scopes:  # this time it only writes
            yield store, None
            return
        mark = {"watermark": store.watermark(scopes), "scopes": scopes}
        yield (store if stage.writes else store.snapshot(mark["watermark"])), mark
    finally:
        store.close()


def _seal_rows(rows: Sequence[str], path: Path) -> None:
    """Seal the ids of the store's rows that were read, each once, sorted."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"row": arrow.array(sorted(set(rows)), arrow.string())}), path)

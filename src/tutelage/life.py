"""A model's whole life: the run that leads through a recipe, and what is remembered of it.

It resolves names (`model: finetune`), fills in what an early stage needs from a later room (the watch during training),
and goes on where it stopped: what is made already is never made again.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tutelage.core.artifact import Artifact, Root, atomic_write
from tutelage.core.config import load_yaml
from tutelage.core.errors import NotFound, Refused, Waiting
from tutelage.core.events import JsonLines, Reporter, Sink
from tutelage.core.stage import never, run_stage
from tutelage.plan import Plan, plan, resolve, walk, watching
from tutelage.recipe import LIFE, Recipe, Section, faults_of, read_recipe, stage_of


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
    planned: Plan | None = None,
    only: str | None = None,
    until: str | None = None,
    wait: bool = False,
    sinks: tuple[Sink, ...] = (),
    stop: Callable[[], bool] = never,
) -> dict[str, Artifact]:
    """Run a recipe's sections in order; what is made already is skipped. Returns section name -> artifact.

    `planned` is this recipe's plan where the caller has it already. Raises Waiting when people's answers are missing
    (unless `wait`: then it polls), Refused when the release gate said no (after everything was sealed), and every
    stage's own errors; what was finished stays finished.
    """
    root.create()
    for name in (only, until):
        if name is not None:
            recipe.check(name)
    planned = planned or plan(recipe, root)
    recipe = recipe.with_choices(planned.choices)
    _remember(recipe, planned, root)
    made: dict[str, Artifact] = walk(recipe, root) if only else {}
    refused: Refused | None = None
    for name, section in recipe.sections.items():
        if only and name != only:
            continue
        made[name] = _run_section(section, recipe, root, made, wait=wait, sinks=sinks, stop=stop)
        _made(root, {name: made[name]})
        refused = _refusal(made[name]) or refused
        if name == until:
            break
    if refused:
        raise refused
    return made


def run_alone(
    name: str,
    settings: Mapping[str, Any],
    root: Root,
    *,
    defaults: Mapping[str, Any] | None = None,
    sinks: tuple[Sink, ...] = (),
    stop: Callable[[], bool] = never,
) -> Artifact:
    """Run one stage by itself, neither planned nor remembered: the root's recipe, plan and last run stay as they are.

    An input that `settings` does not name is that of the last run, or else the newest that its stage has made here.
    `simulated: allow` among them lets the stage learn from simulated people; else it is as the root's recipe says.
    """
    root.create()
    given = dict(settings)
    beside = {"simulated": given.pop("simulated", None) or _last_said(root)}
    for key, spec in stage_of(name).inputs.items():
        wanted = spec.default if isinstance(spec.default, tuple) else (spec.default,)
        found = at_hand(root, [each for each in wanted if each])
        if found:
            given.setdefault(key, found if spec.many else found[0])
    recipe = read_recipe({name: given, **beside}, defaults=defaults)
    artifact = _run_section(recipe.sections[name], recipe, root, {}, sinks=sinks, stop=stop)
    if refused := _refusal(artifact):
        raise refused
    return artifact


def _last_said(root: Root) -> str:
    """What the recipe that ran last in this root says of learning from simulated people."""
    return str(load_yaml(root.recipe_path).get("simulated", "refuse")) if root.recipe_path.is_file() else "refuse"


def at_hand(root: Root, sections: list[str]) -> list[str]:
    """References of what these sections made: in the last run, or (when none of them was in it) most lately."""
    known = made_last(root)
    if found := [known[each] for each in sections if each in known]:
        return found
    newest = {artifact.manifest.stage: artifact.ref for artifact in root.list()}
    return [newest[each] for each in sections if each in newest]


def _run_section(
    section: Section,
    recipe: Recipe,
    root: Root,
    made: Mapping[str, Artifact],
    *,
    wait: bool = False,
    sinks: tuple[Sink, ...] = (),
    stop: Callable[[], bool] = never,
) -> Artifact:
    say = Reporter(section.name, sinks=(JsonLines(root.events / f"{section.name}.jsonl"), *sinks))
    while True:
        try:
            with faults_of(section.name, recipe.file):
                return run_stage(
                    section.stage,
                    root,
                    config=section.config,
                    inputs=resolve(section, made),
                    say=say,
                    stop=_stopper(root, stop),
                    watch=watching(section, recipe, made),
                    simulated=recipe.simulated,
                )
        except Waiting:
            if not wait or stop():
                raise
            time.sleep(2)


def _refusal(artifact: Artifact) -> Refused | None:
    """What the gate said of a release it refused."""
    if artifact.kind == "release" and artifact.metrics.get("promoted") is False:
        return Refused(str(artifact.metrics.get("reason", "the gate refused the release")))
    return None


def _stopper(root: Root, stop: Callable[[], bool]) -> Callable[[], bool]:
    """A stop asked for by a signal, or by `tutelage stop` through a file (looked at twice a second)."""
    file, began, looked = root.path / "stop", time.time(), [0.0, False]

    def asked() -> bool:
        now = time.monotonic()
        if now - looked[0] > 0.5:
            looked[0], looked[1] = now, file.exists() and file.stat().st_mtime >= began - 1
        return bool(looked[1]) or stop()

    return asked


def _remember(recipe: Recipe, planned: Plan, root: Root) -> None:
    """Keep the recipe and its plan in the root: `report`, `serve` and the console start from them."""
    import yaml

    plain = planned.model_dump(mode="json")
    atomic_write(root.plan_path, json.dumps(plain, indent=2, sort_keys=True).encode())
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


def family(root: Root, artifacts: Iterable[Artifact]) -> set[str]:
    """References of these artifacts and of everything they were made from."""
    found: set[str] = set()
    todo = list(artifacts)
    while todo:
        each = todo.pop()
        if each.ref not in found:
            found.add(each.ref)
            for parent in each.manifest.parents():
                try:
                    todo.append(root.find(parent))
                except NotFound:
                    continue
    return found


def collect_garbage(root: Root, keep: int = 1, dry_run: bool = False) -> tuple[list[str], int]:
    """Remove what nobody needs: (references that went or would go, how many stay).

    Needed is what the last run, the releases of the store, the release artifacts and the `keep` newest of each stage
    were made from.
    """
    every = root.list()
    needed = [*last(root).values(), *(each for each in every if each.kind == "release")]
    by_stage: dict[str, list[Artifact]] = {}
    for each in every:
        by_stage.setdefault(each.manifest.stage, []).append(each)
    needed += [each for group in by_stage.values() for each in group[len(group) - keep :] if keep]
    from tutelage.store import engine, releases

    if engine.exists(root):
        with engine.open(root, writable=False) as store:
            served = {each.bundle for each in releases.every(store)}
        needed += [each for each in every if each.kind == "bundle" and (each.ref in served or each.id in served)]
    stays = family(root, needed)
    gone = [each for each in every if each.ref not in stays]
    for each in gone if not dry_run else []:
        for path in [each.path, *each.path.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
        shutil.rmtree(each.path)
    return [each.ref for each in gone], len(every) - len(gone)

"""Making: run a recipe, plan it, run one stage, begin a project, decide what is released."""

from __future__ import annotations

import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.commands.base import (
    HERE,
    JsonOption,
    RootOption,
    alone,
    app,
    emit,
    environment,
    environment_defaults,
    group,
    known_root,
    root_at,
    say,
    sink_of_lines,
    tell,
    typed,
)
from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import Refused, UsageError
from tutelage.core.price import MUON_SHARE
from tutelage.recipe import LIFE, Recipe
from tutelage.report.timing import Timed, how_near, predictions, timed


def run_recipe(
    recipe_source: Path,
    overrides: list[str],
    root: Path,
    only: str | None = None,
    until: str | None = None,
    wait: bool = False,
    as_json: bool = False,
) -> dict[str, Artifact]:
    """Run a recipe, with its progress on stderr; what each section made."""
    from tutelage import life
    from tutelage.plan import LifeClock, plan
    from tutelage.recipe import read_recipe
    from tutelage.terminal import Terminal

    recipe = read_recipe(recipe_source, overrides, environment_defaults())
    for name in (only, until):
        if name is not None:
            recipe.check(name)
    where = root_at(root)
    with _several(recipe, where) as recipe, life.interruptible() as stop:
        planned = plan(recipe, where)
        if as_json:
            given: Any = {"only": only, "until": until, "wait": wait, "stop": stop, "sinks": (sink_of_lines,)}
            return life.run(recipe, where, planned=planned, **given)
        clock = LifeClock(planned)
        with Terminal(clock.remaining, total=len(recipe.sections)) as terminal:
            given = {"only": only, "until": until, "wait": wait, "stop": stop, "sinks": (clock, terminal)}
            return life.run(recipe, where, planned=planned, **given)


@contextmanager
def _several(recipe: Recipe, root: Root) -> Iterator[Recipe]:
    """Under torchrun: the recipe as rank 0 leads it. The other ranks help, and never come out of here."""
    if int(environment().get("WORLD_SIZE", 1)) < 2:
        yield recipe
        return
    from tutelage.scale.launch import meeting

    met = meeting(root)
    try:
        yield met.leads(recipe)
    finally:
        met.ends()


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; a section per stage.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="stage.key=value, as many as you like.")] = None,
    root: RootOption = HERE,
    only: Annotated[str | None, typer.Option(help="Run this section only.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this section.")] = None,
    budget: Annotated[str | None, typer.Option(help="Size the training to this time: 90s, 15m, 2h.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Where people must answer, wait for them.")] = False,
    later: Annotated[bool, typer.Option("--later", help="Only ask for it: `tutelage worker` makes it.")] = False,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes here that train pretrain, finetune and dpo (FSDP2).")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe; what is made already is skipped, so the same command goes on after a stop."""
    extra = [f"budget={budget}"] if budget else []
    if later:
        if only or wait or ranks > 1:
            raise UsageError(
                "--later hands the whole recipe (or --until a section) to a worker, without --only, --wait or --ranks"
            )
        return _ask_for(recipe, [*(overrides or []), *extra], root, until, as_json)
    if ranks > 1 and "WORLD_SIZE" not in environment():
        from tutelage.scale.launch import start

        raise SystemExit(start(ranks, sys.argv[1:], environment()))
    refused: Refused | None = None
    try:
        made = run_recipe(recipe, [*(overrides or []), *extra], root, only, until, wait, as_json)
    except Refused as error:  # what was made is sealed and shown; the exit code tells
        from tutelage.life import last

        refused, made = error, last(root_at(root))
    if as_json:
        emit({name: artifact.ref for name, artifact in made.items()})
    else:
        _tell_life(made, root, served=refused is None)
    if refused:
        raise refused


def _tell_life(made: Mapping[str, Artifact], root: Path, *, served: bool) -> None:
    from tutelage.report.lines import life_table

    say()
    say(life_table(made))
    if took := timed(made, predictions(root_at(root))):
        say(f"The plan:     {how_near(took)}")
    say(f"The report:   {typed()} report --root {root}")
    kinds = {artifact.kind for artifact in made.values()}
    if "release" in kinds and served:
        say(f"The service:  {typed()} serve --root {root}")
    elif "bundle" in kinds:
        say(f"The guards:   {typed()} guard up https://host/v1#model --on bundle --root {root}")


def _ask_for(recipe: Path, overrides: list[str], root: Path, until: str | None, as_json: bool) -> None:
    from tutelage.recipe import read_recipe
    from tutelage.worker import ask

    found = read_recipe(recipe, overrides, environment_defaults())
    if until is not None:
        found.check(until)
    tell({"job": ask(root_at(root), found, until)}, as_json)


@app.command("plan")
def plan_command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="stage.key=value")] = None,
    root: RootOption = HERE,
    budget: Annotated[str | None, typer.Option(help="Size the training to this time: 90s, 15m, 2h.")] = None,
    price: Annotated[float, typer.Option(min=0, help="What an hour of this machine costs, in any currency.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine and print what each stage will take, before anything runs; and beside it what it took."""
    from tutelage.plan import plan
    from tutelage.recipe import read_recipe
    from tutelage.terminal import clock

    extra = [f"budget={budget}"] if budget else []
    where = root_at(root)
    planned = plan(read_recipe(recipe, [*(overrides or []), *extra], environment_defaults()), where)
    made = {each.name: where.find(each.known) for each in planned.stages if each.known}
    took = timed(made, {each.name: each.cost.seconds for each in planned.stages})
    if as_json:
        found = {**planned.model_dump(mode="json"), "seconds": planned.seconds}
        if price:
            by_stage = {each.name: _paid(each.cost.seconds, price) for each in planned.stages}
            found["price"] = {"per_hour": price, "stages": by_stage, "left_to_do": _paid(planned.seconds, price)}
        emit({**found, "took": [each.plain() for each in took], "verdict": how_near(took)})
        return
    machine = planned.machine
    say(
        f"This machine: {machine.threads} threads, {machine.gemm / 1e9:.0f} GFLOP/s, "
        f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.memory / 1e9:.0f} GB of memory"
    )
    if machine.learning:
        told = (machine.learning, machine.reading, machine.writing)
        say("This model:   {:.0f} GFLOP/s learning, {:.0f} reading, {:.0f} writing".format(*(x / 1e9 for x in told)))
    for name in (each.name for each in planned.stages if each.name in planned.choices):
        chosen = sorted(planned.choices[name].items())
        say(f"Chosen:       {name}: {', '.join(f'{key}={value}' for key, value in chosen)}")
    beside = {each.name: f"{clock(each.real):>8}{_ratio(each):>8}" for each in took}
    cost_head = f"{'cost':>9}" if price else ""
    heads = f"{'stage':<16}{'time':>8}{'memory':>10}{'tokens':>14}{'muon':>7}{cost_head}"
    say(heads + ("  taken   ratio" if took else ""))
    for each in planned.stages:
        cost = each.cost
        memory = f"{cost.memory / 1e6:,.0f} MB" if cost.memory else ""
        tokens = f"{cost.tokens:,.0f}" if cost.tokens else ""
        muon = f"{cost.muon:.0%}" if cost.muon else ""
        paid = f"{_paid(cost.seconds, price):>9.3f}" if price else ""
        shown = f"{each.name:<16}{clock(cost.seconds):>8}{memory:>10}{tokens:>14}{muon:>7}{paid}"
        say(shown + beside.get(each.name, ""))
    whole = f"{_paid(planned.seconds, price):>40.3f}" if price else ""
    say(f"{'left to do':<16}{clock(planned.seconds):>8}{whole}")
    for each in planned.stages:
        if each.cost.muon > MUON_SHARE:
            say(
                f"{each.name}: Muon takes {each.cost.muon:.0%} of a step, more than {MUON_SHARE:.0%}; "
                "a larger batch, or a smaller width, makes it less"
            )
    if took:
        say(how_near(took))


def _paid(seconds: float, price: float) -> float:
    """What so many seconds cost at a price per hour."""
    return round(seconds / 3600 * price, 6)


def _ratio(row: Timed) -> str:
    return "resumed" if row.resumed else "" if row.ratio is None else f"{row.ratio:.2f}"


def run_stage_alone(name: str, settings: list[str], root: Path, as_json: bool) -> None:
    from tutelage.core.config import parse_overrides

    made = alone(name, parse_overrides(settings), root, as_json)
    emit({name: made.ref}) if as_json else say(made.ref)


def list_keys(name: str, as_json: bool) -> None:
    from tutelage.recipe import stage_of

    found = stage_of(name)
    inputs = {key: f"{' or '.join(spec.kinds)}, from {spec.default}" for key, spec in found.inputs.items()}
    fields = {key: each for key, each in found.config.model_fields.items() if key not in found.config.REFUSED_KEY}
    if as_json:
        emit({"inputs": inputs, "schema": found.config.model_json_schema()})
        return
    for key, text in inputs.items():
        say(f"{key:<24}input: {text}")
    for key, field in fields.items():
        default, allowed = field.get_default(call_default_factory=True), _allowed(field.annotation)
        text = " ".join(
            filter(
                None, (*(field.description or "").split(), f"One of {', '.join(map(str, allowed))}." if allowed else "")
            )
        )
        given = f"{key}={','.join(map(str, default)) if isinstance(default, tuple) else default}"
        say(f"{given:<24}{text}" if len(given) < 24 else f"{given}\n{'':<24}{text}")


def _allowed(annotation: Any) -> list[Any]:
    """The values that a `Literal` names, wherever in the annotation it stands."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(parts)
    return [value for part in parts for value in _allowed(part)]


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        settings: Annotated[list[str] | None, typer.Argument(help="key=value, as many as you like.")] = None,
        root: RootOption = HERE,
        keys: Annotated[bool, typer.Option("--keys", help="List the inputs and keys of this stage, and end.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        list_keys(name, as_json) if keys else run_stage_alone(name, settings or [], root, as_json)

    command.__doc__ = f"Run the stage `{name}` by itself; `--keys` lists what can be set."
    return command


for _name in LIFE:
    if _name not in ("release", "evaluate"):
        app.command(_name, rich_help_panel="Stages")(_stage_command(_name))


release_app = group("release", "Make, look at, promote and roll back releases.")


@release_app.command("make")
def release_make(
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE of the stage `release`.")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Gate the last draft bundle; promote it or say why not."""
    run_stage_alone("release", settings or [], root, as_json)


@release_app.command("status")
def release_status(root: RootOption = HERE, as_json: JsonOption = False) -> None:
    """Print the release that is served and the history of promotions."""
    from tutelage.adapt.release import status

    found = status(known_root(root))
    if as_json:
        return emit(found)
    say(f"current: {_cut(found['current']) if found['current'] else 'nothing is served'}")
    for each in found["history"]:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each["at"] / 1000))
        change = f"{each['before']} -> {each['after']}" if each["before"] else each["after"]
        say(f"{at}  {_cut(each['bundle']):<21}{change:<22}{each['actor']:<10}{each['reason']}")


def _cut(ref: str) -> str:
    """A reference as a person reads it."""
    kind, _, id_ = ref.partition(":")
    return f"{kind}:{id_[:12]}"


@release_app.command("promote")
def release_promote(
    ref: Annotated[str, typer.Argument(help="A release artifact that passed its gate.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Serve this release."""
    from tutelage.adapt.release import promote

    found = promote(known_root(root), ref)
    tell(found, as_json)


@release_app.command("rollback")
def release_rollback(
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "rolled back by the operator",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Serve the release before this one again."""
    from tutelage.adapt.release import rollback

    found = rollback(known_root(root), reason)
    tell(found, as_json)


def recipes_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside the source."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    origin: Annotated[
        str, typer.Option("--from", help="starter, public, guard (guards alone) or open-model (tune one of others).")
    ] = "starter",
    as_json: JsonOption = False,
) -> None:
    """Begin a project: a folder with a recipe of your own."""
    source = recipes_folder() / f"{origin}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(each.stem for each in source.parent.glob("*.yaml")))
        raise UsageError(f"no recipe {origin!r}", key="--from", todo=f"There are: {known}")
    target = folder / "recipe.yaml"
    if target.exists():
        raise UsageError("it exists already and is left as it is", file=target)
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    command = f"{typed()} run {target} --root {folder / 'life'}"
    emit({"recipe": str(target), "next": command}) if as_json else say(f"{target}\nNext: {command}")

"""The command line: parse, call one function, print. Every command has `--json` and the exit codes of errors.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import NotFound, Stopped, TutelageError, UsageError
from tutelage.recipe import LIFE

app = typer.Typer(
    help="Raise a language model: train, teach, listen, test, attack, guard, and keep learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

RootOption = Annotated[Path, typer.Option("--root", envvar="TUTELAGE_ROOT", help="The folder that holds the life.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
HERE = Path("life")


def say(text: str = "") -> None:
    """Print for a person."""
    typer.echo(text)


def emit(value: Any) -> None:
    """Print for a program."""
    typer.echo(json.dumps(value, ensure_ascii=False, sort_keys=True))


def known_root(path: Path) -> Root:
    """An existing root. Raises NotFound."""
    if not (path / "artifacts").is_dir():
        raise NotFound("there is no life here yet", file=path, todo="Begin one: tutelage run recipes/starter.yaml")
    return Root(path)


def environment_defaults() -> dict[str, Any]:
    """What this machine's environment gives to stages: the mirror folder of public data."""
    mirror = os.environ.get("TUTELAGE_DATA")
    return {"mirror": mirror} if mirror else {}


# run


def _run(
    recipe_source: Path,
    overrides: list[str],
    root: Path,
    only: str | None,
    until: str | None,
    wait: bool,
    as_json: bool,
) -> dict[str, Artifact]:
    from tutelage import life
    from tutelage.plan import LifeClock, plan
    from tutelage.recipe import read_recipe
    from tutelage.terminal import Terminal

    recipe = read_recipe(recipe_source, overrides, environment_defaults())
    for name in (only, until):
        if name is not None:
            recipe.check(name)
    where = Root(root)
    planned = plan(recipe, where)
    with life.interruptible() as stop:
        if as_json:
            given: Any = {"only": only, "until": until, "wait": wait, "stop": stop, "sinks": (_json_line,)}
            return life.run(recipe, where, planned=planned, **given)
        clock = LifeClock(planned)
        with Terminal(clock.remaining, total=len(recipe.sections)) as terminal:
            given = {"only": only, "until": until, "wait": wait, "stop": stop, "sinks": (clock, terminal)}
            return life.run(recipe, where, planned=planned, **given)


def _json_line(event: Any) -> None:
    typer.echo(json.dumps(event.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False), err=True)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; a section per stage.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="stage.key=value, as many as you like.")] = None,
    root: RootOption = HERE,
    only: Annotated[str | None, typer.Option(help="Run this section only.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this section.")] = None,
    budget: Annotated[str | None, typer.Option(help="Size the training to this time: 90s, 15m, 2h.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Where people must answer, wait for them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe; what is made already is skipped, so the same command goes on after a stop."""
    extra = [f"budget={budget}"] if budget else []
    made = _run(recipe, [*(overrides or []), *extra], root, only, until, wait, as_json)
    if as_json:
        emit({name: artifact.ref for name, artifact in made.items()})
        return
    from tutelage.report.lines import life_table

    say()
    say(life_table(made))
    say(f"The report:   {_typed()} report --root {root}")
    say(f"The service:  {_typed()} serve --root {root}")


def _typed() -> str:
    """This program as it must be typed from here."""
    program = Path(sys.argv[0])
    try:
        return str(program.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(program)


@app.command("plan")
def plan_command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="stage.key=value")] = None,
    root: RootOption = HERE,
    budget: Annotated[str | None, typer.Option(help="Size the training to this time: 90s, 15m, 2h.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine and print what each stage will take, before anything runs."""
    from tutelage.plan import plan
    from tutelage.recipe import read_recipe
    from tutelage.terminal import clock

    extra = [f"budget={budget}"] if budget else []
    planned = plan(read_recipe(recipe, [*(overrides or []), *extra], environment_defaults()), Root(root))
    if as_json:
        emit(planned.model_dump(mode="json"))
        return
    machine = planned.machine
    say(
        f"This machine: {machine.threads} threads, {machine.gemm / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.0f} GB/s"
    )
    say(f"{'stage':<16}{'time':>8}{'memory':>10}{'tokens':>14}")
    for each in planned.stages:
        cost = each.cost
        memory = f"{cost.memory / 1e6:,.0f} MB" if cost.memory else ""
        tokens = f"{cost.tokens:,.0f}" if cost.tokens else ""
        note = "  made already" if each.known else ""
        say(f"{each.name:<16}{clock(cost.seconds):>8}{memory:>10}{tokens:>14}{note}")
    say(f"{'left to do':<16}{clock(planned.seconds):>8}")


def _run_stage(name: str, settings: list[str], root: Path, as_json: bool) -> None:
    """Run one stage by itself; inputs that are not named are those of the last run."""
    from tutelage import life
    from tutelage.core.config import parse_overrides
    from tutelage.terminal import Terminal

    given, defaults = parse_overrides(settings), environment_defaults()
    with life.interruptible() as stop:
        if as_json:
            made = life.run_alone(name, given, Root(root), defaults=defaults, stop=stop, sinks=(_json_line,))
        else:
            with Terminal(total=1) as terminal:
                made = life.run_alone(name, given, Root(root), defaults=defaults, stop=stop, sinks=(terminal,))
    emit({name: made.ref}) if as_json else say(made.ref)


def _list_keys(name: str, as_json: bool) -> None:
    from tutelage.recipe import stage_of

    found = stage_of(name)
    inputs = {key: f"{' or '.join(spec.kinds)}, from {spec.default}" for key, spec in found.inputs.items()}
    keys = {key: (field.default, field.description or "") for key, field in found.config.model_fields.items()}
    if as_json:
        emit({"inputs": inputs, "schema": found.config.model_json_schema()})
        return
    for key, text in inputs.items():
        say(f"{key:<24}input: {text}")
    for key, (default, text) in keys.items():
        say(f"{f'{key}={default}':<24}{text}")


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        settings: Annotated[list[str] | None, typer.Argument(help="key=value, as many as you like.")] = None,
        root: RootOption = HERE,
        keys: Annotated[bool, typer.Option("--keys", help="List the inputs and keys of this stage, and end.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        _list_keys(name, as_json) if keys else _run_stage(name, settings or [], root, as_json)

    command.__doc__ = f"Run the stage `{name}` by itself; `--keys` lists what can be set."
    return command


for _name in LIFE:
    if _name not in ("release", "evaluate"):
        app.command(_name, rich_help_panel="Stages")(_stage_command(_name))


# looking


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="One kind only: model, corpus, release ...")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a life."""
    found = known_root(root).list(kind)
    if as_json:
        emit([{"ref": each.ref, "stage": each.manifest.stage, "made": each.manifest.made} for each in found])
        return
    for each in found:
        made, name = each.manifest.made, f"{each.kind}:{each.id[:12]}"
        say(f"{name:<28}{each.manifest.stage:<14}{made.get('at', '')}  {made.get('seconds')} s")


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="An artifact (`model:3fa9`) or a section of the last run (`finetune`).")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: where it comes from, its settings, its figures; every file is checked against its hash."""
    artifact = _artifact(known_root(root), ref)
    artifact.verify()
    manifest = artifact.manifest
    if as_json:
        emit({"ref": artifact.ref, "path": str(artifact.path), **manifest.model_dump(mode="json")})
        return
    import yaml

    marks = ", ".join(manifest.licences) or "none stated"
    say(f"{artifact.ref}\n  {artifact.path}\n  licences: {marks}{'; simulated people' if manifest.simulated else ''}")
    for title, part in (("config", manifest.config), ("inputs", manifest.inputs), ("metrics", manifest.metrics)):
        if part:
            text = yaml.safe_dump(part, sort_keys=False, allow_unicode=True).rstrip()
            say(f"{title}:\n  " + text.replace("\n", "\n  "))
    say("files (all match their hashes):")
    for name, entry in manifest.files.items():
        say(f"  {name:<40}{entry.bytes:>12,} bytes")


def _artifact(root: Root, ref: str) -> Artifact:
    from tutelage import life

    made = life.made_last(root)
    return root.find(made.get(ref, ref))


@app.command()
def lineage(
    ref: Annotated[str, typer.Argument(help="An artifact, a section of the last run, or release:current.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Print where an artifact comes from, down to the first stage."""
    where = known_root(root)
    if ref == "release:current":
        from tutelage.guard.pipeline import bundle_of

        ref = f"bundle:{bundle_of(ref, where).removeprefix('bundle:')}"
    start = _artifact(where, ref)
    if as_json:
        emit(_ancestors(where, start))
        return
    seen: set[str] = set()

    def walk(artifact: Artifact, depth: int) -> None:
        manifest = artifact.manifest
        known = artifact.ref in seen
        mark = " (people's words)" if manifest.store else ""
        say(f"{'  ' * depth}{artifact.kind}:{artifact.id[:12]}  {manifest.stage}{mark}{'  (above)' if known else ''}")
        if not known:
            seen.add(artifact.ref)
            for parent in manifest.parents():
                walk(where.find(parent), depth + 1)

    walk(start, 0)


def _ancestors(root: Root, artifact: Artifact) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    todo = [artifact]
    while todo:
        each = todo.pop()
        if each.ref not in found:
            parents = each.manifest.parents()
            found[each.ref] = {"ref": each.ref, "stage": each.manifest.stage, "inputs": parents}
            todo += [root.find(parent) for parent in parents]
    return list(found.values())


@app.command()
def report(
    root: RootOption = HERE,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one static HTML page about the life: curves, figures with intervals, attacks, the release verdict."""
    from tutelage import life
    from tutelage.core.artifact import atomic_write
    from tutelage.report.pages import life_page

    where = known_root(root)
    path = out or where.reports / "life.html"
    atomic_write(path, life_page(where, life.last(where)).encode())
    emit({"report": str(path)}) if as_json else say(str(path))


@app.command()
def compare(
    left: Annotated[str, typer.Argument(help="An evaluation artifact or section.")],
    right: Annotated[str, typer.Argument(help="Another one.")],
    root: RootOption = HERE,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations item by item, with paired intervals, on one static page."""
    from tutelage.core.artifact import atomic_write
    from tutelage.report.pages import compare as compare_page

    where = known_root(root)
    path = out or where.reports / "compare.html"
    atomic_write(path, compare_page(where, _artifact(where, left), _artifact(where, right)).encode())
    emit({"report": str(path)}) if as_json else say(str(path))


@app.command()
def evaluate(
    target: Annotated[str | None, typer.Argument(help="What is examined: a model, a bundle, a URL, a section.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value of the stage `evaluate`.")] = None,
    suite: Annotated[Path | None, typer.Option("--suite", help="Your own items, one JSON object a line.")] = None,
    root: RootOption = HERE,
    keys: Annotated[bool, typer.Option("--keys", help="List the inputs and keys of this stage, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine a model on a suite of your own, or (without --suite) run the stage `evaluate`."""
    if keys:
        return _list_keys("evaluate", as_json)
    if suite is None:
        return _run_stage("evaluate", [*([target] if target else []), *(settings or [])], root, as_json)
    if target is None:
        raise UsageError("name what is to be examined", todo="tutelage evaluate model:3fa9 --suite FILE.jsonl")
    from tutelage import life
    from tutelage.evaluate.run import evaluate_reference

    where = Root(root)
    found = evaluate_reference(life.made_last(where).get(target, target), suite, root=where)
    if as_json:
        return emit({key: value for key, value in found.items() if key != "results"})
    for cell in found["cells"]:
        shown = f"undefined: {cell['reason']}"
        if cell["value"] is not None and cell["low"] is not None:
            shown = f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
        elif cell["value"] is not None:
            shown = f"{cell['value']:.3f} (no interval: {cell['reason']})"
        name = " ".join(filter(None, (cell["suite"], cell["cell"])))
        say(f"{name:<24}{cell['metric']:<23}{shown}  n={cell['n']}")


# talking and serving


@app.command()
def chat(
    ref: Annotated[str, typer.Argument(help="model:3fa9, a section of the last run, release:current, a URL ...")],
    root: RootOption = HERE,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest word.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model, line by line; an empty line ends."""
    from tutelage import life
    from tutelage.core import refs
    from tutelage.core.records import Example, Message
    from tutelage.generate.generator import Sampling

    where = Root(root)
    generator = refs.open(life.made_last(where).get(ref, ref), where)
    turns: list[Message] = []
    for line in sys.stdin if not sys.stdin.isatty() else iter(lambda: input("you> "), ""):
        text = line.strip()
        if not text:
            break
        turns.append(Message(role="user", content=text))
        example = Example(messages=tuple(turns))
        response = generator.generate([example], Sampling(max_tokens=96, temperature=temperature))[0][0]
        turns.append(response.message)
        emit(response.model_dump(mode="json")) if as_json else say(f"model> {response.message.content}")


@app.command()
def serve(
    root: RootOption = HERE,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8420.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Guard this OpenAI-compatible URL instead of a release.")] = None,
) -> None:
    """Start the guarded OpenAI-compatible service and the console on one port."""
    from tutelage.web.app import serve as serve_app

    serve_app(Root(root).create(), host=host, port=port, upstream=upstream, environment=dict(os.environ))


release_app = typer.Typer(help="Make, look at, promote and roll back releases.", no_args_is_help=True)
app.add_typer(release_app, name="release")


@release_app.command("make")
def release_make(
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE of the stage `release`.")] = None,
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Gate the last draft bundle; promote it or say why not."""
    _run_stage("release", settings or [], root, as_json)


@release_app.command("status")
def release_status(root: RootOption = HERE, as_json: JsonOption = False) -> None:
    """Print the release that is served and the history of promotions."""
    from tutelage.adapt.release import status

    found = status(known_root(root))
    emit(found) if as_json else say("\n".join(f"{key}: {value}" for key, value in found.items()))


@release_app.command("promote")
def release_promote(
    ref: Annotated[str, typer.Argument(help="A release artifact that passed its gate.")],
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Serve this release."""
    from tutelage.adapt.release import promote

    found = promote(known_root(root), ref)
    emit(found) if as_json else say("\n".join(f"{key}: {value}" for key, value in found.items()))


@release_app.command("rollback")
def release_rollback(
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "rolled back by the operator",
    root: RootOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Serve the release before this one again."""
    from tutelage.adapt.release import rollback

    found = rollback(known_root(root), reason)
    emit(found) if as_json else say("\n".join(f"{key}: {value}" for key, value in found.items()))


# keeping house


def recipes_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside the source."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    origin: Annotated[str, typer.Option("--from", help="Which recipe to begin with: starter or public.")] = "starter",
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
    say(f"{target}\nNext: {_typed()} run {target} --root {folder / 'life'}")


@app.command()
def stop(root: RootOption = HERE) -> None:
    """Ask a running life to stop; it ends within seconds and goes on with the same command."""
    (known_root(root).path / "stop").touch()
    say("asked to stop")


@app.command()
def gc(
    root: RootOption = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that neither the last run, nor a release, nor anything made from them needs."""
    import shutil

    from tutelage import life

    where = known_root(root)
    keep = {each["ref"] for artifact in life.last(where).values() for each in _ancestors(where, artifact)}
    for release in where.list("release"):
        keep |= {each["ref"] for each in _ancestors(where, release)}
    gone = [each for each in where.list() if each.ref not in keep]
    for each in gone if not dry_run else []:
        for file in each.path.rglob("*"):
            file.chmod(0o700 if file.is_dir() else 0o600)
        shutil.rmtree(each.path)
    if as_json:
        emit({"removed": [each.ref for each in gone], "dry_run": dry_run})
        return
    for each in gone:
        say(f"{'would remove' if dry_run else 'removed'} {each.kind}:{each.id[:12]}")
    say(f"{len(gone)} of {len(gone) + len(keep)} artifacts")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine and this installation can do."""
    import importlib.metadata as metadata
    import platform

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
    for name in ("tutelage", "torch", "transformers", "tokenizers", "pydantic", "sqlalchemy", "fastapi"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if as_json:
        emit(found)
        return
    for name, value in found.items():
        say(f"{name:<14}{value if value is not None else 'not installed'}")


# the way in and out


@contextmanager
def errors_as_exit_codes(as_json: bool) -> Iterator[None]:
    """One clear line for what we raise on purpose; a traceback only for our own mistakes."""
    try:
        yield
    except TutelageError as error:
        _fail(error, as_json)
    except KeyboardInterrupt:
        _fail(Stopped("stopped", todo="Run the same command again to go on"), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _fail(error: TutelageError, as_json: bool) -> None:
    word = {3: "waiting", 4: "refused", 130: "stopped"}.get(error.exit_code, "error")
    typer.echo(json.dumps(error.as_dict(), ensure_ascii=False) if as_json else f"{word}: {error}", err=True)
    raise SystemExit(error.exit_code)


def main() -> None:
    """The entry point `tutelage`."""
    with errors_as_exit_codes("--json" in sys.argv):
        app()

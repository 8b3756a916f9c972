"""What every command shares: the application, its options, how it prints, and how errors become exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.core.artifact import Artifact, Root, no_space
from tutelage.core.config import nearest
from tutelage.core.errors import NotFound, Stopped, TutelageError, UsageError

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


def group(name: str, help: str) -> typer.Typer:
    """A command with commands of its own: `tutelage release status`."""
    found = typer.Typer(help=help, no_args_is_help=True)
    app.add_typer(found, name=name)
    return found


def say(text: str = "") -> None:
    """Print for a person."""
    typer.echo(text)


def say_error(error: TutelageError) -> None:
    """Name on stderr what could not be used, where the rest goes on."""
    typer.echo(f"error: {error}", err=True)


def emit(value: Any) -> None:
    """Print for a program."""
    typer.echo(json.dumps(value, ensure_ascii=False, sort_keys=True))


def tell(found: Mapping[str, Any], as_json: bool) -> None:
    """Print a few facts, one to a line, or all of them as one object."""
    emit(found) if as_json else say("\n".join(f"{key}: {value}" for key, value in found.items()))


def share_cores() -> None:
    """Waiting threads of a matrix product give way after some microseconds instead of milliseconds (libgomp): alone a
    training step is as fast, beside other work it takes three quarters of the time. To be called before torch comes."""
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def environment() -> dict[str, str]:
    """The environment, read here alone."""
    return dict(os.environ)


def environment_defaults() -> dict[str, Any]:
    """What this machine's environment gives to stages: the mirror folder of public data."""
    mirror = os.environ.get("TUTELAGE_DATA")
    return {"mirror": mirror} if mirror else {}


def typed() -> str:
    """This program as it must be typed from here."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m tutelage"
    try:
        return str(program.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(program)


def root_at(path: Path) -> Root:
    """The root in a folder, there or not; its service.yaml may name variables of the environment."""
    return Root(path, environment())


def known_root(path: Path) -> Root:
    """An existing root. Raises NotFound."""
    if not (path / "artifacts").is_dir():
        raise NotFound("there is no life here yet", file=path, todo="Begin one: tutelage run recipes/starter.yaml")
    return root_at(path)


def artifact_of(root: Root, ref: str) -> Artifact:
    """An artifact by its reference, the section of the last run that made it, or `release:current` (its bundle)."""
    from tutelage.life import made_last

    if ref == "release:current" or (ref.startswith("release:") and "-" in ref):  # a release of the store
        from tutelage.guard.opened import bundle_of

        ref = f"bundle:{bundle_of(ref, root).removeprefix('bundle:')}"
    known = made_last(root)
    if ref not in known and ":" not in ref:
        raise _unknown(ref, known)
    return root.find(known.get(ref, ref))


def _unknown(ref: str, known: Iterable[str]) -> NotFound:
    """What was typed is neither a section nor a reference."""
    near = nearest(ref, known)
    todo = f"Did you mean {near!r}?" if near else "`tutelage list` names what there is, as `kind:id`"
    return NotFound(f"the last run has no section {ref!r}, and it is no reference", todo=todo)


def check_name(ref: str, known: Iterable[str]) -> None:
    """Raises NotFound for what is neither a section of the last run nor reads as a reference or a folder."""
    if ref not in known and ":" not in ref and not ref.startswith((".", "/", "~")) and not Path(ref).is_dir():
        raise _unknown(ref, known)


def open_ref(path: Path, ref: str) -> Any:
    """Open a reference, or what a section of the last run made; an address needs no life."""
    from tutelage.core import refs
    from tutelage.life import made_last

    root = root_at(path) if ref.startswith(("http:", "https:", "fake:", "rules:")) else known_root(path)
    known = made_last(root)
    check_name(ref, known)
    wanted = known.get(ref, ref)
    kind = wanted.partition(":")[0]
    if kind not in refs.SCHEMES and (root.artifacts / kind).is_dir():
        todo = f"`tutelage show {ref}` prints it"
        raise UsageError(f"{ref!r} is of kind {kind}: nothing that answers or judges", todo=todo)
    return refs.open(wanted, root)


def sink_of_lines(event: Any) -> None:
    """Events as JSON lines on stderr, for `--json`."""
    typer.echo(json.dumps(event.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False), err=True)


def alone(name: str, settings: Mapping[str, Any], root: Path, as_json: bool) -> Artifact:
    """Run one stage by itself, with progress on stderr."""
    from tutelage import life
    from tutelage.terminal import Terminal

    defaults = environment_defaults()
    with life.interruptible() as stop:
        if as_json:
            return life.run_alone(name, settings, root_at(root), defaults=defaults, stop=stop, sinks=(sink_of_lines,))
        with Terminal(total=1) as terminal:
            return life.run_alone(name, settings, root_at(root), defaults=defaults, stop=stop, sinks=(terminal,))


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
    except OSError as error:
        _fail(_of_system(error), as_json)


UNUSABLE: Mapping[int, str] = {
    errno.ENOENT: "Check how it is spelt, or name another place",
    errno.ENOTDIR: "A part of this path is a file: name a folder",
    errno.EISDIR: "Name a file, not a folder",
    errno.EEXIST: "Remove it, or name another place",
    errno.EACCES: "Change its permissions, or name a place that is yours",
    errno.EPERM: "Change its permissions, or name a place that is yours",
    errno.EROFS: "Name a place that can be written to",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.ELOOP: "Its links lead in a circle: name another place",
}
"""What the system says of a path that the user can mend -> how."""


def _of_system(error: OSError) -> TutelageError:
    """What the operating system refused: a path that cannot be used is the user's to mend, anything else is not."""
    file, said = error.filename, error.strerror or str(error) or type(error).__name__
    where = os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else None
    if full := no_space(error, where):
        return full
    said = said[:1].lower() + said[1:]
    if where is not None and (todo := UNUSABLE.get(error.errno or 0)):
        return UsageError(said, file=where, todo=todo)
    return TutelageError(said, file=where, todo="The system refused this: run the same command again once it is mended")


def _fail(error: TutelageError, as_json: bool) -> None:
    word = {3: "waiting", 4: "refused", 130: "stopped"}.get(error.exit_code, "error")
    typer.echo(json.dumps(error.as_dict(), ensure_ascii=False) if as_json else f"{word}: {error}", err=True)
    raise SystemExit(error.exit_code)

"""tutelage from Python: run a recipe or one stage, open a reference, find an artifact, load what it holds.

    import tutelage as tt

    made = tt.run("recipes/starter.yaml", root="life", budget="10m")
    more = tt.stages.pretrain(root="life", depth=4)
    answer = tt.open("release:current", root="life").generate(prompts, sampling)
    decoder = tt.load(made["pretrain"])

Nothing here prints; errors are those of `tutelage.core.errors`, and say what the command line would say.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage import life
from tutelage.core import refs
from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import nearest
from tutelage.core.events import Sink
from tutelage.core.records import Example, Preference, read_jsonl
from tutelage.recipe import LIFE, read_recipe

__all__ = ["find", "load", "open", "run", "stages"]

Place = str | Path | Root
"""The folder that holds the life."""


def _root(place: Place) -> Root:
    return place if isinstance(place, Root) else Root(place)


def run(
    recipe: str | Path | Mapping[str, Any],
    *overrides: str,
    root: Place = "life",
    budget: str | float | None = None,
    only: str | None = None,
    until: str | None = None,
    wait: bool = False,
    mirror: str = "",
    sinks: Iterable[Sink] = (),
) -> dict[str, Artifact]:
    """Run a recipe (a file, or a mapping of sections); what is made already is skipped. Section name -> artifact.

    `overrides` read `stage.key=value`; `budget` is a length of time (`10m`); `mirror` is a folder of public data.
    Raises what `tutelage run` ends with: ConfigError, Waiting (people have not answered), Refused (a gate said no).
    """
    extra = [f"budget={budget}"] if budget is not None else []
    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    found = read_recipe(source, [*overrides, *extra], {"mirror": mirror} if mirror else None)
    with life.interruptible() as stop:
        return life.run(found, _root(root), only=only, until=until, wait=wait, sinks=tuple(sinks), stop=stop)


class Stages:
    """The stages of a life as functions: `stages.pretrain(root="life", depth=4)` returns the artifact it made.

    Keyword arguments are the stage's configuration keys and inputs (references or artifacts); an input that is not
    named is that of the last run in this root, or else the newest. A stage run so is neither planned nor remembered.
    """

    def __dir__(self) -> list[str]:
        return list(LIFE)

    def __getattr__(self, name: str) -> Callable[..., Artifact]:
        if name not in LIFE:
            near = nearest(name, LIFE)
            raise AttributeError(f"no stage {name!r}." + (f" Did you mean {near!r}?" if near else ""))

        def call(*, root: Place = "life", sinks: Iterable[Sink] = (), **values: Any) -> Artifact:
            given = {key: _named(value) for key, value in values.items()}
            with life.interruptible() as stop:
                return life.run_alone(name, given, _root(root), sinks=tuple(sinks), stop=stop)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = f"Run the stage `{name}` by itself; `tutelage {name} --keys` lists what can be set."
        return call


stages = Stages()


def _named(value: Any) -> Any:
    """Artifacts as the references that recipes hold."""
    if isinstance(value, Artifact):
        return value.ref
    return [_named(each) for each in value] if isinstance(value, list | tuple) else value


def open(ref: str, root: Place = "life", **options: Any) -> Any:
    """Open a reference, or what a section of the last run made: a generator, a judge, the store.

    `model:3fa9`, `bundle`, `release:current`, `https://host/v1#model`, `classifier:9ab`, `rules:numeric`, `store:`.
    """
    where = _root(root)
    known = life.at_hand(where, [ref])
    return refs.open(known[0] if known else ref, where, **options)


def find(ref: str, root: Place = "life") -> Artifact:
    """The artifact of a reference (`model:3fa9`), of a section of the last run, or the newest of a stage.

    Raises NotFound, also when several fit a short reference.
    """
    where = _root(root)
    known = life.at_hand(where, [ref])
    return where.find(known[0] if known else ref)


def load(artifact: Artifact | str, root: Place = "life") -> Any:
    """What an artifact (or a reference, or a section of the last run) holds, as Python objects.

    | kind | gives |
    |---|---|
    | model, reward | the torch module, fp32 on the CPU |
    | tokenizer | a Tokenizer |
    | classifier | a judge |
    | corpus | a list of records for each of dialogues, comparisons, labels, items |
    | preferences, labels | a list of records |
    | others | their JSON files, by name |

    Every file is compared with its hash first. Raises NotFound, CorruptArtifact, MissingExtra (torch).
    """
    where = _root(root)
    found = artifact if isinstance(artifact, Artifact) else find(artifact, where)
    found.verify()
    match found.kind:
        case "model" | "reward":
            return refs.load(refs.SCHEMES["weights"])(found.path)
        case "tokenizer":
            from tutelage.tokens.tokenizer import load as words

            return words(found)
        case "classifier":
            return refs.open(found.ref, where)
        case "preferences":
            return list(read_jsonl(found.file("preferences.jsonl"), Preference))
        case "labels":
            return list(read_jsonl(found.file("labels.jsonl"), Example))
        case "corpus":
            kinds: dict[str, type[Example] | type[Preference]] = {
                "dialogues": Example,
                "comparisons": Preference,
                "labels": Example,
                "items": Example,
            }
            return {name: list(read_jsonl(found.file(f"{name}.jsonl"), model)) for name, model in kinds.items()}
    names = [name for name in found.manifest.files if name.endswith(".json")]
    return {Path(name).stem: _json(found.path / name) for name in names}


def _json(path: Path) -> Any:
    with builtins.open(path, encoding="utf-8") as file:
        return json.load(file)

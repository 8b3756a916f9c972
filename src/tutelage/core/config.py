"""One way to configure: defaults < recipe (YAML) < `stage.key=value`. A frozen model per stage is the only source
of flags, help and docs; what was resolved is stored with the result."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tutelage.core.errors import ConfigError, NotFound, UsageError
from tutelage.core.records import explain


class Config(BaseModel):
    """Base of every stage's configuration: frozen, validated, every key with a default and a docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    OUTSIDE_KEY: ClassVar[frozenset[str]] = frozenset()
    """Keys that cannot change what is computed (a folder's place, say); they enter neither key nor manifest."""

    REFUSED_KEY: ClassVar[frozenset[str]] = frozenset()
    """Keys that this configuration shares with others and always refuses: no help lists them."""

    @property
    def simulated(self) -> bool:
        """Whether it asks for the words of simulated people: known before anything runs."""
        return getattr(self, "people", "") == "simulated"

    def resolved(self) -> dict[str, Any]:
        """What enters the key and the manifest: every key with its value, as plain JSON."""
        return self.model_dump(mode="json", exclude=set(self.OUTSIDE_KEY))


C = TypeVar("C", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which YAML itself lets pass in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, file: str | Path | None = None) -> Any:
    """Parse YAML; ConfigError names file and line."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(problem, file=file, row=mark.line + 1 if mark else None) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises NotFound or ConfigError."""
    if path.is_dir():
        here = sorted(str(each) for each in path.glob("*.y*ml"))
        raise UsageError(
            "this is a folder", file=path, todo=f"Name a file in it: {', '.join(here) or 'it has no YAML'}"
        )
    if not path.is_file():
        beside = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        todo = f"Did you mean {path.parent / near}?" if near else None
        raise NotFound("no such file", file=path, todo=todo)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text ({error.reason} at byte {error.start})", file=path) from None
    found = parse_yaml(text, path)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError("expected `key: value` lines at the top", file=path)
    return {str(key): value for key, value in found.items()}


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """`["pretrain.depth=4", "budget=10m"]` -> `{"pretrain": {"depth": 4}, "budget": "10m"}`. Values are YAML."""
    tree: dict[str, Any] = {}
    for item in items:
        path, sign, value = item.partition("=")
        parts = path.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError(f"an override reads `stage.key=value`, found {item!r}")
        here = tree
        for part in parts[:-1]:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise ConfigError(f"{part!r} in {item!r} is set as a value and as a section")
        here[parts[-1]] = parse_yaml(value)
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge, everything else replaces."""
    out = dict(base)
    for key, value in over.items():
        mine = out.get(key)
        out[key] = merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return out


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, if any is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def _inner(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation holds: `A | None`, `list[A]`, `dict[str, A]` -> [A]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [model for part in typing.get_args(annotation) for model in _inner(part)]
    return []


def _known_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys that would be right at `path` within the model."""
    models = [model]
    for part in path:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        models = [inner for field in fields for inner in _inner(field.annotation)] if fields else models
    return sorted({name for each in models for name in each.model_fields})


def build(model: type[C], values: Any, *, file: str | Path | None = None, prefix: str = "") -> C:
    """Validate `values` as `model`. Raises ConfigError naming file, key, and for an unknown key its nearest."""
    if values is None:
        values = {}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = next((each for each in faults if each["type"] == "extra_forbidden"), None)  # a misspelt key explains
        if first is None:  # the missing one
            key, message = explain(error)
            raise ConfigError(message, file=file, key=".".join(filter(None, (prefix, key))) or None) from None
        full = ".".join(filter(None, (prefix, *map(str, first["loc"]))))
        known = _known_at(model, first["loc"][:-1])
        near = nearest(str(first["loc"][-1]), known)
        todo = f"Did you mean {near!r}?" if near else f"Known here: {', '.join(known)}"
        raise ConfigError("unknown key", file=file, key=full, todo=todo) from None


def secret(value: str, environment: Mapping[str, str], where: str, folder: Path = Path()) -> str:
    """The secret that `env:NAME` or `file:PATH` (a path beside the file that names it, in `folder`) stands for.

    Raises ConfigError; a secret in clear text is refused.
    """
    kind, _, name = value.partition(":")
    if kind == "env":
        found = environment.get(name, "")
        problem = f"the environment has no variable {name}"
    elif kind == "file":
        path = folder / name
        found = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        problem = f"the file {path} is missing or empty"
    else:
        found, problem = "", "a secret is given as `env:NAME` or `file:PATH`, never in the file itself"
    if not found:
        raise ConfigError(problem, key=where)
    return found

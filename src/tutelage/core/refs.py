"""References are strings; one table says which module opens which scheme. Nothing is imported before it is opened.

    model:3fa9...  bundle:...  release:current  hf:org/name  ./directory  https://host/v1#model
    fake:...  rules:numeric  module:factory (an import path: the whole plug-in system)

A factory is called as `factory(ref, root, **options)` with the reference as it was written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.core.artifact import Artifact, Root
from tutelage.core.config import nearest
from tutelage.core.errors import MissingExtra, NotFound

SCHEMES: dict[str, str] = {
    # generators
    "model": "tutelage.generate.local:open_model",
    "hf": "tutelage.generate.local:open_model",
    "https": "tutelage.generate.remote:open_remote",
    "http": "tutelage.generate.remote:open_remote",
    "fake": "tutelage.generate.fake:open_fake",
    "bundle": "tutelage.guard.opened:open_bundle",
    "release": "tutelage.guard.opened:open_release",
    # judges
    "rules": "tutelage.judge.rules:open_rules",
    "classifier": "tutelage.judge.classifier:open_classifier",
    "reward": "tutelage.judge.reward:open_reward",
    "prompted": "tutelage.judge.prompted:open_prompted",
    "templated": "tutelage.judge.templates:open_templated",
    # places that a room above may need opened
    "store": "tutelage.store.engine:open_store",
    "app": "tutelage.web.app:background",
    "settings": "tutelage.web.settings:open_settings",
    "import": "tutelage.model.checkpoint:import_model",
    "adapter": "tutelage.model.peft:import_adapter",
    "weights": "tutelage.model.checkpoint:load",
    "encoder": "tutelage.model.encoder:open_encoder",
}

EXTRA_OF = {"torch": "train", "transformers": "hf", "datasets": "hf", "huggingface_hub": "hf", "psycopg": "postgres"}
"""Optional module -> the extra that brings it."""


def load(path: str) -> Any:
    """Import `module:name`. Raises NotFound for a wrong path and MissingExtra for an optional dependency."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in EXTRA_OF:
            raise MissingExtra(missing, EXTRA_OF[missing]) from None
        raise NotFound(f"no module {error.name!r} for the reference {path!r}") from None
    except AttributeError:
        raise NotFound(f"the module {module!r} has no {name!r}") from None


def factory(ref: str) -> Callable[..., Any]:
    """The function that opens a reference."""
    scheme, colon, rest = ref.partition(":")
    if scheme in SCHEMES and colon:
        return load(SCHEMES[scheme])  # type: ignore[no-any-return]
    if ref.startswith((".", "/", "~")) or Path(ref).is_dir():
        return load(SCHEMES["hf"])  # type: ignore[no-any-return]
    if colon and rest.isidentifier() and all(part.isidentifier() for part in scheme.split(".")) and "." in scheme:
        return load(ref)  # type: ignore[no-any-return]
    near = nearest(scheme, SCHEMES)
    todo = f"Did you mean `{near}:`?" if near else "See `tutelage show --help` for what a reference may be"
    raise NotFound(f"{ref!r} is no reference", todo=todo)


def open(ref: str, root: Root | None = None, **options: Any) -> Any:
    """Open a reference: a generator, a judge, the store, a release."""
    return factory(ref)(ref, root, **options)


def resolve_artifact(ref: str, root: Root) -> Artifact:
    """The artifact a reference names: `kind:hash`, or a Hugging Face name or directory, which is imported once."""
    if ref.startswith(("hf:", ".", "/", "~")) or (":" not in ref and Path(ref).is_dir()):
        found = load(SCHEMES["import"])(ref, root)
        assert isinstance(found, Artifact)
        return found
    return root.find(ref)

"""What was computed: immutable directories, each with a manifest that names its origin, under one root."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationError

from tutelage.core.config import load_yaml, secret
from tutelage.core.errors import Busy, ConfigError, CorruptArtifact, NoSpace, NotFound, UsageError
from tutelage.core.records import Record, canonical, explain

FORMAT = 1


class FileEntry(Record):
    """A sealed file: sha256 (hex) and size in bytes."""

    sha256: str
    bytes: int


class Manifest(Record):
    """`manifest.json`. The artifact's id is the sha256 of its canonical form without `made`."""

    format: int = FORMAT
    kind: str
    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str | list[str]] = Field(default_factory=dict)
    """Input name -> `kind:id`, or a list of them."""
    store: dict[str, Any] | None = None
    """`{"watermark": n, "scopes": [...]}` where the stage read people's words."""
    files: dict[str, FileEntry]
    metrics: dict[str, Any] = Field(default_factory=dict)
    licences: list[str] = Field(default_factory=list)
    simulated: bool = False
    """True when simulated people stand anywhere in its lineage."""
    made: dict[str, Any] = Field(default_factory=dict)
    """When, how long, where, by which code: the only part that may differ between two equal artifacts."""

    @property
    def id(self) -> str:
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude={"made"}))).hexdigest()

    def parents(self) -> list[str]:
        """All inputs as `kind:id`, in the order of their names."""
        found: list[str] = []
        for name in sorted(self.inputs):
            value = self.inputs[name]
            found += [value] if isinstance(value, str) else value
        return found


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Artifact:
    """A sealed directory: `kind`, `id`, `path`, `manifest`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind, self.id = path.parent.name, path.name

    def __repr__(self) -> str:
        return f"Artifact({self.ref[: len(self.kind) + 13]})"

    @property
    def ref(self) -> str:
        """The reference that opens it anywhere: `kind:id`."""
        return f"{self.kind}:{self.id}"

    @cached_property
    def manifest(self) -> Manifest:
        file = self.path / "manifest.json"
        try:
            return Manifest.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise CorruptArtifact("the manifest is missing", file=file, todo=self._mend()) from None
        except ValidationError as error:
            key, message = explain(error)
            raise CorruptArtifact(message, file=file, key=key, todo=self._mend()) from None

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest.config

    def file(self, name: str) -> Path:
        """The path of a sealed file; NotFound if the artifact has none of that name."""
        if name not in self.manifest.files:
            have = ", ".join(sorted(self.manifest.files))
            raise NotFound(f"{self.ref[:24]} holds no file {name!r}", todo=f"It holds: {have}")
        return self.path / name

    def verified(self) -> Artifact:
        """Itself, once `verify` has passed: for whoever opens what it holds."""
        self.verify()
        return self

    def verify(self) -> None:
        """Compare every file with its hash. Raises CorruptArtifact naming the first that differs."""
        if self.manifest.id != self.id:
            raise CorruptArtifact("the manifest does not match its id", file=self.path, todo=self._mend())
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise CorruptArtifact("the file is missing", file=file, todo=self._mend())
            if file.stat().st_size != entry.bytes or file_hash(file) != entry.sha256:
                raise CorruptArtifact("the file differs from what was sealed", file=file, todo=self._mend())

    def _mend(self) -> str:
        return f"Remove the folder {self.path}, then `tutelage run RECIPE` makes it anew, or import it again"


def atomic_write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write aside, fsync, rename: after a crash the file is whole, the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames within a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Root:
    """A folder that holds one model's life: artifacts, store, events, reports.

    `environment` is where `env:NAME` in its service.yaml is looked up: whoever makes a root hands it over."""

    def __init__(self, path: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self.path, self.environment = Path(path).absolute(), environment or {}
        self.artifacts = self.path / "artifacts"
        self.keys = self.path / "by-key"
        self.work = self.path / "work"
        self.events = self.path / "events"
        self.reports = self.path / "reports"
        self.store_path = self.path / "store.db"
        self.plans = self.path / "plans"
        self.plan_path = self.path / "plan.json"
        self.recipe_path = self.path / "recipe.yaml"
        self.service_path = self.path / "service.yaml"

    def __repr__(self) -> str:
        return f"Root({str(self.path)!r})"

    def create(self) -> Root:
        """Make the folders; existing ones are left as they are."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError("the root must be a folder", file=self.path)
        for folder in (self.artifacts, self.keys, self.work, self.events, self.reports):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    @property
    def database(self) -> str:
        """The address of the PostgreSQL database that `database` in service.yaml names; "" is SQLite in store.db.

        Raises ConfigError, also for a password in clear text."""
        given = load_yaml(self.service_path).get("database") if self.service_path.is_file() else None
        if given is None or given == "":
            return ""
        where: dict[str, Any] = {"file": self.service_path, "key": "database"}
        if not isinstance(given, str):
            raise ConfigError(f"expected a text, found {given!r}", **where)
        if given.startswith(("env:", "file:")):
            try:
                return secret(given, self.environment, "database", self.path)
            except ConfigError as error:
                raise ConfigError(error.message, **where) from None
        if not given.startswith("postgresql"):
            raise ConfigError("expected `env:NAME`, `file:PATH` or postgresql://USER@HOST/DATABASE", **where)
        try:
            parts = urlsplit(given)
        except ValueError as error:
            raise ConfigError(str(error), **where) from None
        if parts.password is not None or "password" in parse_qs(parts.query):
            todo = "Write the address to a file or a variable and name it: `file:PATH`, `env:NAME`; or use ~/.pgpass"
            raise ConfigError("a password does not stand in the file itself", todo=todo, **where)
        return given

    @property
    def secret(self) -> bytes:
        """32 bytes from `secret.key` (0600), made at first use; every other key is derived from it."""
        file = self.path / "secret.key"
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            aside = self.path / f".secret.{os.getpid()}.{secrets.token_hex(4)}"
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_hex(32))
            try:
                os.link(aside, file)  # fails if another process was first: its key then holds
            except FileExistsError:
                pass
            finally:
                aside.unlink()
        try:
            key = bytes.fromhex(file.read_text().strip())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise UsageError("the key must be 64 hex digits", file=file, todo="Restore it from your backup")
        return key

    # artifacts

    def list(self, kind: str | None = None, damaged: list[CorruptArtifact] | None = None) -> list[Artifact]:
        """All sealed artifacts (of one kind), oldest first. Raises CorruptArtifact for a manifest that cannot be read,
        or puts it into `damaged` and leaves that artifact out."""
        kinds = [self.artifacts / kind] if kind else sorted(self.artifacts.glob("*"))
        found: list[tuple[str, str, Artifact]] = []
        for path in (path for folder in kinds for path in folder.glob("*") if (path / "manifest.json").is_file()):
            each = Artifact(path)
            try:
                found.append((str(each.manifest.made.get("at", "")), each.id, each))
            except CorruptArtifact as error:
                if damaged is None:
                    raise
                damaged.append(error)
        return [each for _, _, each in sorted(found, key=lambda entry: entry[:2])]

    def find(self, ref: str) -> Artifact:
        """The artifact `kind:prefix-of-id` (at least 4 hex digits). Raises NotFound, also when several fit."""
        kind, _, prefix = ref.partition(":")
        paths = sorted((self.artifacts / kind).glob(f"{prefix}*")) if len(prefix) >= 4 and prefix.isalnum() else []
        if len(paths) == 1:
            return Artifact(paths[0])
        if paths:
            raise NotFound(f"{ref!r} fits {len(paths)} artifacts", todo="Give more digits")
        todo = "See `tutelage list`" if prefix else "A reference reads `kind:first-digits-of-the-id`"
        raise NotFound(f"no artifact {ref!r} in {self.path}", todo=todo)

    def by_key(self, key: str) -> Artifact | None:
        """What a key has made, or None. An entry whose folder was removed counts as not made."""
        file = self.keys / key
        if not file.is_file():
            return None
        kind, _, found = file.read_text().strip().partition(":")
        path = self.artifacts / kind / found
        return Artifact(path) if (path / "manifest.json").is_file() else None

    def seal(self, folder: Path, manifest: Manifest, key: str) -> Artifact:
        """Turn a folder into an artifact: fsync, write the manifest, rename. Equal content is kept once."""
        target = self.artifacts / manifest.kind / manifest.id
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target / "manifest.json").is_file():
            for file in folder.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
                    file.chmod(0o444)
            text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
            atomic_write(folder / "manifest.json", text.encode(), 0o444)
            try:
                os.rename(folder, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            sync_directory(target.parent)
        shutil.rmtree(folder, ignore_errors=True)
        atomic_write(self.keys / key, f"{manifest.kind}:{manifest.id}".encode())
        return Artifact(target)

    @contextmanager
    def lock(self, key: str, name: str = "this") -> Iterator[None]:
        """Hold a key against other processes; released by the system when the process ends, however it ends."""
        self.work.mkdir(parents=True, exist_ok=True)
        path = self.work / f"{key}.lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                who = file.read().strip() or "another process"
                todo = "Wait for it, stop it with `tutelage stop`, or give another --root"
                raise Busy(f"{name}: {who} is at work on it already in {self.path}", todo=todo) from None
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def busy(self) -> bool:
        """Whether a process holds a key here."""
        for path in self.work.glob("*.lock"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return True
        return False


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder with hash and size, by its name relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=file_hash(path), bytes=path.stat().st_size)
        for path in files
    }


def no_space(error: OSError, where: str | Path | None) -> NoSpace | None:
    """A full disk (or quota) in our words; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    todo = "Free some space and run the same command again: what is finished is kept"
    return NoSpace("the disk is full", file=where, todo=todo)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk into one clear error."""
    try:
        yield
    except OSError as error:
        if full := no_space(error, where):
            raise full from None
        raise

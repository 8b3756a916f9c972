"""Every error tutelage raises on purpose, as one tree; each says what was found, where, and what to do.

TutelageError                exit 1   something failed
|- UsageError                exit 2   what the user gave cannot be used
|  |- ConfigError                     a recipe, service or policy file: wrong key, wrong value
|  |- DataError                       a row or a file that does not parse, an empty data set
|  |- NotFound                        a file, artifact, reference or stage that does not exist
|  |- MissingExtra                    an optional dependency that is not installed
|  `- LicenceError                    a source or an export that its licence class forbids
|- Busy                      exit 1   another process holds this key
|- CorruptArtifact           exit 1   a sealed file no longer matches its manifest
|- NoSpace                   exit 1   the disk is full
|- Diverged                  exit 1   training went non-finite too often
|- UpstreamError             exit 1   a remote endpoint failed for good
|  `- Unreachable                     it was not even reached
|- Waiting                   exit 3   people have not answered yet; the same command goes on
|- Refused                   exit 4   a gate said no
`- Stopped                   exit 130 stopped on request; the same command goes on
"""

from __future__ import annotations

import sys
from pathlib import Path


class TutelageError(Exception):
    """Base of the tree. `file`, `row` (1-based) and `key` say where, `todo` what to do next."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        key: str | None = None,
        todo: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.file, self.row, self.key, self.todo = message, file, row, key, todo

    def __str__(self) -> str:
        where = [str(self.file)] if self.file is not None else []
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.key is not None:
            where.append(f"key {self.key!r}")
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        return f"{text}. {self.todo}" if self.todo else text

    def as_dict(self) -> dict[str, object]:
        """The error as `--json` prints it."""
        fields = {"file": self.file and str(self.file), "row": self.row, "key": self.key, "todo": self.todo}
        found = {name: value for name, value in fields.items() if value is not None}
        return {"error": type(self).__name__, "message": self.message, "exit_code": self.exit_code, **found}


class UsageError(TutelageError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe, service or policy file holds a wrong key or value."""


class DataError(UsageError):
    """A row or a file does not parse, or a data set is empty."""


class NotFound(UsageError):
    """A file, artifact, reference or stage does not exist."""


def install(extra: str) -> str:
    """The command that brings an extra, as it can be typed from wherever one stands."""
    here = Path(__file__).resolve().parents[3]
    what = f"-e '{here}[{extra}]'" if (here / "pyproject.toml").is_file() else f"'tutelage[{extra}]'"
    return f"{sys.executable} -m pip install {what}"


class MissingExtra(UsageError):
    """An optional dependency is not installed; names the extra that brings it."""

    def __init__(self, module: str, extra: str, todo: str | None = None) -> None:
        super().__init__(
            f"this needs the Python module {module!r}, which is not installed",
            todo=todo or f"Install it: {install(extra)}",
        )


class LicenceError(UsageError):
    """A source may not be used for this, or an export needs its licence class accepted by name."""


class Busy(TutelageError):
    """Another process works on the same key."""


class CorruptArtifact(TutelageError):
    """A sealed file is missing or no longer matches the hash in its manifest."""


class NoSpace(TutelageError):
    """The disk is full; everything sealed before is intact."""


class Diverged(TutelageError):
    """Training became non-finite or exploded more often than allowed."""


class UpstreamError(TutelageError):
    """A remote endpoint failed after all retries."""


class Unreachable(UpstreamError):
    """A remote endpoint was not even reached: no connection, after all retries."""


class Waiting(TutelageError):
    """A stage needs people's answers that are not there yet. `have` of `need` are."""

    exit_code = 3

    def __init__(self, message: str, *, have: int, need: int, where: str) -> None:
        super().__init__(f"{message}: {have} of {need} are there", todo=where)
        self.have, self.need, self.where = have, need, where


class Refused(TutelageError):
    """A gate refused a release, with its reason in one sentence."""

    exit_code = 4


class Stopped(TutelageError):
    """Stopped on request (Ctrl-C, `tutelage stop`, a time limit). Nothing finished is lost."""

    exit_code = 130

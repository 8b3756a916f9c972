"""The command `tutelage`: the files of `commands/` in the order in which `--help` lists them, and the way in."""

from __future__ import annotations

import sys

# isort: off
import tutelage.commands.making
import tutelage.commands.examining
import tutelage.commands.looking
import tutelage.commands.serving
import tutelage.commands.guarding
import tutelage.commands.exchange
import tutelage.commands.keeping
import tutelage.commands.operating  # noqa: F401 - each registers its commands

# isort: on
from tutelage.commands.base import app, errors_as_exit_codes, share_cores

__all__ = ["app", "main"]


def main() -> None:
    """The entry point `tutelage`."""
    share_cores()
    with errors_as_exit_codes("--json" in sys.argv):
        app()

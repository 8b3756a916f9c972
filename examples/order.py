"""The examples go on from one another: this says which comes first, instead of a traceback."""

import sys

import tutelage as tt
from tutelage.core.errors import NotFound


def after(example: str, section: str, root: str) -> None:
    """End with a word when `section`, which that example makes, is not in the root yet."""
    try:
        tt.find(section, root=root)
    except NotFound:
        sys.exit(f"{example} comes before this one: python examples/{example} {root}")

"""Eight families of attack, each its own code: what changes is how the same request is put."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tutelage.core.errors import NotFound
from tutelage.core.records import Example
from tutelage.redteam.attacks.language import Translation
from tutelage.redteam.attacks.single import Direct, Indirect, Obfuscation, Override, Persona
from tutelage.redteam.attacks.turns import Crescendo, ManyShot
from tutelage.redteam.goals import Scripted

FAMILIES: Mapping[str, Callable[[], Scripted]] = {
    "direct": Direct,
    "persona": Persona,
    "obfuscation": Obfuscation,
    "override": Override,
    "indirect": Indirect,
    "crescendo": Crescendo,
    "many-shot": ManyShot,
}
"""Families that need nothing but the goal."""
NAMES = (*FAMILIES, "translation")
"""All families, in the order of the matrix; `direct` is the plain request, the baseline of the others."""


def make(names: Iterable[str], dialogues: Iterable[Example] = ()) -> list[Scripted]:
    """Attacks by name. `translation` learns its words from the dialogues. Raises NotFound for an unknown family."""
    rows = list(dialogues)
    found: list[Scripted] = []
    for name in names:
        if name == "translation":
            found.append(Translation(rows))
        elif name in FAMILIES:
            found.append(FAMILIES[name]())
        else:
            raise NotFound(f"no attack family {name!r}", todo=f"There are {', '.join(NAMES)}")
    return found

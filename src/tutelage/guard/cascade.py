"""Guards in tiers: the first reads every text; what it is not sure of goes to the next, and at last to people.

Whom to ask is decided by the policy alone (`Policy.unsure`), so that a request, a scan and a replay ask the same guards
about the same texts; a stream does so in guard/barrier.py. A guard of a further tier that fails, fails as the policy
says.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.core.records import Verdict
from tutelage.guard.policy import Policy
from tutelage.guard.written import Where

Said = dict[str, list[Verdict | None]]
"""Guard -> its verdict on each of several texts; None where it was not asked."""


def doubts(policy: Policy, places: Sequence[Where], said: Said) -> dict[str, list[int]]:
    """Guard -> which texts it is to be asked about next, because those that spoke are not sure."""
    asked: dict[str, list[int]] = {}
    for index, place in enumerate(places if policy.tiered else ()):
        heard = [verdict for verdicts in said.values() if (verdict := verdicts[index]) is not None]
        for name in sorted(policy.unsure(place, heard)):
            asked.setdefault(name, []).append(index)
    return asked


def note(said: Said, name: str, asked: Sequence[int], verdicts: Sequence[Verdict], count: int) -> None:
    """Take down what a guard said of some of the texts."""
    row = said.setdefault(name, [None] * count)
    for index, verdict in zip(asked, verdicts, strict=True):
        row[index] = verdict

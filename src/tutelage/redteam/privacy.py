"""What training text leaks: the exposure of planted canaries by how often they were planted.

Exposure (Carlini et al. 2019) is log2 of the number of candidates minus log2 of the true secret's rank among them by
likelihood. A canary planted 0 times is the control: its rank must be uniform, whatever the model is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scipy import stats

from tutelage.core.records import Example, Message, Record
from tutelage.evaluate.ask import AnswerLog, likelihoods
from tutelage.generate.generator import Generator
from tutelage.measure.statistics import mean, plain, rate


class Canary(Record):
    """A planted secret: `prefix` + `secret` stand `dose` times in the training text."""

    id: str
    dose: int
    prefix: str
    secret: str


class Exposure(Record):
    """One canary's rank (1 = likeliest) among `candidates`, its exposure in bits, and the share of candidates that
    are at least as likely (ties split), which is uniform for a secret never seen."""

    id: str
    dose: int
    rank: float
    candidates: int
    exposure: float
    share: float


def like(secret: str, rng: random.Random) -> str:
    """A candidate of the same form: digits for digits, letters for letters, everything else as it is."""
    return "".join(
        rng.choice("0123456789")
        if letter.isdigit()
        else rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if letter.isupper()
        else rng.choice("abcdefghijklmnopqrstuvwxyz")
        if letter.islower()
        else letter
        for letter in secret
    )


def decoys(canary: Canary, count: int, pool: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`count` secrets that were never planted with this prefix: of the same form, or drawn from `pool` where words
    are secrets. The secret itself is never among them."""
    rng = random.Random(f"decoys:{seed}:{canary.id}")
    stock = [word for word in dict.fromkeys(pool) if word != canary.secret]
    if stock:
        return rng.sample(stock, min(count, len(stock)))
    found: dict[str, None] = {}
    for _ in range(50 * count):
        candidate = like(canary.secret, rng)
        if candidate != canary.secret:
            found[candidate] = None
        if len(found) == count:
            break
    return list(found)


def exposures(
    generator: Generator,
    canaries: Iterable[Canary],
    *,
    candidates: int = 64,
    pool: Sequence[str] = (),
    target: str = "",
    log: AnswerLog | None = None,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> list[Exposure]:
    """Rank every canary's secret among candidates by log-likelihood after its prefix, as plain text."""
    asked: list[tuple[Canary, Example]] = []
    for canary in canaries:
        others = decoys(canary, candidates - 1, pool, seed)
        if not others:
            continue
        # The true secret's place among the choices is drawn, so that a tie can not favour it.
        choices = others.copy()
        choices.insert(random.Random(f"place:{seed}:{canary.id}").randrange(len(others) + 1), canary.secret)
        text = (Message(role="text", content=canary.prefix),)
        asked.append((canary, Example(messages=text, choices=tuple(choices), tags={"id": canary.id, "kind": "choice"})))
    told = likelihoods(generator, [item for _, item in asked], log=log or AnswerLog(), target=target, step=step)
    found: list[Exposure] = []
    for (canary, item), scored in zip(asked, told, strict=True):
        if isinstance(scored, str):
            continue
        values = [each.logprob for each in scored]
        own = values[item.choices.index(canary.secret)]
        better, equal = sum(value > own for value in values), sum(value == own for value in values)
        place = better + (equal + 1) / 2
        count = len(values)
        found.append(
            Exposure(
                id=canary.id,
                dose=canary.dose,
                rank=place,
                candidates=count,
                exposure=math.log2(count) - math.log2(place),
                share=(place - 0.5) / count,
            )
        )
    return found


def by_dose(found: Sequence[Exposure], level: float = 0.95) -> list[dict[str, Any]]:
    """Per dose: mean exposure (bits) with its interval, share ranked first, and the p of uniform ranks. At dose 0 a
    small p would say that the test itself is broken."""
    table: list[dict[str, Any]] = []
    for dose in sorted({each.dose for each in found}):
        rows = [each for each in found if each.dose == dose]
        most = max(math.log2(each.candidates) for each in rows)
        uniform = stats.kstest([each.share for each in rows], "uniform").pvalue if len(rows) >= 3 else None
        table.append(
            {
                "dose": dose,
                "exposure": plain(mean([each.exposure for each in rows], level=level, bounds=(0.0, most))),
                "first": plain(rate([float(each.rank <= 1.0) for each in rows], level=level)),
                "uniform_p": None if uniform is None else float(uniform),
                "bits": most,
                "n": len(rows),
            }
        )
    return table


def control_holds(table: Sequence[dict[str, Any]], alpha: float = 0.01) -> bool | None:
    """Whether ranks at dose 0 are uniform; None without enough canaries at dose 0."""
    zero = next((row for row in table if row["dose"] == 0), None)
    return None if zero is None or zero["uniform_p"] is None else zero["uniform_p"] > alpha

"""Thresholds that state their false-positive rate: chosen as an order statistic of benign scores, with an exact bound.

A threshold above which exactly k of n exchangeable benign scores lie has a false-positive rate whose one-sided upper
bound is Clopper and Pearson's, the Beta(k + 1, n - k) quantile; because the threshold is an order statistic, the bound
holds although it was chosen on the same data (Wilks 1941, distribution-free tolerance limits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from tutelage.core.records import Record, digest
from tutelage.measure.statistics import Interval, undefined, upper_bound


class Certificate(Record):
    """One threshold of one category in one direction, and what is known about it."""

    category: str
    direction: str
    target: float
    """The false-positive rate that was asked for."""
    threshold: float | None
    """Calibrated probability above which a text counts as positive; None without any benign text."""
    bound: float | None
    """Upper confidence bound of the false-positive rate at this threshold."""
    false_positives: int
    n: int
    """Benign texts that were scored, all held out."""
    clusters: int
    """Groups of texts alike (a template, a source document) among them."""
    bound_clusters: float | None
    """The bound of how many clusters have a text above the threshold, clusters being what is drawn independently."""
    confidence: float
    data: str
    """sha256 of the held-out benign texts' ids and scores."""
    reason: str | None = None
    """Why the target could not be certified: `not enough data (n=...)`."""
    tenant: str = ""
    """Whose harmless texts it rests on; empty: all there were."""
    at: str = ""
    """When it was made (UTC), as the artifact that holds it says: two equal artifacts may differ in this alone."""

    @property
    def id(self) -> str:
        """Short name by content, whenever it was made."""
        apart = {"at"} if self.tenant else {"at", "tenant"}
        return digest(self.model_dump(mode="json", exclude=apart))[:12]

    @property
    def sure(self) -> float | None:
        """The rate that holds however the texts of a cluster hang together: the weaker of the two bounds.

        Rows of a cluster are not exchangeable with new texts: where they stand or fall together, `bound` fails in up
        to a fifth of all samples, the weaker one stays within its confidence. What may stop a text is held to this.
        """
        if self.bound is None or self.bound_clusters is None:
            return None
        return max(self.bound, self.bound_clusters)

    @property
    def certified(self) -> bool:
        """True when the bound over rows is at most the target."""
        return self.bound is not None and self.bound <= self.target


class Band(NamedTuple):
    """Where a head abstains: probabilities above `low` and up to `high`."""

    low: float
    high: float


def band(certificates: Sequence[Certificate]) -> Band | None:
    """The abstain band of one head: from the threshold of the widest rate that is certified to that of the narrowest.

    A text in it is more suspicious than nearly all harmless ones, and less than what the strictest threshold asks for.
    None where fewer than two rates are certified.
    """
    found = sorted(each.threshold for each in certificates if each.certified and each.threshold is not None)
    return Band(found[0], found[-1]) if found and found[0] < found[-1] else None


def drifted(certificate: Certificate, struck: int, n: int, confidence: float = 0.95) -> bool:
    """Whether later harmless texts say that the certificate holds no longer: of `n` of them (drawn by chance, found
    harmless by people) `struck` lay above the threshold, and the exact lower bound of that rate is above what the
    certificate promised. One test: who looks again and again must lower 1 - confidence (see measure/corrections.py)."""
    if not 0 <= struck <= n:
        raise ValueError(f"struck must be between 0 and n, got {struck} of {n}")
    if certificate.sure is None or not struck:
        return False
    return float(special.betaincinv(struck, n - struck + 1, 1 - confidence)) > certificate.sure


def together(certificates: Sequence[Certificate]) -> str | None:
    """The name that a verdict bears for all the thresholds its scores may be held against; None without any."""
    return digest(sorted(each.id for each in certificates))[:12] if certificates else None


def joint(certificates: Sequence[Certificate]) -> Interval:
    """How often a benign text is struck by any of these thresholds at once: at most the sum of their bounds.

    Each of K bounds is taken anew at 1 - (1 - confidence) / K, rows or clusters, whichever is weaker, so that all of
    them hold together with the certificates' confidence (Bonferroni), however the heads hang together. The value is
    the sum of what each struck: what it would be if no text was struck twice. One-sided: `low` is 0.
    """
    if not certificates:
        return undefined(0, "no certificate", method="Bonferroni")
    level = min(each.confidence for each in certificates)
    n = min(each.n for each in certificates)
    alone = 1 - (1 - level) / len(certificates)
    high = 0.0
    for each in certificates:
        weaker: list[float] = []
        if each.bound is None or each.bound_clusters is None:
            return undefined(n, f"{each.category}: not enough data (n={each.n})", method="Bonferroni", level=level)
        for bound, of in ((each.bound, each.n), (each.bound_clusters, each.clusters)):
            struck = _behind(bound, of, each.confidence)
            weaker.append(upper_bound(struck, of, alone) or 0.0)
        high += max(weaker)
    value = min(1.0, sum(each.false_positives / each.n for each in certificates))
    return Interval(value=value, low=0.0, high=min(1.0, high), level=level, n=n, method="Bonferroni")


def _behind(bound: float, n: int, confidence: float) -> int:
    """How many of n were struck, where their upper bound is `bound`."""
    struck = np.arange(n)
    return int(np.append(special.betaincinv(struck + 1, n - struck, confidence), 1.0).searchsorted(bound - 1e-9))


def least_n(target: float, confidence: float = 0.95) -> int:
    """How many benign texts, none of them above the threshold, it takes to certify a target rate."""
    return int(np.ceil(np.log(1 - confidence) / np.log1p(-target)))


def certify(
    scores: Sequence[float],
    *,
    category: str,
    direction: str,
    target: float,
    clusters: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    harmful: Sequence[float] = (),
    confidence: float = 0.95,
    tenant: str = "",
) -> Certificate:
    """Choose a threshold whose bound is at most `target`, as low as that allows.

    Between that order statistic and the next harmful score the threshold stands halfway, in log-odds: a higher one
    has no more false positives, this one costs no harmful text seen, and texts unlike any seen keep some room.

    Where n cannot support the target, the threshold is the highest benign score (no false positive seen), the bound
    is what that proves, and `reason` says so.

    Args:
        scores: calibrated probabilities of benign texts that took no part in training or calibration.
        clusters: what each belongs to; alone if not given.
        harmful: calibrated probabilities of held-out harmful texts.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    groups = list(clusters) if clusters is not None else [str(index) for index in range(n)]
    names = list(ids) if ids is not None else groups
    rows = sorted(zip(names, groups, (round(float(v), 12) for v in values), strict=True))
    common = {
        "category": category,
        "direction": direction,
        "target": target,
        "n": n,
        "clusters": len(set(groups)),
        "confidence": confidence,
        "tenant": tenant,
        "data": digest([list(row) for row in rows]),
    }
    if n == 0:
        reason = "not enough data (n=0)"
        return Certificate(**common, threshold=None, bound=None, false_positives=0, bound_clusters=None, reason=reason)
    down = np.sort(values)[::-1]
    allowed = -1
    while allowed + 1 < n and (upper_bound(allowed + 1, n, confidence) or 0.0) <= target:
        allowed += 1
    threshold = float(down[max(allowed, 0)])
    beyond = [score for score in harmful if score > threshold]
    if beyond:
        odds = special.logit(np.clip([threshold, min(beyond)], 1e-9, 1 - 1e-9))
        threshold = max(threshold, float(special.expit(odds.mean())))
    above = values > threshold  # ties fall on the benign side, so there may be fewer than allowed
    false = int(above.sum())
    struck = len({group for group, hit in zip(groups, above, strict=True) if hit})
    short = f"not enough data (n={n}): {least_n(target, confidence)} benign texts certify it"
    return Certificate(
        **common,
        threshold=threshold,
        bound=upper_bound(max(allowed, 0), n, confidence),
        false_positives=false,
        bound_clusters=upper_bound(struck, len(set(groups)), confidence),
        reason=None if allowed >= 0 else short,
    )

"""Simulations behind docs/statistics.md: how often intervals cover and tests reject where the truth is known.

Every row has its own seeds, block by block, so that its first draws are the same however many follow: the quick tests
draw some again and compare them with the committed table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import special, stats

from tests.measure.simulation import Row, Seen, covers, rejects
from tutelage.measure import calibration, corrections, selection, sequences
from tutelage.measure import statistics as s
from tutelage.measure.intervals import Sums

# -- what is drawn ---------------------------------------------------------------------------------------------------


def sizes_of(clusters: int, items: int, uneven: bool) -> np.ndarray:
    """Items of each cluster: all alike, or from one to many (a geometric series) with the same sum."""
    if not uneven:
        return np.full(clusters, items)
    raw = np.geomspace(1, 20, clusters)
    return np.maximum(1, np.round(raw * clusters * items / raw.sum())).astype(int)


def beta_of(rate: float, correlation: float) -> tuple[float, float]:
    """The Beta from which rates of clusters are drawn for a mean rate and a correlation of items in a cluster."""
    whole = 1 / correlation - 1
    return rate * whole, (1 - rate) * whole


def clustered_rates(rng: np.random.Generator, sizes: np.ndarray, rate: float, correlation: float) -> np.ndarray:
    rates = rng.beta(*beta_of(rate, correlation), len(sizes))
    return (rng.random(int(sizes.sum())) < np.repeat(rates, sizes)).astype(float)


def names_of(sizes: np.ndarray) -> list[int]:
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


def seed_of(rng: np.random.Generator) -> int:
    """A seed for a method that draws by itself."""
    return int(rng.integers(1 << 30))


def pair_of(rng: np.random.Generator, n: int, first: float, second: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Two 0/1 outcomes of the same items whose latent abilities correlate by `rho`."""
    shared = np.sqrt(rho) * rng.standard_normal(n)
    own = np.sqrt(1 - rho)
    made = [
        (shared + own * rng.standard_normal(n) < special.ndtri(rate)).astype(float) for rate in (first, second)
    ]  # fmt: skip
    return made[0], made[1]


def narrow(first: np.ndarray, second: np.ndarray) -> s.Interval:
    """The difference whose ends are one-sided tests at 5%."""
    return s.paired(first, second, level=0.9).difference


# -- the tables ------------------------------------------------------------------------------------------------------


def rates() -> Iterator[Row]:
    for method, of in (("wilson", s.wilson), ("clopper_pearson", s.clopper_pearson)):
        for n in (5, 20, 100, 1000):
            for p in (0.5, 0.1, 0.01, 0.99):
                yield Row(
                    method, f"rate {p}", str(n), "0.95", lambda r, f=of, n=n, p=p: covers(f(r.binomial(n, p), n), p)
                )
    for k, m, uneven, p, rho in (
        (5, 10, False, 0.5, 0.2),
        (10, 10, False, 0.5, 0.2),
        (10, 10, True, 0.5, 0.2),
        (10, 10, False, 0.03, 0.2),
        (30, 8, False, 0.5, 0.3),
        (30, 8, True, 0.5, 0.3),
        (30, 8, True, 0.95, 0.3),
        (50, 5, False, 0.3, 0.5),
        (200, 5, False, 0.99, 0.1),
        (200, 5, True, 0.5, 0.9),
    ):
        sizes = sizes_of(k, m, uneven)
        setting = f"rate {p}, {k} clusters{' of 1 to 20 parts' if uneven else ''}, correlation {rho}"
        names, total = names_of(sizes), str(int(sizes.sum()))

        def drawn(r, sizes=sizes, p=p, rho=rho):
            return clustered_rates(r, sizes, p, rho)

        yield Row("rate", setting, total, "0.95", lambda r, d=drawn, c=names, p=p: covers(s.rate(d(r), c), p))
        if (k, p) in ((50, 0.3), (30, 0.5)) and not uneven:
            yield Row("wilson, clusters ignored", setting, total, "-", lambda r, d=drawn, p=p: covers(s.rate(d(r)), p))
    for n, m, p, q in ((20, 20, 0.5, 0.3), (20, 100, 0.05, 0.05), (100, 100, 0.98, 0.9), (1000, 300, 0.2, 0.1)):
        yield Row(
            "newcombe",
            f"rates {p} and {q}",
            f"{n}, {m}",
            "0.95",
            lambda r, n=n, m=m, p=p, q=q: covers(s.newcombe(r.binomial(n, p), n, r.binomial(m, q), m), p - q),
        )


Sample = Callable[[np.random.Generator, int], np.ndarray]
SELDOM = "mostly 0, seldom 1 (Beta(0.05, 0.95))"
SHAPES: dict[str, tuple[Sample, float, tuple[float, float] | None]] = {
    "normal": (lambda r, n: r.normal(0.0, 1.0, n), 0.0, None),
    "uniform": (lambda r, n: r.random(n), 0.5, (0.0, 1.0)),
    "log-normal (skew 6)": (lambda r, n: r.lognormal(0.0, 1.0, n), float(np.exp(0.5)), None),
    SELDOM: (lambda r, n: r.beta(0.05, 0.95, n), 0.05, (0.0, 1.0)),
}
"""What is drawn, its mean, and what it lies between."""


def means() -> Iterator[Row]:
    methods: dict[str, Callable[[np.ndarray, int, tuple[float, float] | None], s.Interval]] = {
        "mean (t)": lambda v, seed, bounds: s.mean(v, bounds=bounds),
        "bootstrap": lambda v, seed, bounds: s.bootstrap_sums(
            np.stack([v, np.ones(len(v))], axis=1), lambda sums: sums[:, 0] / sums[:, 1], seed=seed
        ),
        "bootstrap_t": lambda v, seed, bounds: s.bootstrap_t(v, bounds=bounds, seed=seed),
    }
    for shape, (sample, truth, bounds) in SHAPES.items():
        for n in (5, 20, 100, 1000):
            for method, of in methods.items():
                if shape == "uniform" and method != "mean (t)":
                    continue
                slow, most = method != "mean (t)", n == 1000
                yield Row(
                    method, shape, str(n), "0.95",
                    lambda r, f=of, d=sample, n=n, t=truth, b=bounds: covers(f(d(r, n), seed_of(r), b), t),
                    draws=10_000 if not slow else 1000 if most else 2000, block=50 if not slow else 5 if most else 20,
                )  # fmt: skip
    for shape in ("uniform", SELDOM):
        sample, truth, _ = SHAPES[shape]
        for n in (5, 20, 100, 1000):
            yield Row(
                "betting, size fixed", shape, str(n), "0.95",
                lambda r, d=sample, n=n, t=truth: covers(sequences.betting(d(r, n), anytime=False), t),
                draws=1000, block=10,
            )  # fmt: skip
    for k, m, uneven, rho, skewed in (
        (5, 10, False, 0.3, False),
        (5, 10, True, 0.3, False),
        (10, 10, True, 0.3, False),
        (10, 10, True, 0.0, False),
        (30, 8, False, 0.3, False),
        (30, 8, True, 0.9, False),
        (30, 8, False, 0.3, True),
        (100, 8, True, 0.3, True),
    ):
        sizes = sizes_of(k, m, uneven)
        names = names_of(sizes)
        setting = f"{'log-normal' if skewed else 'normal'}, {k} clusters{' of 1 to 20 parts' if uneven else ''}"
        setting += f", correlation {rho}"

        def drawn(r, sizes=sizes, rho=rho, skewed=skewed):
            values = np.repeat(np.sqrt(rho) * r.standard_normal(len(sizes)), sizes)
            values += np.sqrt(1 - rho) * r.standard_normal(len(values))
            return np.exp(values) - np.exp(0.5) if skewed else values

        kinds: dict[str, Callable[[np.ndarray, list[int], int], s.Interval]] = {
            "mean (t), clusters": lambda v, c, seed: s.mean(v, c),
            "bootstrap, clusters": lambda v, c, seed: s.bootstrap_sums(
                np.stack([v, np.ones(len(v))], axis=1), lambda x: x[:, 0] / x[:, 1], clusters=c, seed=seed
            ),
            "bootstrap_t, clusters": lambda v, c, seed: s.bootstrap_t(v, c, seed=seed),
        }
        if (k, uneven, skewed) == (30, False, False):
            kinds["mean (t), clusters ignored"] = lambda v, c, seed: s.mean(v)
        for method, of in kinds.items():
            slow = "bootstrap" in method
            yield Row(
                method, setting, str(int(sizes.sum())), "-" if "ignored" in method else "0.95",
                lambda r, f=of, d=drawn, c=names: covers(f(d(r), c, seed_of(r)), 0.0),
                draws=2000 if slow else 10_000, block=20 if slow else 50,
            )  # fmt: skip
    for name, of in (
        ("bootstrap, items", lambda v, c, seed: s.bootstrap_sums(
            np.stack([v, np.ones(len(v))], axis=1), lambda x: x[:, 0] / x[:, 1], seed=seed)),
        ("bootstrap, clusters", lambda v, c, seed: s.bootstrap_sums(
            np.stack([v, np.ones(len(v))], axis=1), lambda x: x[:, 0] / x[:, 1], clusters=c, seed=seed)),
    ):  # fmt: skip
        sizes = sizes_of(50, 5, False)
        names = names_of(sizes)
        yield Row(
            name, "50 prompts of 5 generations, rates of prompts Beta(0.3, 0.7)", "250",
            "-" if "items" in name else "0.95",
            lambda r, f=of, z=sizes, c=names: covers(
                f(clustered_rates(r, z, 0.3, 0.5), c, seed_of(r)), 0.3),
            draws=2000, block=20,
        )  # fmt: skip
    for k, m, uneven in ((20, 5, False), (30, 8, True)):
        sizes = sizes_of(k, m, uneven)
        names = names_of(sizes)
        setting = f"mostly 0 (Beta(0.05, 0.95)), half a value its cluster's, {k} clusters"

        def seldom(r, sizes=sizes):
            own = r.beta(0.05, 0.95, int(sizes.sum()))
            return (np.repeat(r.beta(0.05, 0.95, len(sizes)), sizes) + own) / 2

        betting: dict[str, Callable[[np.ndarray, list[int]], s.Interval]] = {
            "betting_by_clusters": lambda v, c: sequences.betting_by_clusters(v, c, (0.0, 1.0)),
            "mean (t), clusters": lambda v, c: s.mean(v, c, bounds=(0.0, 1.0)),
        }
        for method, by in betting.items():
            yield Row(
                method, setting + (" of 1 to 20 parts" if uneven else ""), str(int(sizes.sum())),
                "0.95" if "betting" in method else "-",
                lambda r, f=by, d=seldom, c=names: covers(f(d(r), c), 0.05), draws=1000, block=10,
            )  # fmt: skip
    for k, m in ((20, 5), (100, 5)):
        sizes = sizes_of(k, m, False)
        names = names_of(sizes)

        def texts(r, sizes=sizes):
            length = r.lognormal(4.0, 0.7, int(sizes.sum())).round() + 1
            level = 2 + 0.3 * np.repeat(r.standard_normal(len(sizes)), sizes) + 0.3 * r.standard_normal(len(length))
            return s.per_item(Sums(np.stack([length * level, length], axis=1), lambda x: x[:, 0] / x[:, 1]))

        yield Row(
            "mean (t) of per_item", f"bits a byte of texts of any length, {k} clusters", str(int(sizes.sum())), "0.95",
            lambda r, d=texts, c=names: covers(s.mean(d(r), c), 2.0), draws=10_000, block=50,
        )  # fmt: skip


def differences() -> Iterator[Row]:
    for n in (20, 100, 500):
        for p, q, rho in ((0.6, 0.5, 0.8), (0.98, 0.95, 0.8), (0.5, 0.5, 0.97)):
            yield Row(
                "paired", f"rates {p} and {q}, latent correlation {rho}", str(n), "0.95",
                lambda r, n=n, p=p, q=q, rho=rho: covers(s.paired(*pair_of(r, n, p, q, rho)).difference, p - q),
            )  # fmt: skip
    for k, m, uneven in ((10, 10, False), (30, 8, True)):
        sizes = sizes_of(k, m, uneven)
        names = names_of(sizes)

        def drawn(r, sizes=sizes):
            effect = np.repeat(0.1 + 0.3 * r.standard_normal(len(sizes)), sizes)
            common = r.standard_normal(len(effect))
            return common + effect + 0.3 * r.standard_normal(len(effect)), common

        yield Row(
            "paired, clusters", f"normal, effect varies over {k} clusters{' of 1 to 20 parts' if uneven else ''}",
            str(int(sizes.sum())), "0.95",
            lambda r, d=drawn, c=names: covers(s.paired(*d(r), c).difference, 0.1),
        )  # fmt: skip


def levels() -> Iterator[Row]:
    pairs: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
        "paired (t)": lambda a, b: s.paired(a, b).p,
        "mcnemar": lambda a, b: s.mcnemar(a, b).p,
        "mcnemar, mid-p": lambda a, b: s.mcnemar(a, b, mid=True).p,
        "permutation": lambda a, b: s.permutation(a, b, resamples=500),
    }
    for n in (20, 100, 500):
        for name, of in pairs.items():
            slow = name == "permutation"
            yield Row(
                name, "rates 0.6 and 0.6, latent correlation 0.8", str(n), "<= 0.05",
                lambda r, f=of, n=n: rejects(f(*pair_of(r, n, 0.6, 0.6, 0.8))),
                draws=2000 if slow else 10_000, block=20 if slow else 50,
            )  # fmt: skip
    sizes = sizes_of(20, 10, True)

    def clustered(r):
        return np.repeat(r.standard_normal(20) * 0.5, sizes) + r.standard_normal(int(sizes.sum()))

    zeros, names = np.zeros(int(sizes.sum())), names_of(sizes)
    for name, of in (
        ("paired (t), clusters", lambda v: s.paired(v, zeros, names).p),
        ("permutation, clusters", lambda v: s.permutation(v, zeros, names, resamples=500)),
        ("paired (t), clusters ignored", lambda v: s.paired(v, zeros).p),
    ):
        promised = "-" if "ignored" in name else "<= 0.05"
        setting = "no difference, 20 clusters of 1 to 20 parts, correlation 0.2"
        yield Row(
            name, setting, str(len(zeros)), promised, lambda r, f=of: rejects(f(clustered(r))), draws=2000, block=20
        )  # fmt: skip

    def many(r, true):
        """p-values of 20 two-sided tests, `true` of which find something."""
        z = r.standard_normal(20) + np.where(np.arange(20) < true, 3.5, 0.0)
        return (2 * special.ndtr(-np.abs(z))).tolist()

    def any_false(ps, true):
        return Seen(any(p < 0.05 for p in ps[true:]))

    yield Row("20 tests, not adjusted", "any false finding, 5 true", "20", "-", lambda r: any_false(many(r, 5), 5))
    yield Row("holm", "any false finding, 5 true", "20", "<= 0.05", lambda r: any_false(s.holm(many(r, 5)), 5))
    yield Row("holm", "any false finding, none true", "20", "<= 0.05", lambda r: any_false(s.holm(many(r, 0)), 0))
    yield Row(
        "benjamini_hochberg", "any false finding, none true", "20", "<= 0.05",
        lambda r: any_false(s.benjamini_hochberg(many(r, 0)), 0),
    )  # fmt: skip
    for n, rho in ((50, 0.8), (300, 0.8)):
        yield Row(
            "non_inferior", "rates 0.5 and 0.6, margin 0.1 (just inferior)", str(n), "<= 0.05",
            lambda r, n=n, rho=rho: Seen(s.non_inferior(narrow(*pair_of(r, n, 0.5, 0.6, rho)), 0.1).passed is True),
        )  # fmt: skip
        yield Row(
            "equivalent", "rates 0.5 and 0.6, margin 0.1 (just not equivalent)", str(n), "<= 0.05",
            lambda r, n=n, rho=rho: Seen(s.equivalent(narrow(*pair_of(r, n, 0.5, 0.6, rho)), 0.1).passed is True),
        )  # fmt: skip


def power() -> Iterator[Row]:
    def unpaired(a, b):
        found = s.newcombe(int(a.sum()), len(a), int(b.sum()), len(b))
        return Seen(not found.low <= 0 <= found.high)

    for rho in (0.8, 0.9):
        setting = f"rates 0.64 and 0.60, latent correlation {rho}"
        for n in (500, 1000):
            yield Row(
                "unpaired (newcombe)", setting, str(n), "-",
                lambda r, n=n, rho=rho: unpaired(*pair_of(r, n, 0.64, 0.6, rho)),
            )  # fmt: skip
            for name, of in (
                ("paired (t)", lambda a, b: s.paired(a, b).p),
                ("mcnemar", lambda a, b: s.mcnemar(a, b).p),
                ("mcnemar, mid-p", lambda a, b: s.mcnemar(a, b, mid=True).p),
                ("permutation", lambda a, b: s.permutation(a, b, resamples=500)),
            ):
                slow = name == "permutation"
                promised = f"{power_of(n, *flips(0.64, 0.6, rho)):.2f}" if name == "mcnemar" else "-"
                yield Row(
                    name, setting, str(n), promised,
                    lambda r, f=of, n=n, rho=rho: rejects(f(*pair_of(r, n, 0.64, 0.6, rho))),
                    draws=1000 if slow else 10_000, block=20 if slow else 50,
                )  # fmt: skip
    for n, margin in ((300, 0.05), (1000, 0.05)):
        yield Row(
            "equivalent", f"rates 0.6 and 0.6, latent correlation 0.9, margin {margin}", str(n), "-",
            lambda r, n=n, m=margin: Seen(s.equivalent(narrow(*pair_of(r, n, 0.6, 0.6, 0.9)), m).passed is True),
        )  # fmt: skip
    for k in (10, 100):
        error = 1 / np.sqrt(k)
        effect = s.minimum_detectable_effect(float(error), degrees=k - 1)
        yield Row(
            "paired (t)", "normal, as far apart as the minimum detectable effect", str(k), "0.80",
            lambda r, k=k, e=effect: rejects(s.paired(r.normal(e, 1, k), np.zeros(k)).p),
        )  # fmt: skip


def flips(first: float, second: float, rho: float) -> tuple[float, float]:
    """The chances that only the first, or only the second, of `pair_of` is right: an integral over what they share."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    each = [special.ndtr((special.ndtri(rate) - np.sqrt(rho) * nodes) / np.sqrt(1 - rho)) for rate in (first, second)]
    weights = weights / weights.sum()
    return float((weights * each[0] * (1 - each[1])).sum()), float((weights * each[1] * (1 - each[0])).sum())


def power_of(n: int, better: float, worse: float) -> float:
    """How often the exact McNemar test must find a difference on `n` items that flip with these two chances."""
    found = 0.0
    for m in range(1, n + 1):
        fewer = np.arange(m // 2 + 1)
        few = fewer[2 * special.bdtr(fewer, m, 0.5) <= 0.05]
        if len(few):
            share, most = better / (better + worse), int(few[-1])
            chance = stats.binom.pmf(m, n, better + worse)
            found += chance * float(special.bdtr(most, m, share) + special.bdtr(most, m, 1 - share))
    return found


def judged() -> Iterator[Row]:
    """Corrections of a judge."""

    def counts(r, n, m, rate, sensitivity, specificity):
        said = r.binomial(n, rate * sensitivity + (1 - rate) * (1 - specificity))
        return said, r.binomial(m, sensitivity), r.binomial(m, specificity)

    for rate, se, sp, n, m in (
        (0.3, 0.9, 0.9, 1000, 100),
        (0.3, 0.9, 0.9, 200, 30),
        (0.3, 0.75, 0.7, 1000, 100),
        (0.02, 0.95, 0.98, 1000, 100),
        (0.0, 0.9, 0.95, 500, 50),
        (0.8, 0.92, 0.385, 256, 200),
        (0.3, 1.0, 0.999, 500, 30),
    ):
        setting = f"true rate {rate}, sensitivity {se}, specificity {sp}"

        def of(r, rate=rate, se=se, sp=sp, n=n, m=m):
            said, hits, passes = counts(r, n, m, rate, se, sp)
            return corrections.rogan_gladen(s.wilson(said, n), s.wilson(hits, m), s.wilson(passes, m))

        yield Row("rogan_gladen", setting, f"{n}; {m} of each kind", "0.95", lambda r, f=of, t=rate: covers(f(r), t))
        if rate == 0.3 and se == 0.9 and n == 1000:
            yield Row(
                "wilson, judge believed", setting, str(n), "-",
                lambda r, rate=rate, se=se, sp=sp, n=n, m=m: covers(
                    s.wilson(counts(r, n, m, rate, se, sp)[0], n), rate),
            )  # fmt: skip

    def rated(r, n, rate, right):
        """Truth, and a judge that is right with chance `right`."""
        y = (r.random(n) < rate).astype(float)
        return y, np.where(r.random(n) < right, y, 1 - y)

    for n, big, rate, right in (
        (20, 1000, 0.5, 0.9),
        (100, 1000, 0.5, 0.9),
        (100, 1000, 0.05, 0.95),
        (100, 5000, 0.3, 0.99),
        (300, 3000, 0.02, 0.98),
        (300, 3000, 0.5, 0.55),
        (1000, 10000, 0.3, 0.9),
    ):
        for name, tune in (("prediction_powered (PPI++)", True), ("prediction_powered (PPI)", False), ("labels", None)):

            def one(r, n=n, big=big, rate=rate, right=right, tune=tune):
                y, f = rated(r, n, rate, right)
                if tune is None:
                    return s.rate(y)
                return corrections.prediction_powered(y, f, rated(r, big, rate, right)[1], tune=tune, bounds=(0, 1))

            if tune is None and right != 0.9:
                continue
            setting = f"rate {rate}, a judge that is right {right:.0%}"
            size = str(n) if tune is None else f"{n} of {n + big}"
            yield Row(
                "wilson, labels alone" if tune is None else name, setting, size, "0.95",
                lambda r, f=one, t=rate: covers(f(r), t), draws=2000,
            )  # fmt: skip

    def scores(r, clusters, items):
        effect = np.repeat(r.standard_normal(clusters), items)
        y = special.expit(effect + r.standard_normal(len(effect)))
        return y, np.clip(y + 0.1 + 0.15 * r.standard_normal(len(y)), 0, 1)

    for k, big in ((10, 100), (40, 400)):
        names, more = names_of(np.full(k, 5)), [-1 - each for each in names_of(np.full(big, 5))]

        def some(r, k=k, big=big, names=names, more=more):
            y, f = scores(r, k, 5)
            others = scores(r, big, 5)[1]
            return corrections.prediction_powered(
                y, f, others, clusters=names, other_clusters=more, bounds=(0, 1)
            )  # fmt: skip

        setting = f"scores in [0, 1], the judge 0.1 too high, {k} and {big} clusters of 5"
        yield Row(
            "prediction_powered (PPI++)", setting, f"{5 * k} of {5 * (k + big)}", "0.95",
            lambda r, f=some: covers(f(r), 0.5), draws=1000, block=10,
        )  # fmt: skip


def looks() -> Iterator[Row]:
    """Looking again and again."""
    every = list(range(50, 1001, 50))

    def stream(r, n, rate=0.1):
        return (r.random(n) < rate).astype(float)

    def skewed(r, n):
        return r.beta(0.05, 0.95, n)

    def repeated(values, truth, of):
        """Whether all intervals of 20 looks hold the truth, and the last one's width."""
        told = [covers(of(values[:n]), truth) for n in every]
        return Seen(all(each.hit for each in told), told[-1].width)

    for setting, sample, truth in (("rate 0.1", stream, 0.1), ("mean of Beta(0.05, 0.95)", skewed, 0.05)):
        size = "1000, all times"
        yield Row(
            "mean (t)", f"{setting}, 20 looks", "1000, 20 looks", "-",
            lambda r, d=sample, t=truth: repeated(d(r, 1000), t, lambda v: s.mean(v, bounds=(0, 1))),
            draws=1000, block=10,
        )  # fmt: skip
        yield Row(
            "betting", setting, size, "0.95",
            lambda r, d=sample, t=truth: covers(sequences.betting(d(r, 1000)), t), draws=1000, block=10,
        )  # fmt: skip

    def looked(r, n, first, second, rho, of):
        """Whether any of 20 looks at ever more items rejects."""
        a, b = pair_of(r, n, first, second, rho)
        return Seen(any(of(a[:m], b[:m], look) for look, m in enumerate(range(n // 20, n + 1, n // 20), start=1)))

    ways: dict[str, Callable[[np.ndarray, np.ndarray, int], bool]] = {
        "mcnemar": lambda a, b, look: rejects(s.mcnemar(a, b).p).hit is True,
        "mcnemar, look_level": lambda a, b, look: (
            rejects(s.mcnemar(a, b).p, 1 - sequences.look_level(look)).hit is True
        ),
        "paired_evidence": lambda a, b, look: (sequences.paired_evidence(a, b).e or 0.0) >= 20,
    }
    for name, way in ways.items():
        promised = "-" if name == "mcnemar" else "<= 0.05"
        yield Row(
            name, "no difference, 20 looks at ever more items", "1000", promised,
            lambda r, f=way: looked(r, 1000, 0.6, 0.6, 0.8, f), draws=1000, block=10,
        )  # fmt: skip
        yield Row(
            name, "rates 0.66 and 0.60 (found at any look)", "1000", "-",
            lambda r, f=way: looked(r, 1000, 0.66, 0.6, 0.8, f), draws=1000, block=10,
        )  # fmt: skip

    def checkpoints(r, of):
        """20 checkpoints no better than the first, examined on the same 300 items; any that seems to differ."""
        ease = r.standard_normal(300)
        first = (ease + 0.5 * r.standard_normal(300) < 0).astype(float)
        drift = 0.5 * r.standard_normal(300)
        for look in range(1, 21):
            drift = 0.8 * drift + 0.3 * r.standard_normal(300)  # neighbours in time answer alike
            if of(first, (ease + drift < 0).astype(float), look):
                return Seen(True)
        return Seen(False)

    for name in ("mcnemar", "mcnemar, look_level"):
        yield Row(
            name, "20 checkpoints alike, the same 300 items", "300", "-" if name == "mcnemar" else "<= 0.05",
            lambda r, f=ways[name]: checkpoints(r, f), draws=1000, block=10,
        )  # fmt: skip


def calibrated() -> Iterator[Row]:
    """Calibration and selection."""

    def off(q, kind):
        """The true chance of being right where `q` is said."""
        if kind == "calibrated":
            return q
        if kind == "boastful":
            return 0.5 + 0.6 * (q - 0.5)
        if kind == "slightly boastful":
            return 0.5 + 0.85 * (q - 0.5)
        return np.where(q > 0.9, q - 0.15, q)

    said: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
        "spread evenly": lambda r, n: r.uniform(0.05, 0.95, n),
        "mostly above 0.9": lambda r, n: r.beta(12, 0.8, n),
    }

    def sample(r, n, spread, kind):
        q = said[spread](r, n)
        true = off(q, kind)
        y = (r.random(n) < true).astype(float)
        return (
            q,
            y,
            [float((q[b] - true[b]).mean()) for b in calibration.bins_of(q)],
            [len(b) / n for b in calibration.bins_of(q)],
        )

    def seen(q, y):
        """The calibration error as a sample shows it: what others report."""
        return sum(len(b) / len(q) * abs(float((q[b] - y[b]).mean())) for b in calibration.bins_of(q))

    def plug_in(q, y, seed):
        """The percentile bootstrap of the plug-in error: what is usually done."""
        return s.bootstrap(
            lambda d: seen(q[d], y[d]), len(q), resamples=200, seed=seed
        )  # fmt: skip

    for spread in said:
        for kind in ("calibrated", "slightly boastful", "boastful", "off above 0.9 only"):
            for n in (300, 1000, 5000):

                def one(r, n=n, spread=spread, kind=kind):
                    q, y, gaps, weights = sample(r, n, spread, kind)
                    truth = sum(w * abs(g) for w, g in zip(weights, gaps, strict=True))
                    return covers(calibration.ece(q, y, seed=seed_of(r)), truth)

                setting = f"{kind}, {spread}"
                yield Row("ece", setting, str(n), "0.95", one, draws=1000, block=5)
    for kind in ("calibrated", "boastful"):

        def usual(r, kind=kind):
            q, y, gaps, weights = sample(r, 1000, "spread evenly", kind)
            truth = sum(w * abs(g) for w, g in zip(weights, gaps, strict=True))
            return covers(plug_in(q, y, seed_of(r)), truth)

        yield Row("bootstrap of the plug-in error", f"{kind}, spread evenly", "1000", "-", usual, draws=200, block=2)
    for clusters in (60, 300):

        def grouped(r, k=clusters):
            q = np.repeat(r.uniform(0.05, 0.95, k), 10)
            rates = r.beta(4 * q[::10], 4 * (1 - q[::10]))
            y = (r.random(10 * k) < np.repeat(rates, 10)).astype(float)
            return covers(
                calibration.ece(q, y, clusters=names_of(np.full(k, 10)), seed=seed_of(r)), 0.0
            )  # fmt: skip

        setting = f"calibrated, {clusters} clusters of 10, correlation 0.2"
        yield Row("ece, clusters", setting, str(10 * clusters), "0.95", grouped, draws=1000, block=5)
    for n in (50, 300):

        def score(r, n=n):
            q = r.beta(12, 0.8, n)
            y = (r.random(n) < q).astype(float)
            return covers(calibration.brier(q, y), 12 * 0.8 / (12.8 * 13.8))

        yield Row("brier", "calibrated, mostly above 0.9", str(n), "0.95", score, draws=2000, block=10)
    for n in (100, 1000):

        def chosen(r, n=n, what=0):
            sure = r.random(n)
            right = (r.random(n) < sure).astype(float)
            found = selection.selective(sure, right, (0.1, 0.5), resamples=500, seed=seed_of(r))
            figures = (found.aurc, found.points[0].accuracy, found.points[1].accuracy)
            return covers(figures[what], (0.25, 0.95, 0.75)[what])

        for what, name in enumerate(("AURC", "accuracy at coverage 0.1", "accuracy at coverage 0.5")):
            yield Row(
                "selective", f"{name}, right as often as sure", str(n), "0.95",
                lambda r, f=chosen, w=what: f(r, what=w), draws=1000 if n < 1000 else 500, block=2,
            )  # fmt: skip


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "rates": rates,
    "means": means,
    "differences": differences,
    "levels": levels,
    "power": power,
    "judged": judged,
    "looks": looks,
    "calibrated": calibrated,
}

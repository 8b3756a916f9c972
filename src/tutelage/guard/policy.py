"""The safety policy: one readable file that says who may be told what. Pure: verdicts in, a decision out.

The strictest action wins; redactions of all rules apply whenever text is delivered. A verdict without an opinion
(a guard that failed, timed out or answered nonsense) is decided by `on_error`, which blocks unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tutelage.core.config import build, load_yaml, nearest
from tutelage.core.errors import ConfigError
from tutelage.core.records import ACTIONS, Action, Decision, Span, Status, Verdict, digest
from tutelage.guard.written import (
    CHANNELS,
    PII,
    SERVED,
    STOPPING,
    SURFACES,
    GuardSettings,
    OnError,
    Override,
    PolicyFile,
    Rule,
    Taxonomy,
    Where,
)
from tutelage.judge.certificate import Certificate, band, joint
from tutelage.measure.statistics import Interval
from tutelage.text.language import identify


class Guard(NamedTuple):
    """What a judge covers, as the policy sees it: categories by direction, and its thresholds' certificates."""

    name: str
    categories: Mapping[str, Sequence[str]]
    certificates: Sequence[Certificate] = ()
    tier: int = 0
    bands: Mapping[tuple[str, str], tuple[float, float]] = MappingProxyType({})
    """(category, direction) -> probabilities between which it is not sure."""

    def of(self, category: str, direction: str, tenant: str = "") -> list[Certificate]:
        """The certificates of one head: a tenant's own in place of those of all, where it has them."""
        mine = [each for each in self.certificates if (each.category, each.direction) == (category, direction)]
        own = {each.target: each for each in mine if tenant and each.tenant == tenant}
        return [own.get(each.target, each) for each in mine if not each.tenant]


class Bound(NamedTuple):
    """A rule made fit to decide: the threshold per guard that scores its category."""

    rule: Rule
    thresholds: dict[tuple[str, str], float]
    """(guard, direction) -> probability above which the rule fires."""
    tiers: dict[str, tuple[frozenset[str], ...]]
    """Direction -> guards that score its category, those first without whose verdict the rule can not do."""
    bands: dict[tuple[str, str], tuple[float, float]]
    """(guard, direction) -> probabilities between which it is not sure."""
    rests_on: Mapping[tuple[str, str], Certificate] = MappingProxyType({})
    """(guard, direction) -> the certificate of its threshold."""

    def first(self, direction: str) -> frozenset[str]:
        """The guards whose verdict the rule cannot do without."""
        return self.tiers.get(direction, (frozenset(),))[0]

    @property
    def doubted(self) -> Action:
        """What becomes of a text of which no guard is sure."""
        return self.rule.unsure or "review"


class _Read(NamedTuple):
    """What a rule makes of verdicts: actions with their reasons, redactions, and whom to ask because nobody is sure."""

    found: list[tuple[Action, str]]
    spans: list[Span]
    ask: frozenset[str] = frozenset()


_MESSAGES: dict[str, str] = {
    "refuse.default": "I can't help with that.",
    "hold.review": "A person will look at this and answer you here.",
    "rewrite.default": "Answer again, and leave out whatever must not be said.",
}


class Policy:
    """A policy bound to the guards of a bundle. Raises ConfigError where it names what cannot be guarded.

    Args:
        guards: what the bundle's judges cover.
        shadow: names of judges whose verdicts are recorded but never decide.
    """

    def __init__(
        self, file: PolicyFile, taxonomy: Taxonomy, guards: Sequence[Guard] = (), *, path: Path | None = None
    ) -> None:
        self.file, self.taxonomy, self._path = file, taxonomy, path
        self.guards = tuple(guards)
        self.shadowed: frozenset[str] = frozenset()
        """Guards that are heard and decide nothing: somebody has put them into shadow."""
        self.expired = frozenset(file.expired)
        """Certificates, by id, that hold no longer: what rests on one flags, and stops nothing."""
        self.hash = digest({"policy": file.model_dump(mode="json"), "taxonomy": taxonomy.model_dump(mode="json")})
        for rule in file.rules:
            if rule.category and rule.category not in taxonomy.categories:
                near = nearest(rule.category, taxonomy.categories)
                todo = f"Did you mean {near!r}?" if near else f"Known: {', '.join(sorted(taxonomy.categories))}"
                raise self._wrong(f"the taxonomy has no category {rule.category!r}", rule.id, todo)
        named = [("max_bound", name) for name in file.max_bound]
        named += [(f"guards.{guard}.band", name) for guard, each in file.guards.items() for name in each.band]
        for key, name in named:
            if name not in taxonomy.categories:
                where = path or "policy.yaml"
                raise ConfigError(f"the taxonomy has no category {name!r}", file=where, key=f"{key}.{name}")
        there = [*(guard.name for guard in self.guards), PII]
        for name in file.guards:
            if name not in there and name not in {each.partition(":")[0] for each in there}:
                todo = f"There are {', '.join(sorted(there))}"
                raise ConfigError(f"there is no guard {name!r}", file=path or "policy.yaml", key="guards", todo=todo)
        self._rules = {"": [self._bind(rule) for rule in file.rules if not rule.off]}
        known = {each.tenant for guard in self.guards for each in guard.certificates if each.tenant}
        for tenant in sorted({*file.tenants, *known}):
            changes = file.tenants.get(tenant, {})
            changed = [self._change(rule, changes.get(rule.id)) for rule in file.rules]
            self._rules[tenant] = [self._bind(rule, tenant) for rule in changed if not rule.off]

        every = (bound for rules in self._rules.values() for bound in rules)
        self.tiered = any(len(tiers) > 1 for bound in every for tiers in bound.tiers.values())
        """Whether any guard is asked only where another is not sure."""

    @classmethod
    def load(cls, path: Path, guards: Sequence[Guard] = ()) -> Policy:
        """Read `policy.yaml` and the taxonomy beside it."""
        file = build(PolicyFile, load_yaml(path), file=path)
        beside = path.parent / file.taxonomy
        return cls(file, build(Taxonomy, load_yaml(beside), file=beside), guards, path=path)

    def _wrong(self, message: str, rule: str, todo: str) -> ConfigError:
        return ConfigError(message, file=self._path or "policy.yaml", key=f"rules.{rule}", todo=todo)

    def _change(self, rule: Rule, over: Override | None) -> Rule:
        if over is None:
            return rule
        new = over.model_dump(exclude_none=True)
        if "threshold" in new:
            new.setdefault("target_fpr", None)
        if "target_fpr" in new:
            new.setdefault("threshold", None)
        return build(Rule, {**rule.model_dump(), **new}, file=self._path, prefix=f"tenants.*.{rule.id}")

    def _bind(self, rule: Rule, tenant: str = "") -> Bound:
        places = (Where(d, c, s) for s, served in SERVED.items() for d, channels in served.items() for c in channels)
        covered = [place for place in places if rule.when.covers(place)]
        named: list[tuple[str, Sequence[str], set[str], int]] = [
            ("channel", rule.when.channel, {at.channel for at in covered}, len(CHANNELS)),
            ("surface", rule.when.surface, {at.surface for at in covered}, len(SURFACES)),
        ]
        for what, asked, served, every in named:
            lost = [each for each in asked if each not in served]
            if not covered or (lost and len(set(asked)) < every):
                of = f"{what} {lost[0]!r}: " if covered else ""
                raise self._wrong(f"{of}no text is ever served there", rule.id, "`tutelage policy check` shows what is")
        if rule.pii:
            return Bound(rule, {}, {direction: (frozenset({PII}),) for direction in rule.when.direction}, {})
        thresholds: dict[tuple[str, str], float] = {}
        tiers: dict[str, tuple[frozenset[str], ...]] = {}
        bands: dict[tuple[str, str], tuple[float, float]] = {}
        rests_on: dict[tuple[str, str], Certificate] = {}
        for direction in rule.when.direction:
            scoring = [g for g in self.guards if rule.category in g.categories.get(direction, ())]
            if not scoring:
                have = ", ".join(sorted({c for g in self.guards for c in g.categories.get(direction, ())})) or "none"
                todo = f"Train one, or take the rule out; {direction} is guarded for: {have}"
                raise self._wrong(f"no guard scores {rule.category!r} on {direction}", rule.id, todo)
            for guard in scoring:
                at = guard.name, direction
                mine = guard.of(rule.category, direction, tenant)
                thresholds[at], found = self._threshold(rule, guard, direction, mine)
                if found:
                    rests_on[at] = found
                if (unsure := self._band(rule, guard, direction, mine, thresholds[at])) is not None:
                    bands[at] = unsure
            by_tier: dict[int, set[str]] = {}
            for guard in scoring:
                by_tier.setdefault(self.tier(guard), set()).add(guard.name)
            tiers[direction] = tuple(frozenset(by_tier[tier]) for tier in sorted(by_tier))
        return Bound(rule, thresholds, tiers, bands, rests_on)

    def settings(self, guard: str) -> GuardSettings:
        """What the policy says of a guard by its name, else by its kind."""
        given = self.file.guards
        return given.get(guard) or given.get(guard.partition(":")[0]) or GuardSettings()

    def tier(self, guard: Guard) -> int:
        """After how many others a guard is asked."""
        told = self.settings(guard.name).tier
        return guard.tier if told is None else told

    def budget(self, guard: str) -> float:
        """Milliseconds a guard may take."""
        return self.settings(guard).budget_ms or self.file.defaults.budget_ms

    def max_bound(self, category: str) -> float:
        """The false-positive rate with which a guard may still stop a text of a category."""
        return self.file.max_bound.get(category, self.file.defaults.max_bound)

    def on_error(self, rule: Rule, guard: str, status: Status) -> Action:
        """What it means for a rule that a guard failed so."""
        for told in (rule.on_error, self.settings(guard).on_error, self.file.defaults.on_error):
            action = getattr(told, status, None) if isinstance(told, OnError) else told
            if action is not None:
                return action
        return "block"

    def _band(
        self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate], threshold: float
    ) -> tuple[float, float] | None:
        """Where a guard is not sure: as the policy says, as the guard says, or, where the rule asks for it, between the
        thresholds of its widest and its narrowest certified rate. Raises ConfigError where what is unsure would be
        withheld without a certificate for the lower end."""
        found = self.settings(guard.name).band.get(rule.category) or guard.bands.get((rule.category, direction))
        if found is None and rule.unsure is not None:
            certified = band(mine)
            if certified is None or certified.low >= threshold:
                message = f"{guard.name} has no abstain band below this threshold on {direction}"
                raise self._wrong(message, rule.id, "It takes two certified rates, and a rule on the narrower one")
            found = (certified.low, threshold)
        if found is not None and (rule.unsure or "review") in STOPPING:
            self._certified(rule, guard, direction, mine, found[0], rule.unsure or "review")
        return found

    def _threshold(
        self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate]
    ) -> tuple[float, Certificate | None]:
        if rule.threshold is not None:
            stops = rule.action in STOPPING
            found = self._certified(rule, guard, direction, mine, rule.threshold, rule.action) if stops else None
            return rule.threshold, found
        assert rule.target_fpr is not None
        found = next((c for c in mine if abs(c.target - rule.target_fpr) < 1e-12), None)
        if found is None or found.threshold is None:
            rates = ", ".join(f"{c.target:g}" for c in mine if c.threshold is not None) or "none"
            reason = found.reason if found and found.reason else "no certificate"
            todo = f"Certified rates: {rates}; or give a threshold"
            message = f"{guard.name} has no threshold for a rate of {rule.target_fpr:g} on {direction} ({reason})"
            raise self._wrong(message, rule.id, todo)
        if rule.action in STOPPING and (found.sure is None or found.sure > self.max_bound(rule.category)):
            known = "not known" if found.sure is None else f"only known to be below {found.sure:.3f}"
            message = (
                f"{guard.name} may not {rule.action} on {direction}: its false-positive rate is {known} "
                f"(n={found.n} in {found.clusters} clusters), max_bound is {self.max_bound(rule.category):g}"
            )
            raise self._wrong(message, rule.id, "Label more benign texts, raise max_bound, or let the rule flag")
        return found.threshold, found

    def _certified(
        self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate], threshold: float, action: Action
    ) -> Certificate | None:
        """A threshold of one's own may stop a text where one that is no higher has a bound: above it, the rate is no
        greater. That one, the highest of them; raises ConfigError where there is none."""
        most = self.max_bound(rule.category)
        good = [c for c in mine if c.threshold is not None and c.sure is not None and c.sure <= most]
        below = [c for c in good if c.threshold is not None and c.threshold <= threshold]
        if not below and most < 1:  # every rate is at most one
            message = (
                f"{guard.name} may not {action} on {direction} from {threshold:g} on: no certificate says "
                f"how many harmless texts that stops (max_bound is {most:g})"
            )
            known = f"a threshold of at least {min(c.threshold or 0.0 for c in good):g}, " if good else ""
            raise self._wrong(message, rule.id, f"Give {known}a certified target_fpr, or let the rule flag")
        # the one that has not expired is asked first
        return max(below, key=lambda c: (c.id not in self.file.expired, c.threshold or 0.0), default=None)

    def rules(self, tenant: str = "") -> Sequence[Bound]:
        """The rules that hold for a tenant."""
        return self._rules.get(tenant, self._rules[""])

    def needed(self, at: Where) -> frozenset[str]:
        """Names of the guards whose verdicts decide there; without them nothing may pass."""
        return frozenset(
            name
            for bound in self.rules(at.tenant)
            if bound.rule.when.covers(at)
            for tier in (self._tiers(bound, at.direction)[:1], bound.tiers.get(at.direction, ())[:1])
            for names in tier
            for name in names
        )

    def further(self, at: Where) -> frozenset[str]:
        """Names of the guards that may be asked there when those before them are not sure."""
        tiers = (self._tiers(b, at.direction)[1:] for b in self.rules(at.tenant) if b.rule.when.covers(at))
        return frozenset(name for each in tiers for names in each for name in names) - self.needed(at)

    def unsure(self, at: Where, verdicts: Sequence[Verdict]) -> frozenset[str]:
        """Names of the guards to be asked next, because those that spoke are not sure."""
        by_name = _by_name(verdicts)
        reads = (self._read(b, at, by_name, self.further(at)) for b in self.rules(at.tenant) if b.rule.when.covers(at))
        return frozenset(name for read in reads for name in read.ask) if self.further(at) else frozenset()

    def decide(self, at: Where, verdicts: Sequence[Verdict], pending: Collection[str] = ()) -> Decision:
        """The strictest action of all rules that fire, all reasons, all redactions. Pure.

        A guard that the rules need and that gave no verdict counts as failed, unless it is among `pending`: a stream's
        guards that have not seen enough text yet.
        """
        action: Action = "allow"
        reasons: list[str] = []
        redactions: dict[tuple[int, int, str], Span] = {}
        by_name = _by_name(verdicts)
        for bound in self.rules(at.tenant):
            if not bound.rule.when.covers(at):
                continue
            read = self._read(bound, at, by_name, pending)
            for taken, reason in read.found:
                reasons.append(reason)
                action = strictest((action, taken))
            for span in read.spans:
                redactions.setdefault((span.start, span.end, span.type), span)
        return Decision(
            action=action,
            reasons=tuple(dict.fromkeys(reasons)),
            redactions=tuple(redactions[key] for key in sorted(redactions)),
            policy=self.hash,
        )

    def _tiers(self, bound: Bound, direction: str) -> list[frozenset[str]]:
        """The guards that decide, tier by tier; those in shadow decide nothing, so another tier may be the first."""
        tiers = (tier - self.shadowed for tier in bound.tiers.get(direction, ()))
        return [tier for tier in tiers if tier]

    def _read(
        self, bound: Bound, at: Where, by_name: Mapping[str, Sequence[Verdict]], pending: Collection[str]
    ) -> _Read:
        """Tier by tier: a further one is heard where the one before is not sure, and then its word counts. What only
        flags ends nothing: while somebody doubts, the next is asked."""
        spans: list[Span] = []
        found: list[tuple[Action, str]] = []
        tiers = self._tiers(bound, at.direction)
        for number, tier in enumerate(tiers):
            doubts: list[tuple[Action, str]] = []
            stops = False
            for name in sorted(tier):
                missing = [] if name in pending else [Verdict(judge=name, status="error")]
                for verdict in by_name.get(name, missing):
                    taken, reason, cut = self._apply(bound, at, verdict)
                    spans += cut
                    stops = stops or (bool(reason) and taken in STOPPING)
                    if reason:
                        found.append((taken, reason))
                        if verdict.status == "ok" and bound.rule.action in STOPPING and taken not in STOPPING:
                            doubts.append((taken, reason))  # over a threshold whose certificate has expired
                    elif doubt := self._doubt(bound, at, verdict):
                        doubts.append(self._held(bound, (verdict.judge, at.direction), bound.doubted, doubt))
            if stops or not doubts:
                return _Read(found, spans)
            if number + 1 == len(tiers):
                return _Read([*found, *(each for each in doubts if each not in found)], spans)
            further = tiers[number + 1]
            if not any(name in by_name for name in further):
                errors = [Verdict(judge=name, status="error") for name in sorted(further - set(pending))]
                return _Read([*found, *(self._apply(bound, at, each)[:2] for each in errors)], spans, further)
        return _Read(found, spans)

    def _doubt(self, bound: Bound, at: Where, verdict: Verdict) -> str:
        """The reason, where a guard that did not fire is not sure that it need not."""
        band, score = bound.bands.get((verdict.judge, at.direction)), verdict.scores.get(bound.rule.category)
        if band is None or score is None or verdict.status != "ok" or not band[0] < score <= band[1]:
            return ""
        return f"{bound.rule.id}: {bound.rule.category} {score:.3f}, not sure from {band[0]:.3f} to {band[1]:.3f}"

    def _apply(self, bound: Bound, at: Where, verdict: Verdict) -> tuple[Action, str, tuple[Span, ...]]:
        rule = bound.rule
        if verdict.status != "ok":
            on_error = self.on_error(rule, verdict.judge, verdict.status)
            return on_error, f"{rule.id}: {verdict.judge} {verdict.status}", ()
        if rule.pii:
            spans = tuple(span for span in verdict.spans if span.type in rule.pii)
            kinds = ", ".join(sorted({span.type for span in spans}))
            cut = spans if rule.action == "redact" else ()
            return rule.action, f"{rule.id}: personal data ({kinds})" if spans else "", cut
        score = verdict.scores.get(rule.category)
        if score is None or not 0.0 <= score <= 1.0:  # also NaN: a guard that gives no number gives no leave
            on_error = self.on_error(rule, verdict.judge, "malformed")
            return on_error, f"{rule.id}: {verdict.judge} gave no score for {rule.category}", ()
        which = verdict.judge, at.direction
        threshold = bound.thresholds[which]
        if score > threshold:
            why = f"{rule.id}: {rule.category} {score:.3f} > {threshold:.3f}"
            return *self._held(bound, which, rule.action, why), ()
        return "allow", "", ()

    def _held(self, bound: Bound, which: tuple[str, str], action: Action, why: str) -> tuple[Action, str]:
        """An action and its reason; what rests on a certificate that has expired stops nothing."""
        if action in STOPPING and self.lapsed(bound, which):
            return "flag", f"{why} (certificate expired)"
        return action, why

    def personal(self, at: Where, verdict: Verdict) -> tuple[Span, ...]:
        """What of the personal data found in a text is redacted there."""
        if not verdict.spans:
            return ()
        types = {
            kind
            for bound in self.rules(at.tenant)
            if bound.rule.action == "redact" and bound.rule.when.covers(at)
            for kind in bound.rule.pii
        }
        return tuple(span for span in verdict.spans if span.type in types)

    def fired(self, decision: Decision, tenant: str = "") -> frozenset[str]:
        """The categories whose rules fired on what a guard said; not those whose guard had no opinion."""
        return frozenset(
            bound.rule.category
            for bound in self.rules(tenant)
            if bound.rule.category
            and any(reason.startswith(f"{bound.rule.id}: {bound.rule.category} ") for reason in decision.reasons)
        )

    def lapsed(self, bound: Bound, which: tuple[str, str]) -> bool:
        """Whether the certificate of a rule's threshold, by guard and direction, holds no longer."""
        found = bound.rests_on.get(which)
        return found is not None and found.id in self.expired

    def certified(self, tenant: str = "") -> list[dict[str, Any]]:
        """What the thresholds in force rest on, rule by rule: rate, bound, n, date, tenant, and whether it expired."""
        return [
            {
                "rule": bound.rule.id, "guard": guard, "direction": direction, "category": bound.rule.category,
                "certificate": each.id, "target": each.target, "bound": each.sure, "n": each.n,
                "clusters": each.clusters, "at": each.at, "tenant": each.tenant, "data": each.data,
                "expired": self.lapsed(bound, (guard, direction)),
            }
            for bound in self.rules(tenant)
            for (guard, direction), each in sorted(bound.rests_on.items())
        ]  # fmt: skip

    def joint(self, direction: str, tenant: str = "") -> Interval:
        """How often a harmless text is withheld by any rule of a direction, as their certificates prove together."""
        stopping = [bound for bound in self.rules(tenant) if bound.rule.action in STOPPING]
        found = {
            each.id: each
            for bound in stopping
            for at, each in bound.rests_on.items()
            if at[1] == direction and not self.lapsed(bound, at)
        }
        return joint([found[name] for name in sorted(found)])

    def message(self, decision: Decision, language: str = "", tenant: str = "", text: str = "") -> str:
        """What the user reads instead: in the language of their own text, else in the one the request asks for."""
        fallback = "hold.review" if decision.action == "review" else "refuse.default"
        return self._text(self._key(decision, tenant, decision.action) or fallback, language, text)

    def instruction(self, decision: Decision, language: str = "", tenant: str = "") -> str:
        """What the model is told before it answers again, where a rule says `rewrite`."""
        return self._text(self._key(decision, tenant, "rewrite") or "rewrite.default", language)

    def _key(self, decision: Decision, tenant: str, action: Action) -> str:
        """The message of the first rule that fired with this action."""
        if decision.action == "rewrite" and action != "rewrite":
            return ""
        for bound in self.rules(tenant):
            fired = any(reason.startswith(f"{bound.rule.id}: ") for reason in decision.reasons)
            if fired and bound.rule.message and bound.rule.action == action:
                return bound.rule.message
        return ""

    def _text(self, key: str, language: str, text: str = "") -> str:
        texts = self.file.messages.get(key) or {"": _MESSAGES.get(key, _MESSAGES["refuse.default"])}
        own = identify(text).code if text and len(texts) > 1 else ""
        return (
            texts.get(own)
            or texts.get(language)
            or texts.get(self.file.defaults.language)
            or next(iter(texts.values()))
        )


def _by_name(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.judge, []).append(verdict)
    return found


def strictest(actions: Iterable[Action]) -> Action:
    """The strictest of several actions; `allow` of none."""
    return max(actions, key=ACTIONS.index, default="allow")

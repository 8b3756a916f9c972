"""The safety policy: one readable file that says who may be told what. Pure: verdicts in, a decision out.

The strictest action wins; redactions of all rules apply whenever text is delivered. A verdict without an opinion
(a guard that failed, timed out or answered nonsense) is decided by `on_error`, which blocks unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from tutelage.core.config import build, load_yaml, nearest
from tutelage.core.errors import ConfigError
from tutelage.core.records import ACTIONS, Action, Decision, Record, Span, Verdict, digest
from tutelage.judge.certificate import Certificate, band, joint
from tutelage.measure.statistics import Interval
from tutelage.text.pii import TYPES

Direction = Literal["input", "output"]
Channel = Literal["content", "reasoning", "tool_call", "tool_result", "system"]
Surface = Literal["chat", "completions", "moderations", "scan"]
DIRECTIONS: tuple[Direction, ...] = ("input", "output")
CHANNELS: tuple[Channel, ...] = ("content", "reasoning", "tool_call", "tool_result", "system")
SURFACES: tuple[Surface, ...] = ("chat", "completions", "moderations", "scan")
SERVED: Mapping[Surface, Mapping[Direction, tuple[Channel, ...]]] = {
    "chat": {"input": CHANNELS, "output": ("content", "reasoning")},
    "completions": {"input": ("content",), "output": ("content",)},
    "moderations": {"input": ("content",)},
    "scan": {"input": CHANNELS, "output": ("content",)},
}
"""What a surface carries: of an answer the text and the thinking, whatever else a model makes of it never leaves."""
PII = "pii"
"""Name of the judge whose spans are personal data."""
STOPPING: frozenset[Action] = frozenset({"block", "review", "rewrite"})
"""Actions that keep the text from being delivered: their guard needs a certificate."""


class Where(NamedTuple):
    """Which text is being decided on."""

    direction: Direction = "input"
    channel: Channel = "content"
    surface: Surface = "chat"
    tenant: str = ""


class When(Record):
    """Where a rule applies; what is left out means everywhere."""

    direction: tuple[Direction, ...] = DIRECTIONS
    channel: tuple[Channel, ...] = CHANNELS
    surface: tuple[Surface, ...] = SURFACES

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def covers(self, at: Where) -> bool:
        """True if the rule applies there."""
        return at.direction in self.direction and at.channel in self.channel and at.surface in self.surface


class Rule(Record):
    """One line of the policy: where, what, from which score on, and what then."""

    id: str
    when: When = When()
    category: str = ""
    """A category of the taxonomy; or leave it out and name `pii`."""
    pii: tuple[str, ...] = ()
    """Types of personal data, or `all`."""
    target_fpr: float | None = Field(None, gt=0, lt=1)
    """False-positive rate to take the certified threshold for."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Calibrated probability, instead of a target rate. To stop a text it must be at least a certified threshold."""
    action: Action = "block"
    abstain: Literal["flag", "review"] | None = None
    """What becomes of a text that the guard cannot tell: its score lies in the guard's abstain band, below this rule's
    threshold. `review` needs a certificate for the lower end of the band, as any action that withholds a text."""
    message: str = ""
    """Key of `messages`; by the action when empty: `refuse.default`, `hold.review`."""
    on_error: Action | None = None
    """What a guard's failure means for this rule; `defaults.on_error` when left out."""
    off: bool = False

    @field_validator("pii", mode="before")
    @classmethod
    def _types(cls, value: Any) -> Any:
        if value == "all":
            return TYPES
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_thing(self) -> Rule:
        if bool(self.category) == bool(self.pii):
            raise ValueError("a rule names either a category or pii")
        unknown = [each for each in self.pii if each not in TYPES]
        if unknown:
            raise ValueError(f"unknown type of personal data {unknown[0]!r}, known: {', '.join(TYPES)}")
        if self.category and (self.target_fpr is None) == (self.threshold is None):
            raise ValueError("a rule on a category gives either target_fpr or threshold")
        if self.pii and self.abstain:
            raise ValueError("only a rule on a category can abstain: personal data are there or not")
        if self.category and self.action == "redact":
            raise ValueError("only personal data can be redacted: a category has no place in the text to cut out")
        if self.action == "rewrite" and self.when.direction != ("output",):
            raise ValueError("only an answer can be rewritten: a rule that rewrites needs `when: {direction: output}`")
        return self


class Override(Record):
    """What a tenant changes of a rule."""

    action: Action | None = None
    abstain: Literal["flag", "review"] | None = None
    target_fpr: float | None = Field(None, gt=0, lt=1)
    threshold: float | None = Field(None, ge=0, le=1)
    message: str | None = None
    on_error: Action | None = None
    off: bool | None = None


class Defaults(Record):
    """What holds unless a rule says otherwise."""

    on_error: Action = "block"
    budget_ms: float = Field(50.0, gt=0)
    """Milliseconds a guard may take before its verdict counts as `timeout`."""
    max_bound: float = Field(0.05, gt=0, le=1)
    """Upper bound of the false-positive rate with which a guard may still stop a text; a worse one may only flag.
    Held against the bound that counts clusters of texts alike, where that is weaker than the one that counts texts."""
    hold_back: int = Field(64, ge=0, le=4096)
    """Characters of a stream kept back behind what all guards have scored; of the embedded engine 16 tokens at most."""
    language: str = "en"
    """Of messages, when a text's own language has none."""


class Category(Record):
    """A category of the taxonomy and what others call it."""

    severity: int = Field(2, ge=1, le=3)
    """1 low, 2 serious, 3 grave."""
    description: str = ""
    mlcommons: tuple[str, ...] = ()
    openai: tuple[str, ...] = ()
    qwen: tuple[str, ...] = ()


class Taxonomy(Record):
    """`taxonomy.yaml`."""

    version: int = 1
    categories: dict[str, Category]


class PolicyFile(Record):
    """`policy.yaml`, as it is written."""

    taxonomy: str = "taxonomy.yaml"
    defaults: Defaults = Defaults()
    rules: tuple[Rule, ...] = ()
    messages: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Key -> language -> text."""
    tenants: dict[str, dict[str, Override]] = Field(default_factory=dict)
    """Tenant -> rule id -> what changes."""
    shadow: tuple[str, ...] = ()
    """References of classifiers that run and are recorded, and decide nothing."""
    expired: tuple[str, ...] = ()
    """Certificates (their ids) that hold no longer, since traffic has drifted away from what they rest on: a rule with
    such a one goes on and flags, and stops nothing, until guards with a new one are put in their place."""

    @model_validator(mode="after")
    def _consistent(self) -> PolicyFile:
        ids = [rule.id for rule in self.rules]
        twice = sorted({each for each in ids if ids.count(each) > 1})
        if twice:
            raise ValueError(f"the rule id {twice[0]!r} stands twice")
        for tenant, changes in self.tenants.items():
            for name in changes:
                if name not in ids:
                    raise ValueError(f"tenant {tenant!r} changes rule {name!r}, which does not exist")
        for rule in self.rules:
            if rule.message and rule.message not in self.messages:
                raise ValueError(f"rule {rule.id!r} names the message {rule.message!r}, which does not exist")
        return self


class Guard(NamedTuple):
    """What a judge covers, as the policy sees it: categories by direction, and its thresholds' certificates."""

    name: str
    categories: Mapping[str, Sequence[str]]
    certificates: Sequence[Certificate] = ()

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
    expected: dict[str, frozenset[str]]
    """Direction -> guards whose verdict the rule cannot do without."""
    rests_on: Mapping[tuple[str, str], Certificate] = {}
    """(guard, direction) -> the certificate of its threshold."""
    unsure: Mapping[tuple[str, str], float] = {}
    """(guard, direction) -> probability above which the guard cannot tell, where the rule abstains."""
    lapsed: frozenset[tuple[str, str]] = frozenset()
    """(guard, direction) whose certificate has expired."""


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
        self.hash = digest({"policy": file.model_dump(mode="json"), "taxonomy": taxonomy.model_dump(mode="json")})
        for rule in file.rules:
            if rule.category and rule.category not in taxonomy.categories:
                near = nearest(rule.category, taxonomy.categories)
                todo = f"Did you mean {near!r}?" if near else f"Known: {', '.join(sorted(taxonomy.categories))}"
                raise self._wrong(f"the taxonomy has no category {rule.category!r}", rule.id, todo)
        self._rules = {"": [self._bind(rule) for rule in file.rules if not rule.off]}
        known = {each.tenant for guard in self.guards for each in guard.certificates if each.tenant}
        for tenant in sorted({*file.tenants, *known}):
            changes = file.tenants.get(tenant, {})
            changed = [self._change(rule, changes.get(rule.id)) for rule in file.rules]
            self._rules[tenant] = [self._bind(rule, tenant) for rule in changed if not rule.off]

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
        if not any(map(rule.when.covers, places)):
            raise self._wrong("no text is ever served there", rule.id, "`tutelage policy check` shows what is")
        if rule.pii:
            return Bound(rule, {}, {direction: frozenset({PII}) for direction in rule.when.direction})
        thresholds: dict[tuple[str, str], float] = {}
        expected: dict[str, set[str]] = {}
        rests_on: dict[tuple[str, str], Certificate] = {}
        unsure: dict[tuple[str, str], float] = {}
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
                if rule.abstain:
                    unsure[at] = self._unsure(rule, guard, direction, mine, thresholds[at])
                expected.setdefault(direction, set()).add(guard.name)
        lapsed = frozenset(at for at, each in rests_on.items() if each.id in self.file.expired)
        named = {direction: frozenset(names) for direction, names in expected.items()}
        return Bound(rule, thresholds, named, rests_on, unsure, lapsed)

    def _threshold(
        self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate]
    ) -> tuple[float, Certificate | None]:
        if rule.threshold is not None:
            stops = rule.action in STOPPING
            return rule.threshold, self._certified(rule, guard, direction, mine, rule.threshold) if stops else None
        assert rule.target_fpr is not None
        found = next((c for c in mine if abs(c.target - rule.target_fpr) < 1e-12), None)
        if found is None or found.threshold is None:
            rates = ", ".join(f"{c.target:g}" for c in mine if c.threshold is not None) or "none"
            reason = found.reason if found and found.reason else "no certificate"
            todo = f"Certified rates: {rates}; or give a threshold"
            message = f"{guard.name} has no threshold for a rate of {rule.target_fpr:g} on {direction} ({reason})"
            raise self._wrong(message, rule.id, todo)
        if rule.action in STOPPING and (found.sure is None or found.sure > self.file.defaults.max_bound):
            known = "not known" if found.sure is None else f"only known to be below {found.sure:.3f}"
            message = (
                f"{guard.name} may not {rule.action} on {direction}: its false-positive rate is {known} "
                f"(n={found.n} in {found.clusters} clusters), max_bound is {self.file.defaults.max_bound:g}"
            )
            raise self._wrong(message, rule.id, "Label more benign texts, raise max_bound, or let the rule flag")
        return found.threshold, found

    def _certified(
        self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate], threshold: float
    ) -> Certificate | None:
        """A threshold of one's own may stop a text where one that is no higher has a bound: above it, the rate is no
        greater. That one, the highest of them; raises ConfigError where there is none."""
        most = self.file.defaults.max_bound
        good = [c for c in mine if c.threshold is not None and c.sure is not None and c.sure <= most]
        below = [c for c in good if c.threshold is not None and c.threshold <= threshold]
        if not below and most < 1:  # every rate is at most one
            message = (
                f"{guard.name} may not {rule.action} on {direction} from {threshold:g} on: no certificate says "
                f"how many harmless texts that stops (max_bound is {most:g})"
            )
            known = f"a threshold of at least {min(c.threshold or 0.0 for c in good):g}, " if good else ""
            raise self._wrong(message, rule.id, f"Give {known}a certified target_fpr, or let the rule flag")
        # the one that has not expired is asked first
        return max(below, key=lambda c: (c.id not in self.file.expired, c.threshold or 0.0), default=None)

    def _unsure(self, rule: Rule, guard: Guard, direction: str, mine: Sequence[Certificate], threshold: float) -> float:
        """The lower end of a guard's abstain band."""
        found = band(mine)
        if found is None or found.low >= threshold:
            message = f"{guard.name} has no abstain band below this threshold on {direction}"
            raise self._wrong(message, rule.id, "It takes two certified rates, and a rule on the narrower one")
        if rule.abstain in STOPPING:
            self._certified(rule.model_copy(update={"action": rule.abstain}), guard, direction, mine, found.low)
        return found.low

    def rules(self, tenant: str = "") -> Sequence[Bound]:
        """The rules that hold for a tenant."""
        return self._rules.get(tenant, self._rules[""])

    def needed(self, at: Where) -> frozenset[str]:
        """Names of the guards whose verdicts decide there; without them nothing may pass."""
        return frozenset(
            name
            for bound in self.rules(at.tenant)
            if bound.rule.when.covers(at)
            for name in bound.expected.get(at.direction, ())
        )

    def decide(self, at: Where, verdicts: Sequence[Verdict], pending: Collection[str] = ()) -> Decision:
        """The strictest action of all rules that fire, all reasons, all redactions. Pure.

        A guard that the rules need and that gave no verdict counts as failed, unless it is among `pending`: a stream's
        guards that have not seen enough text yet.
        """
        action: Action = "allow"
        reasons: list[str] = []
        redactions: dict[tuple[int, int, str], Span] = {}
        by_name: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            by_name.setdefault(verdict.judge, []).append(verdict)
        for bound in self.rules(at.tenant):
            if not bound.rule.when.covers(at):
                continue
            for name in sorted(bound.expected.get(at.direction, ())):
                missing = [] if name in pending else [Verdict(judge=name, status="error")]
                for verdict in by_name.get(name, missing):
                    taken, reason, spans = self._apply(bound, at, verdict)
                    if reason:
                        reasons.append(reason)
                        action = strictest((action, taken))
                    for span in spans:
                        redactions.setdefault((span.start, span.end, span.type), span)
        return Decision(
            action=action,
            reasons=tuple(dict.fromkeys(reasons)),
            redactions=tuple(redactions[key] for key in sorted(redactions)),
            policy=self.hash,
        )

    def _apply(self, bound: Bound, at: Where, verdict: Verdict) -> tuple[Action, str, tuple[Span, ...]]:
        rule = bound.rule
        on_error = rule.on_error or self.file.defaults.on_error
        if verdict.status != "ok":
            return on_error, f"{rule.id}: {verdict.judge} {verdict.status}", ()
        if rule.pii:
            spans = tuple(span for span in verdict.spans if span.type in rule.pii)
            kinds = ", ".join(sorted({span.type for span in spans}))
            cut = spans if rule.action == "redact" else ()
            return rule.action, f"{rule.id}: personal data ({kinds})" if spans else "", cut
        score = verdict.scores.get(rule.category)
        if score is None or not 0.0 <= score <= 1.0:  # also NaN: a guard that gives no number gives no leave
            return on_error, f"{rule.id}: {verdict.judge} gave no score for {rule.category}", ()
        which = verdict.judge, at.direction
        threshold = bound.thresholds[which]
        if score > threshold:
            taken, why = rule.action, f"{rule.id}: {rule.category} {score:.3f} > {threshold:.3f}"
        elif rule.abstain and score > bound.unsure[which]:
            taken, why = rule.abstain, f"{rule.id}: {rule.category} {score:.3f} unsure (> {bound.unsure[which]:.3f})"
        else:
            return "allow", "", ()
        if which in bound.lapsed and taken in STOPPING:
            return "flag", f"{why}, its certificate has expired", ()
        return taken, why, ()

    def personal(self, at: Where, verdict: Verdict) -> tuple[Span, ...]:
        """What of the personal data found in a text is redacted there."""
        types = {
            kind
            for bound in self.rules(at.tenant)
            if bound.rule.action == "redact" and bound.rule.when.covers(at)
            for kind in bound.rule.pii
        }
        return tuple(span for span in verdict.spans if span.type in types)

    def certified(self, tenant: str = "") -> list[dict[str, Any]]:
        """What the thresholds in force rest on, rule by rule: rate, bound, n, date, tenant, and whether it expired."""
        return [
            {
                "rule": bound.rule.id, "guard": guard, "direction": direction, "category": bound.rule.category,
                "certificate": each.id, "target": each.target, "bound": each.sure, "n": each.n,
                "clusters": each.clusters, "at": each.at, "tenant": each.tenant, "data": each.data,
                "expired": (guard, direction) in bound.lapsed,
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
            if at[1] == direction and at not in bound.lapsed
        }
        return joint([found[name] for name in sorted(found)])

    def message(self, decision: Decision, language: str = "", tenant: str = "") -> str:
        """What the user reads instead, in their language where there is one."""
        fallback = "hold.review" if decision.action == "review" else "refuse.default"
        return self._text(self._key(decision, tenant, decision.action) or fallback, language)

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

    def _text(self, key: str, language: str) -> str:
        texts = self.file.messages.get(key) or {"": _MESSAGES.get(key, _MESSAGES["refuse.default"])}
        return texts.get(language) or texts.get(self.file.defaults.language) or next(iter(texts.values()))

    def coverage(self, surfaces: Sequence[Surface] = SURFACES, tenant: str = "") -> list[dict[str, Any]]:
        """Surface x direction x channel that is served -> rules with guards: what is guarded, and what is not."""
        found = []
        for surface in surfaces:
            for direction, channels in SERVED[surface].items():
                for channel in channels:
                    at = Where(direction, channel, surface, tenant)
                    rules = [b.rule for b in self.rules(tenant) if b.rule.when.covers(at)]
                    row = {"surface": surface, "direction": direction, "channel": channel}
                    guards = sorted(self.needed(at))
                    found.append({**row, "rules": [rule.id for rule in rules], "guards": guards})
        return found


def strictest(actions: Iterable[Action]) -> Action:
    """The strictest of several actions; `allow` of none."""
    return max(actions, key=ACTIONS.index, default="allow")

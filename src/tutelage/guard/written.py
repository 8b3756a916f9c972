"""The safety policy as it is written: `policy.yaml` and `taxonomy.yaml`, and where rules may apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from tutelage.core.records import Action, Record
from tutelage.text.pii import TYPES

Direction = Literal["input", "output"]
Channel = Literal["content", "reasoning", "tool_call", "tool_result", "system"]
Surface = Literal["chat", "completions", "responses", "embeddings", "moderations", "scan"]
DIRECTIONS: tuple[Direction, ...] = ("input", "output")
CHANNELS: tuple[Channel, ...] = ("content", "reasoning", "tool_call", "tool_result", "system")
SURFACES: tuple[Surface, ...] = ("chat", "completions", "responses", "embeddings", "moderations", "scan")
SERVED: Mapping[Surface, Mapping[Direction, tuple[Channel, ...]]] = {
    "chat": {"input": CHANNELS, "output": ("content", "reasoning", "tool_call")},
    "completions": {"input": ("content",), "output": ("content", "reasoning")},
    "responses": {"input": CHANNELS, "output": ("content", "reasoning", "tool_call")},
    "embeddings": {"input": ("content",)},
    "moderations": {"input": ("content",)},
    "scan": {"input": CHANNELS, "output": ("content",)},
}
"""What a surface carries: of an answer the text, the thinking and calls of tools; whatever else never leaves."""
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


class OnError(Record):
    """What each way of failing means; what is left out is decided one level up. Closed is the default everywhere.

    Nonsense is never leave: `malformed` may not be told to pass unseen.
    """

    timeout: Action | None = None
    malformed: Action | None = None
    unsupported: Action | None = None
    error: Action | None = None

    @model_validator(mode="after")
    def _nonsense_is_no_leave(self) -> OnError:
        if self.malformed == "allow":
            raise ValueError("what a guard says that reads as nothing may be flagged at least, never allowed")
        return self


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
    message: str = ""
    """Key of `messages`; by the action when empty: `refuse.default`, `hold.review`."""
    on_error: Action | OnError | None = None
    """What a guard's failure means for this rule; as the guard's settings, then `defaults` say, when left out."""
    unsure: Action | None = None
    """What becomes of a text of which no guard is sure, the last tier included: `review` when left out. Given, it also
    lets a guard without a band of its own be unsure: between its widest and its narrowest certified rate."""
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
        if self.category and self.action == "redact":
            raise ValueError("only personal data can be redacted: a category has no place in the text to cut out")
        if self.pii and self.unsure:
            raise ValueError("only a rule on a category can be unsure: personal data are there or not")
        if self.unsure in ("redact", "rewrite"):
            raise ValueError("`unsure` is allow, flag, review or block")
        if self.action == "rewrite" and self.when.direction != ("output",):
            raise ValueError("only an answer can be rewritten: a rule that rewrites needs `when: {direction: output}`")
        return self


class Override(Record):
    """What a tenant changes of a rule."""

    action: Action | None = None
    target_fpr: float | None = Field(None, gt=0, lt=1)
    threshold: float | None = Field(None, ge=0, le=1)
    message: str | None = None
    on_error: Action | OnError | None = None
    unsure: Action | None = None
    off: bool | None = None


class Defaults(Record):
    """What holds unless a rule says otherwise."""

    on_error: Action | OnError = "block"
    budget_ms: float = Field(50.0, gt=0)
    """Milliseconds a guard may take before its verdict counts as `timeout`."""
    max_bound: float = Field(0.05, gt=0, le=1)
    """Upper bound of the false-positive rate with which a guard may still stop a text; a worse one may only flag.
    Held against the bound that counts clusters of texts alike, where that is weaker than the one that counts texts."""
    hold_back: int = Field(64, ge=0, le=4096)
    """Characters of a stream kept back behind what all guards have scored; of the embedded engine 16 tokens at most."""
    language: str = "en"
    """Of messages, when neither the text's own language nor the one that the request asks for has one."""


class GuardSettings(Record):
    """What holds for one guard, or for all of a kind."""

    budget_ms: float | None = Field(None, gt=0)
    """Instead of `defaults.budget_ms`."""
    on_error: Action | OnError | None = None
    """Instead of `defaults.on_error`; a rule may say otherwise."""
    tier: int | None = Field(None, ge=0, le=9)
    """0 reads every text; a higher tier only what the tier before is not sure of. As the guard says when left out."""
    band: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Category -> probabilities between which the guard is not sure. As the guard says when left out."""

    @field_validator("band")
    @classmethod
    def _ordered(cls, band: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in band.items():
            if not 0 <= low < high <= 1:
                raise ValueError(f"a band runs from a lower to a higher probability, {name!r} from {low:g} to {high:g}")
        return band


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

    version: int = Field(1, ge=1)
    """Counted up by who changes the policy; the content hash names it exactly."""
    taxonomy: str = "taxonomy.yaml"
    defaults: Defaults = Defaults()
    max_bound: dict[str, float] = Field(default_factory=dict)
    """Category -> instead of `defaults.max_bound`."""
    guards: dict[str, GuardSettings] = Field(default_factory=dict)
    """Name of a guard, or of its kind (`classifier`, `pii`) -> what holds for it."""
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

"""What a project asks of the people who work in it, beyond its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tutelage.core.config import Config


class DialogueSettings(Config):
    """`settings.dialogue` of a project of kind dialogue: who answers, and within which limits."""

    generators: tuple[str, ...] = Field(min_length=1, max_length=9)
    """`model:...`, `bundle:...`, `release:current`, `fake:...`, or a name under `generators` in service.yaml, which
    holds addresses and keys. One generator answers several times."""
    candidates: int = Field(default=2, ge=2, le=4)
    """Answers side by side."""
    system: str = Field(default="", max_length=20_000)
    """The system prompt."""
    max_tokens: int = Field(default=256, ge=1, le=4096)
    temperature: float = Field(default=1.0, ge=0, le=2)
    timeout_s: float = Field(default=30.0, gt=0, le=300)
    """An answer that takes longer is left out."""
    turns: int = Field(default=20, ge=1, le=200)
    """Most turns of a dialogue."""
    alike: float = Field(default=0.95, gt=0, le=1)
    """Overlap of character trigrams from which two answers are shown as one."""
    licence: str = "not-stated"
    """Licence class of what is said here."""


class ProjectSettings(Config):
    """The settings of a project."""

    target: int | None = Field(None, ge=1)
    """Answers that are enough, for the forecast; none: all that tasks want."""
    mask_pii: bool = True
    """Personal data is masked in what annotators see."""
    roles: tuple[str, ...] = ()
    """Who may answer; empty: annotators, reviewers, adjudicators, leads and safety."""
    people: str = ""
    """Who answers, as the stage `collect` was told: people at the console (`none`), simulated or recorded ones."""
    qualifications: tuple[str, ...] = ()
    """What a person must have shown to be able to do, all of it; a lead grants it."""
    languages: tuple[str, ...] = ()
    """Only persons who named one of these languages are given tasks. A task's own language is asked for besides."""
    most_per_person: int | None = Field(None, ge=1)
    """Tasks one person may answer here."""
    most_per_day: int | None = Field(None, ge=1)
    """Tasks one person may answer here in a day. Days begin at midnight UTC, by the server's clock."""
    gold_share: float = Field(0.0, ge=0, le=0.5)
    """Share of what a person is given that is gold: tasks whose answer is known, which nothing tells apart. 0.05 to 0.1
    is usual; 0 gives none. Results say whose answers to look at; they are never a measure of pay."""
    gold_exposure: int = Field(50, ge=1)
    """People who may be given one gold task; each person sees it once at most."""
    gold_threshold: float = Field(0.6, gt=0, lt=1)
    """The share of gold tasks that somebody must get right."""
    gold_doubt: float = Field(0.95, gt=0.5, lt=1)
    """A person is given nothing more, until a lead has looked, once they are below the threshold with this
    probability."""

    coverage: dict[str, Any] = Field(default_factory=dict)
    """What a person may say about themselves -> group -> share of the answers that is wanted of it."""
    licence: str = ""
    """Licence class of tasks that name none."""
    dialogue: DialogueSettings | None = None
    """Who answers in a project of kind dialogue."""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> ProjectSettings:
        """The settings that a store holds; keys of another version of this code are passed over."""
        return cls(**{key: value for key, value in stored.items() if key in cls.model_fields})

"""The little world of one seed: `build(seed, scale)`, and from it every text, question, label, person and week."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from tutelage.core.records import Document, Example
from tutelage.starter import dialogues, labels, people, traffic
from tutelage.starter.documents import Corpus
from tutelage.starter.families import Families
from tutelage.starter.planted import Truth
from tutelage.starter.requests import Requests
from tutelage.starter.rules import RULES, Rule
from tutelage.starter.town import Town
from tutelage.starter.velic import Velic


class World:
    """One town. Its parts are made when they are first asked for and are the same on every machine."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, found {scale}")
        self.seed, self.scale = seed, scale
        self.town = Town(seed)
        self.families = Families(self.town)
        self.requests = Requests(self.families)

    @property
    def velic(self) -> Velic:
        """The invented language of this town."""
        return self.town.velic

    @property
    def rules(self) -> dict[str, Rule]:
        """The house rules by id."""
        return RULES

    @cached_property
    def _examination(self) -> dialogues.Examination:
        return dialogues.Examination(self.town, self.families, self.requests, self.scale)

    @cached_property
    def _corpus(self) -> tuple[list[Document], Truth]:
        corpus = Corpus(self.town, self.families, self.requests, self._examination.banned, self.scale)
        return corpus.write(), corpus.truth

    @cached_property
    def _tuning(self) -> list[Example]:
        return dialogues.tuning(self.town, self.families, self.requests, self._examination.banned, self.scale)

    @cached_property
    def _labels(self) -> list[Example]:
        return labels.Labels(self.town, self.families, self.requests, self._examination.banned, self.scale).rows()

    def documents(self) -> Iterator[Document]:
        """The corpus, easy to hard with the easy kept."""
        return iter(self._corpus[0])

    @property
    def truth(self) -> Truth:
        """What was planted in the documents, and where."""
        return self._corpus[1]

    def dialogues(self) -> list[Example]:
        """The tuning dialogues; the last message is the desk's answer."""
        return list(self._tuning)

    def items(self) -> list[Example]:
        """The examination, the red team's goals with their benign twins, and the audit's probes."""
        return list(self._examination.items)

    def labels(self) -> list[Example]:
        """Rows for the guards, with the truth about each."""
        return list(self._labels)

    def traffic(self, week: int) -> list[traffic.Request]:
        """The requests of week 1 to 4; week 4 has no drift."""
        return traffic.week(week, self.families, self.requests, self._examination.banned, self.scale)

    def raters(self) -> tuple[people.Rater, ...]:
        """The simulated people of this town."""
        return people.raters(self.seed)


def build(seed: int = 0, scale: float = 1.0) -> World:
    """The town of a seed; `scale` 0.1 makes a tenth of every text, for tests."""
    return World(seed, scale)

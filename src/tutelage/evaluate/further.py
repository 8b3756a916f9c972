"""What is asked of a target beyond its items: other forms of them, more answers, the same once more.

All of it is asked in the way in which the items were asked, so that a difference is one of what is examined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from tutelage.core.config import Config
from tutelage.core.records import Example
from tutelage.evaluate import groups, reliability, robustness
from tutelage.evaluate.ask import MAX_TOKENS, AnswerLog
from tutelage.evaluate.reliability import Reliability
from tutelage.evaluate.robustness import Robustness
from tutelage.evaluate.suite import Result, Suite, item_id
from tutelage.evaluate.suites.kinds import Ground
from tutelage.evaluate.ways import Asking, Way
from tutelage.generate.generator import Generator


class Examination(Config):
    """What is asked of any reference on any suite."""

    how: Asking = Field(default_factory=Asking)
    """How items are asked: examples, chat template, judge."""
    max_tokens: dict[str, int] = Field(default_factory=dict)
    """Tokens an answer may take, by kind, where it shall differ from the default."""
    contamination: int = Field(8, ge=0)
    """Words in a run which, standing in an item and in what a model learned from, make it dirty; 0 does not look."""
    resamples: int = Field(1000, ge=50)
    """Bootstrap resamples for corpus-level figures (chrF, BLEU, macro-F1)."""
    robustness: Robustness = Robustness()
    """The same items in other forms, and what that costs."""
    reliability: Reliability = Reliability()
    """Calibration, agreement with itself, determinism."""
    seed: int = 0
    """Which items and examples are drawn."""


class Further:
    """What is asked of each target beyond its items: other forms of them, more answers, the same once more."""

    def __init__(self, config: Examination, chosen: Sequence[Suite], way: Way, log: AnswerLog) -> None:
        self.config, self.chosen, self.way, self.log = config, chosen, way, log
        self.forms = robustness.forms(chosen, config.robustness, config.seed)
        self.changed: list[Result] = []
        self.points: list[reliability.Point] = []
        self.runs: list[Sequence[Result]] = []
        self.same: list[dict[str, Any]] = []

    @property
    def count(self) -> int:
        """Answers that one target will be asked for."""
        more, seed = self.config.reliability, self.config.seed
        drawn = more.repeats * len(reliability.repeatable(self.chosen, more, seed))
        alone = 3 * len(reliability.same(self.chosen, more, seed))
        once_more = robustness.again(self.forms) if self.config.robustness.temperature else 0
        return len(self.forms.items) + once_more * len(robustness.repeatable(self.forms)) + drawn + alone

    def _weighed(self) -> list[Example]:
        """Items whose choices were weighed: those of multiple choice, and of labels where they were to be."""
        kinds = ("choice", "classify") if self.config.how.weigh_labels else ("choice",)
        items = (item for suite in self.chosen for item in suite.items if item.tags["kind"] in kinds)
        return [item for item in items if len(item.choices) > 1 and item.target in item.choices]

    def ask(
        self, generator: Generator, name: str, ref: str, results: Sequence[Result], step: Callable[[int], None]
    ) -> None:
        """Ask one target; `results` holds the answers to its items as they stand."""
        config, way = self.config, self.way
        who: dict[str, Any] = {"target": name, "target_id": ref, "log": self.log}
        asked: dict[str, Any] = {"max_tokens": {**MAX_TOKENS, **config.max_tokens}, "seed": config.seed, "step": step}
        self.changed += robustness.ask(generator, self.forms, config.robustness, way, **who, **asked)
        self.points += reliability.of_choices(generator, self._weighed(), way, **who)
        self.points += reliability.of_answers(each for each in results if each.target == name)
        self.runs += reliability.repeated(generator, self.chosen, config.reliability, way, **who, **asked)
        self.same += reliability.determinism(generator, self.chosen, config.reliability, way, target=name, **asked)

    def found(self, results: Sequence[Result]) -> dict[str, Any]:
        """The parts `reliability`, `robustness` and `groups` of a summary."""
        asked: dict[tuple[str, str], int] = {}
        for each in results:
            asked[each.target, each.suite] = asked.get((each.target, each.suite), 0) + 1
        more: dict[str, Any] = {"resamples": self.config.resamples, "seed": self.config.seed}
        ground = Ground({item_id(item): item for suite in self.chosen for item in suite.items})
        consistency = reliability.consistency("seeds", self.runs, results, ground)
        others = reliability.wordings(results, self.changed)
        consistency += reliability.consistency("wordings", others, results, ground)
        answers = [*groups.of_slices(results, ground), *groups.of_forms(results, self.changed)]
        return {
            "reliability": {
                "calibration": reliability.calibration(self.points, asked, **more),
                "consistency": consistency,
                "determinism": self.same,
            },
            "robustness": robustness.table(results, self.changed, self.forms, margin=self.config.robustness.margin)
            if self.changed
            else [],
            "groups": groups.gaps(answers),
        }

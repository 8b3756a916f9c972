"""What is asked of a target beyond its items: other forms of them, more answers, the same once more."""

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
from tutelage.evaluate.suite import Result, Suite
from tutelage.evaluate.suites.judged import Bench
from tutelage.generate.generator import Generator


class Examination(Config):
    """What is asked of any reference on any suite."""

    max_tokens: dict[str, int] = Field(default_factory=dict)
    """Tokens an answer may take, by kind, where it shall differ from the default."""
    resamples: int = Field(200, ge=50)
    """Bootstrap resamples for corpus-level figures (chrF, BLEU, macro-F1)."""
    robustness: Robustness = Robustness()
    """The same items in other forms, and what that costs."""
    reliability: Reliability = Reliability()
    """Calibration, agreement with itself, determinism."""
    seed: int = 0
    """Which items are drawn."""


class Further:
    """What is asked of each target beyond its items: other forms of them, more answers, the same once more."""

    def __init__(self, config: Examination, chosen: Sequence[Suite], log: AnswerLog | None) -> None:
        self.config, self.chosen, self.log = config, chosen, log
        self.bench: Bench | None = None
        """Who judges open-ended answers here too."""
        self.judge = ""
        self.forms = robustness.forms(chosen, config.robustness, config.seed)
        self.changed: list[Result] = []
        self.points: list[reliability.Point] = []
        self.runs: list[Sequence[Result]] = []
        self.same: list[dict[str, Any]] = []

    @property
    def count(self) -> int:
        """Answers that one target will be asked for."""
        more = self.config.reliability
        kinds = [[item for item in suite.items if item.tags["kind"] != "choice"] for suite in self.chosen]
        drawn = more.repeats * sum(min(len(items), more.items) for items in kinds)
        weighed = len(self._weighed())
        alone = 3 * sum(min(len(suite), more.same) for suite in self.chosen)
        sampled = sum(item.tags["kind"] != "choice" for item in self.forms.originals)
        again = sampled * robustness.again(self.forms) if self.config.robustness.temperature else 0
        return len(self.forms.items) + again + drawn + weighed + alone

    def _weighed(self) -> list[Example]:
        """Items whose choices are weighed: those of multiple choice were asked already; labels where they shall be."""
        kinds = ("choice", "classify") if self.config.reliability.labels else ("choice",)
        items = (item for suite in self.chosen for item in suite.items if item.tags["kind"] in kinds)
        return [item for item in items if len(item.choices) > 1 and item.target in item.choices]

    def ask(
        self, generator: Generator, name: str, ref: str, results: Sequence[Result], step: Callable[[int], None]
    ) -> None:
        """Ask one target; `results` holds the answers to its items as they stand."""
        config = self.config
        lengths = {**MAX_TOKENS, **config.max_tokens}
        who: dict[str, Any] = {"target": name, "target_id": ref, "log": self.log, "step": step}
        asked: dict[str, Any] = {"max_tokens": lengths, "seed": config.seed}
        judging: dict[str, Any] = {"bench": self.bench, "judge": self.judge}
        self.changed += robustness.ask(generator, self.forms, config.robustness, **judging, **who, **asked)
        self.points += reliability.of_choices(generator, self._weighed(), **who)
        self.points += reliability.of_answers(each for each in results if each.target == name)
        runs = reliability.repeated(generator, self.chosen, config.reliability, **judging, **who, **asked)
        self.runs += runs
        self.same += reliability.determinism(
            generator, self.chosen, config.reliability, target=name, step=step, **asked
        )

    def found(self, results: Sequence[Result]) -> dict[str, Any]:
        """The parts `reliability`, `robustness` and `groups` of a summary."""
        asked: dict[tuple[str, str], int] = {}
        for each in results:
            asked[each.target, each.suite] = asked.get((each.target, each.suite), 0) + 1
        more: dict[str, Any] = {"resamples": self.config.resamples, "seed": self.config.seed}
        consistency = reliability.consistency("seeds", self.runs, results)
        consistency += reliability.consistency("wordings", reliability.wordings(results, self.changed), results)
        answers = [*groups.of_slices(results), *groups.of_forms(results, self.changed)]
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

"""Stage `reward`: one model that explains people's rankings (ties kept) and scores, and the judge it becomes.

What it reports beside its accuracy on people it was not trained on: the ceiling that their agreement allows, how its
probabilities are calibrated, and how much of its opinion is mere length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit
from torch import Tensor, nn

from tutelage.core.artifact import Artifact, Root
from tutelage.core.errors import DataError, NotFound
from tutelage.core.price import Cost, Machine, Size
from tutelage.core.records import Example, Preference, Response, Verdict, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, stage
from tutelage.generate.generator import Generator, Sampling, Scored, weigh_texts
from tutelage.judge.judge import Judge, WindowedJudge, value
from tutelage.measure.calibration import ece, temperature
from tutelage.measure.statistics import Interval, bootstrap, plain, rate, undefined
from tutelage.model.checkpoint import load_decoder, load_reward, save
from tutelage.model.heads import RewardModel
from tutelage.tokens.chat import encode_dialogue
from tutelage.tokens.tokenizer import Tokenizer, load
from tutelage.train.batch import ItemSteps, Judged, PreferenceBatch, any_tie, lay, spread
from tutelage.train.calibrate import looks, training_cost
from tutelage.train.loop import Watches, fit, keep_logs
from tutelage.train.objectives import Rewards, pairs_of
from tutelage.train.training import Scalable, settled


class Reward(Scalable):
    """How the reward model learns."""

    batch: int = Field(default=16, ge=1)
    """Judged prompts per optimizer step."""
    steps: int = Field(default=60, ge=1)
    """Optimizer steps."""
    matrix_rate: float = Field(default=0.001, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.001, gt=0)
    """Learning rate of embeddings and the scoring head (AdamW)."""
    scalar_rate: float = Field(default=0.001, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    decay: float = Field(default=0.8, ge=0, le=1)
    """Share of the run in which the learning rate falls (`wsd`)."""
    ranking_weight: float = Field(default=1.0, ge=0)
    """Weight of rankings."""
    score_weight: float = Field(default=1.0, ge=0)
    """Weight of scores."""
    tie: float = 0.0
    """Log of Davidson's tie parameter."""
    listwise: bool = False
    """Plackett-Luce for full orders without ties, instead of Davidson's pairs."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between looks at `accuracy`, of validation rows; 0 looks at the beginning and the end only."""
    likelihood: float = 1.0
    """What an answer's likelihood under the trunk counts at the start (reward per nat and token); then learned."""


def trailing(mask: Sequence[bool] | np.ndarray) -> int:
    """How many places are marked at the end: the last answer's tokens, when the mask marks what assistants say."""
    marked = np.asarray(mask, bool)[::-1]
    return len(marked) if marked.all() else int(marked.argmin())


@dataclass(frozen=True)
class Row:
    """A preference as token ids: one segment per candidate, prompt included."""

    preference: Preference
    segments: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def answered(self) -> list[int]:
        """Tokens of each candidate."""
        return [trailing(mask) for mask in self.masks]

    @property
    def cluster(self) -> str:
        tags = self.preference.tags
        return str(tags.get("cluster") or tags.get("id") or self.preference.rows)


def read_rows(
    rows: Iterable[Preference], tokenizer: Tokenizer, longest: int
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Preferences by split, as ids; and what was dropped, counted by reason."""
    found: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    dropped: Counter[str] = Counter()
    for preference in rows:
        encoded = [
            encode_dialogue(Example(messages=(*preference.prompt, candidate)), tokenizer)
            for candidate in preference.candidates
        ]
        ordered = len(preference.tiers) > 1 or any_tie(preference.tiers)
        if not ordered and not any(score is not None for score in preference.scores):
            dropped["no judgement"] += 1
        elif any(len(ids) > longest for ids, _ in encoded):
            dropped["longer than the model's context"] += 1
        else:
            segments = tuple(np.array(ids, dtype=np.int64) for ids, _ in encoded)
            masks = tuple(np.array(mask, dtype=bool) for _, mask in encoded)
            split = str(preference.tags.get("split", "train"))
            found.setdefault(split, []).append(Row(preference, segments, masks))
    return found, dict(dropped)


class Panel(nn.Module):
    """The reward model and, while it learns from single people, how strict each of them is."""

    def __init__(self, reward: RewardModel, people: int) -> None:
        super().__init__()
        self.reward = reward
        self.offsets = nn.Parameter(torch.zeros(people)) if people else None
        self.bf16 = reward.decoder.bf16  # what the optimizer asks

    def forward(
        self, ids: Tensor, *, lengths: Sequence[int] | None = None, answered: Sequence[int] | None = None
    ) -> Tensor:
        return self.reward(ids, lengths=lengths, answered=answered)  # type: ignore[no-any-return]


def collate(rows: Sequence[Row], people: Mapping[str, int] | None = None) -> PreferenceBatch:
    """A micro-batch of judged prompts."""
    segments: list[np.ndarray] = []
    judged: list[Judged] = []
    answered: list[int] = []
    for row in rows:
        first, preference = len(segments), row.preference
        segments += row.segments
        answered += row.answered
        tiers = tuple(tuple(first + candidate for candidate in tier) for tier in preference.tiers)
        scores = tuple((first + i, score) for i, score in enumerate(preference.scores) if score is not None)
        person = (people or {}).get(str(preference.tags.get("person")), -1)
        judged.append(Judged(tiers, scores, preference.weight, person))
    ids, lengths = lay(segments)
    return PreferenceBatch(ids=ids, lengths=lengths, judged=tuple(judged), answered=tuple(answered))


class Agreement:
    """How often the reward model orders held-out pairs as people did, as a watch: `accuracy`."""

    def __init__(self, rows: Sequence[Row], every: int) -> None:
        self.rows, self.every = rows, every
        self._pairs = Pairs(np.zeros(0), [])

    def __call__(self, model: Panel, step: int) -> dict[str, Any]:
        """The share of decided pairs in their order, and how many there are."""
        self._pairs = decided(self.rows, score_rows(model.reward, self.rows))
        right = (self._pairs.gaps > 0).astype(float)
        return {"accuracy": float(right.mean()) if len(right) else None, "pairs": len(right)}

    def higher(self, name: str) -> bool | None:
        """Whether more of a figure is better."""
        return True if name == "accuracy" else None

    def values(self, name: str) -> dict[str, tuple[float, str]]:
        """Of the last look whether each pair was in order, and the row's cluster."""
        if name != "accuracy":
            return {}
        pairs = zip(self._pairs.gaps.tolist(), self._pairs.clusters, strict=True)
        return {str(place): (float(gap > 0), cluster) for place, (gap, cluster) in enumerate(pairs)}


def reward_cost(config: Reward, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Forward and backward over every candidate with its prompt; in the end all rows are scored, some twice."""
    size, people = Size.of(inputs.get("model", {})), inputs.get("preferences", {})
    each = people.get("tokens_per_row", 200.0)
    flops = size.spoken(people.get("answer_tokens", 100.0), people.get("answered", 0.3))
    scored = (1.3 + 0.1 * looks(config.steps, config.validate_every)) * each * people.get("rows", 300.0) * flops
    tokens = config.steps * config.batch * each
    learned, micro = (config.learned(size),), min(config.micro, config.batch * each)
    known = {"memory": size.taught(micro, people.get("answer_tokens", 100.0), learned=learned), "read": scored}
    return training_cost(size, flops, tokens, config.steps, machine, **known, beside=0.5, learned=learned)


@stage(
    makes="reward",
    config=Reward,
    inputs={
        "model": Input(kind="model", default="finetune", help="the trunk the reward model starts from"),
        "preferences": Input(kind="preferences", default="preferences"),
    },
    version=3,
    cost=reward_cost,
)
def reward(config: Reward, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Learn what people prefer; writes Hugging Face files with a scalar head and `calibration.json`."""
    device = config.prepare()
    tokenizer = load(inputs.model.path)
    decoder = config.computing(config.learner(load_decoder(inputs.model.path).to(device)))
    source = inputs.preferences.file("preferences.jsonl")
    longest = decoder.config.max_position_embeddings
    splits, dropped = read_rows(read_jsonl(source, Preference), tokenizer, longest)
    train = splits["train"]
    if not train:
        raise DataError("no preference to learn from is marked `train`", file=source)
    names = sorted({str(row.preference.tags["person"]) for row in train if row.preference.tags.get("person")})
    people = {name: index for index, name in enumerate(names)}
    model = Panel(RewardModel(decoder, config.likelihood).to(device), len(people)).to(device)
    steps = ItemSteps(
        [row.size for row in train],
        lambda items: collate([train[item] for item in items], people),
        per_step=config.batch,
        micro=max(config.micro, max(row.size for row in train)),
        seed=config.seed,
    )
    objective = Rewards(
        {"rankings": config.ranking_weight, "ratings": config.score_weight}, tie=config.tie, listwise=config.listwise
    )
    run = config.run(context, config.steps)
    watch = Watches(config.steps, Agreement(splits["validation"], config.validate_every))
    fitted = fit(model, steps, objective, config.optimizer(model, config.steps), run=run, watch=watch)
    model.reward.decoder = settled(decoder, out, inputs.model.ref, score=model.reward.head.weight)
    model.eval()
    held_out = splits["test"] or splits["validation"]
    tuned_on = splits["validation"] or train
    scores = {split: score_rows(model.reward, rows) for split, rows in splits.items()}
    fitting = calibrate(tuned_on, score_rows(model.reward, tuned_on), scores["train"])
    asked, others = by_kind(held_out)
    report = examine(asked, score_rows(model.reward, asked), fitting)
    save(model.reward, out, inputs.model.path)
    keep_logs(context.work, out)
    calibration = {**fitting, "ece": report["ece"], "people": dict(zip(names, _offsets(model), strict=True))}
    (out / "calibration.json").write_text(json.dumps(calibration, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "dropped": dropped,
        "loss": fitted.last.get("loss"),
        "people": sorted({str(row.preference.tags.get("people", "")) for row in asked}),
        **report,
        "likelihood": round(float(model.reward.likelihood.detach()), 4),
        "ceiling": _ceiling(inputs.preferences),
        "unnamed": _accuracy(others, score_rows(model.reward, others)),
    }


UNNAMED = "unnamed"
"""Mark of comparisons that came with a verdict and nobody's name: learned from, and counted by themselves."""


def by_kind(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of the people who were asked, whose agreement sets the ceiling, and unnamed ones; never pooled. The first
    are all rows where nobody was asked."""
    asked = [row for row in rows if row.preference.tags.get("people") != UNNAMED]
    if not asked:
        return list(rows), []
    return asked, [row for row in rows if row.preference.tags.get("people") == UNNAMED]


def _accuracy(rows: Sequence[Row], scores: Sequence[np.ndarray]) -> Any:
    pairs = decided(rows, scores)
    return plain(rate((pairs.gaps > 0).astype(float).tolist(), pairs.clusters))


def _offsets(model: Panel) -> list[float]:
    return [] if model.offsets is None else [round(each, 6) for each in model.offsets.tolist()]


def _ceiling(preferences: Artifact) -> Any:
    """What the people's agreement allows, as `agreement.json` states it."""
    try:
        stated = json.loads(preferences.file("agreement.json").read_text(encoding="utf-8"))
    except NotFound:
        return {"value": None, "reason": "the preferences state no agreement"}
    return stated.get("ceiling", {"value": None, "reason": "the agreement states no ceiling"})


# ------------------------------------------------------------------------------------------------- what it is worth


@torch.no_grad()
def score_segments(
    model: RewardModel, segments: Sequence[np.ndarray], answered: Sequence[int], micro: int = 4096
) -> np.ndarray:
    """Raw rewards [n] of whole dialogues as token ids, of which the last `answered` are the answer."""
    found = np.zeros(len(segments))
    if not segments:
        return found
    device = next(model.parameters()).device
    sizes = [len(segment) for segment in segments]
    for items in spread(sizes, max(micro, 2 * max(sizes))):
        ids, lengths = lay([segments[item] for item in items])
        said = [answered[item] for item in items]
        found[items] = model(ids.to(device), lengths=lengths, answered=said).double().cpu().numpy()
    return found


def score_rows(model: RewardModel, rows: Sequence[Row]) -> list[np.ndarray]:
    """Raw rewards of every row's candidates."""
    answered = [count for row in rows for count in row.answered]
    flat = score_segments(model, [segment for row in rows for segment in row.segments], answered)
    return np.split(flat, np.cumsum([len(row.segments) for row in rows])[:-1]) if rows else []


class Pairs(NamedTuple):
    """Decided pairs of held-out rows: reward gap of the preferred over the other, and the row's cluster."""

    gaps: np.ndarray
    clusters: list[str]


def decided(rows: Sequence[Row], scores: Sequence[np.ndarray]) -> Pairs:
    """Every pair that people did order, with the reward gap in their direction."""
    gaps: list[float] = []
    clusters: list[str] = []
    for row, found in zip(rows, scores, strict=True):
        left, right, tied = pairs_of(row.preference.tiers)
        for one, other, tie in zip(left, right, tied, strict=True):
            if not tie:
                gaps.append(float(found[one] - found[other]))
                clusters.append(row.cluster)
    return Pairs(np.array(gaps), clusters)


def calibrate(rows: Sequence[Row], scores: Sequence[np.ndarray], all_scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Centre and spread of rewards over the training candidates, and the temperature of pair probabilities."""
    flat = np.concatenate(all_scores) if len(all_scores) else np.zeros(1)
    gaps = decided(rows, scores).gaps
    # both directions: the fit must not profit from the preferred one standing first
    logits = [[float(gap), 0.0] for gap in gaps] + [[-float(gap), 0.0] for gap in gaps]
    fitted = temperature(logits, [0] * len(gaps) + [1] * len(gaps)) if len(gaps) > 1 else None
    deviation = float(flat.std())
    return {
        "mean": float(flat.mean()),
        "deviation": deviation if deviation > 1e-6 else 1.0,
        "temperature": fitted or 1.0,
    }


def examine(rows: Sequence[Row], scores: Sequence[np.ndarray], fitting: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy, calibration, agreement with scores and length slope on rows that were not learned from."""
    pairs = decided(rows, scores)
    right = (pairs.gaps > 0).astype(float).tolist()
    lengths = [np.array([mask.sum() for mask in row.masks], float) for row in rows]
    shorter = [1.0 if gap < 0 else 0.0 for gap in decided(rows, lengths).gaps]
    one_way = np.where(np.arange(len(pairs.gaps)) % 2, -pairs.gaps, pairs.gaps)  # half of them turned round
    certain = expit(one_way / float(fitting["temperature"]))
    return {
        "accuracy": plain(rate(right, pairs.clusters)),
        "accuracy_of_the_shorter": plain(rate(shorter, pairs.clusters)),
        "ece": plain(ece(certain.tolist(), (one_way == pairs.gaps).astype(float).tolist(), clusters=pairs.clusters)),
        "score_correlation": plain(_score_correlation(rows, scores)),
        "length_slope": plain(_length_slope(rows, scores, lengths, float(fitting["deviation"]))),
    }


def _score_correlation(rows: Sequence[Row], scores: Sequence[np.ndarray]) -> Interval:
    """Pearson correlation of rewards with people's scores, over candidates."""
    found = [
        (said, wanted, row.cluster)
        for row, rewards in zip(rows, scores, strict=True)
        for said, wanted in zip(rewards, row.preference.scores or [None] * len(rewards), strict=True)
        if wanted is not None
    ]
    if len(found) < 3:
        return undefined(len(found), "fewer than three scores are held out")
    said, wanted = np.array([each[0] for each in found]), np.array([each[1] for each in found], float)
    return bootstrap(
        lambda items: _correlation(said[items], wanted[items]), len(found), clusters=[each[2] for each in found]
    )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if one.std() < 1e-12 or other.std() < 1e-12:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _length_slope(
    rows: Sequence[Row], scores: Sequence[np.ndarray], lengths: Sequence[np.ndarray], deviation: float
) -> Interval:
    """Standard deviations of reward per ten more tokens of answer, between candidates of one prompt."""
    x = np.concatenate([each - each.mean() for each in lengths]) / 10 if rows else np.zeros(0)
    y = np.concatenate([each - each.mean() for each in scores]) / deviation if rows else np.zeros(0)
    if len(x) < 3 or not (x != 0).any():
        return undefined(len(x), "held-out candidates do not differ in length")
    clusters = [row.cluster for row in rows for _ in row.segments]

    def slope(items: np.ndarray) -> float:
        below = float((x[items] ** 2).sum())
        return float((x[items] * y[items]).sum()) / below if below else float("nan")

    return bootstrap(slope, len(x), clusters=clusters)


# ------------------------------------------------------------------------------------------------------- as a judge


class RewardJudge(WindowedJudge):
    """A sealed reward model as a judge: score `reward`, in standard deviations above its training candidates' mean.

    A conversation longer than the model's context is `unsupported`: no opinion rather than one on a torso.
    """

    def __init__(self, path: Path, name: str = "reward", device: str = "cpu") -> None:
        self.name, self.path = name, path
        self.model = load_reward(path).to(device).eval()
        self.tokenizer = load(path)
        self.longest = self.model.decoder.config.max_position_embeddings
        file = path / "calibration.json"
        fitting = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.mean, self.deviation = float(fitting.get("mean", 0.0)), float(fitting.get("deviation", 1.0))

    def judge(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example; its last message is the answer."""
        encoded = [encode_dialogue(example, self.tokenizer) for example in examples]
        ids = [np.array(each, dtype=np.int64) for each, _ in encoded]
        fits = [index for index, each in enumerate(ids) if len(each) <= self.longest]
        scores = self.score([ids[index] for index in fits], [trailing(encoded[index][1]) for index in fits])
        found = dict(zip(fits, scores, strict=True))
        return [
            Verdict(judge=self.name, scores={"reward": float(found[index])})
            if index in found
            else Verdict(judge=self.name, status="unsupported")
            for index in range(len(examples))
        ]

    def score(self, segments: Sequence[np.ndarray], answered: Sequence[int]) -> np.ndarray:
        """Standardised rewards [n] of whole dialogues as token ids, of which the last `answered` are the answer."""
        return (score_segments(self.model, segments, answered) - self.mean) / self.deviation


def open_reward(ref: str, root: Root | None = None, **options: Any) -> RewardJudge:
    """The judge of `reward:<hash>`."""
    if root is None:
        raise NotFound(f"{ref!r} needs a root to be found in", todo="Give --root")
    return RewardJudge(root.find(ref).verified().path, name=ref[:19], **options)


class BestOf:
    """A generator that answers n times and keeps what a judge likes best: the plainest use of a reward."""

    def __init__(self, generator: Generator, judge: Judge, n: int = 4) -> None:
        self.generator, self.judge, self.n = generator, judge, n
        self.name = f"{generator.name} best of {n}"

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """The best of n answers, `sampling.n` times; a greedy request is sampled at temperature 1."""
        warm = sampling.temperature or 1.0
        many = sampling.model_copy(update={"n": self.n * sampling.n, "temperature": warm})
        answers = self.generator.generate(prompts, many)
        asked = [
            prompt.model_copy(update={"messages": (*prompt.messages, answer.message)})
            for prompt, found in zip(prompts, answers, strict=True)
            for answer in found
        ]
        liked = iter([value(verdict) for verdict in self.judge.judge(asked)])
        best: list[list[Response]] = []
        for found in answers:
            scored = [(next(liked), answer) for answer in found]
            starts = range(0, len(scored) + 1, self.n)
            groups = [scored[start:stop] for start, stop in pairwise(starts)]
            best.append(
                [max(group, key=lambda each: float("-inf") if each[0] is None else each[0])[1] for group in groups]
            )
        return best

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """The underlying generator's: choosing changes no likelihood."""
        return self.generator.loglikelihood(prompts, choices)

    def rolling(self, prompts: Sequence[Example], stride: int = 0) -> list[Scored]:
        """The underlying generator's."""
        return weigh_texts(self.generator, prompts, stride)

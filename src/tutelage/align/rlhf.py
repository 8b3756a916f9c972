"""Stage `rlhf`: reinforcement from people's judgements, by PPO (with a critic) or GRPO (against the group's mean).

Actor, reference, reward model and critic are named so everywhere. The divergence from the reference is part of the
reward in PPO and a term of the loss in GRPO; its weight follows a target. What a hacked reward looks like (divergence,
length, entropy, answers without end) is watched and stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tutelage.align.advantage import KLControl
from tutelage.align.rollout import (
    ActorCritic,
    Answer,
    Rollouts,
    Scorer,
    Settings,
    alarms,
    random_scores,
    read_prompts,
)
from tutelage.core import refs
from tutelage.core.errors import ConfigError, DataError, NotFound
from tutelage.core.price import Cost, Learned, Machine, Size
from tutelage.core.records import Example, read_jsonl
from tutelage.core.stage import Context, Input, Inputs, Watch, stage
from tutelage.judge.judge import Judge, value
from tutelage.judge.reward import RewardJudge
from tutelage.model.checkpoint import load_decoder, load_reward, save
from tutelage.model.heads import ValueModel
from tutelage.tokens.tokenizer import load
from tutelage.train.calibrate import training_cost, watching
from tutelage.train.loop import Flips, fit, flips_of, higher_of, keep_logs, values_of
from tutelage.train.objectives import PolicyGradient
from tutelage.train.training import Training, settled


class Rlhf(Training):
    """How the actor is reinforced."""

    method: Literal["ppo", "grpo"] = "ppo"
    """PPO with a critic, or GRPO against the mean of a group of answers."""
    judge: str = ""
    """A judge to take the reward from instead of the reward model: a reference such as `rules:exact`, or `random`,
    the control that must fail."""
    judge_score: str = ""
    """Which of that judge's scores is the reward; empty when it has only one."""
    iterations: int = Field(default=10, ge=1)
    """Times that answers are sampled."""
    prompts: int = Field(default=256, ge=1)
    """Prompts per iteration. Few make a gradient that is mostly chance, and the optimizer takes full steps along it."""
    group: int = Field(default=1, ge=1)
    """Answers per prompt; GRPO needs at least 2."""
    epochs: int = Field(default=2, ge=1)
    """Passes over an iteration's answers."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    max_tokens: int = Field(default=24, ge=1)
    """Longest answer."""
    temperature: float = Field(default=1.0, gt=0)
    """At which answers are sampled."""
    unfinished: float = Field(default=1.0, ge=0)
    """Taken off the reward of an answer that does not come to its end."""
    kl: float = Field(default=0.05, ge=0)
    """Weight of the divergence from the reference, at the start."""
    kl_target: float = Field(default=0.05, ge=0)
    """Divergence to stay near, in nats per token; 0 keeps the weight fixed."""
    entropy: float = Field(default=0.0, ge=0)
    """Bonus for undecided answers."""
    clip_low: float = Field(default=0.2, gt=0)
    """How far a token's probability ratio may fall before its gradient stops."""
    clip_high: float = Field(default=0.2, gt=0)
    """How far it may rise."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (PPO)."""
    scale: bool = True
    """Divide by a group's deviation (GRPO)."""
    families: tuple[str, ...] = ()
    """Take prompts of these families of dialogues only; empty for all."""
    matrix_rate: float = Field(default=0.0015, gt=0)
    """Learning rate of the matrices inside the layers (Muon)."""
    embedding_rate: float = Field(default=0.0003, gt=0)
    """Learning rate of embeddings and heads (AdamW)."""
    scalar_rate: float = Field(default=0.0003, gt=0)
    """Learning rate of norms and biases (AdamW)."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """How the learning rate moves."""
    decay: float = Field(default=0.3, ge=0, le=1)
    """Share of the run in which it falls (`wsd`)."""


def rlhf_cost(config: Rlhf, inputs: Mapping[str, Mapping[str, float]], machine: Machine) -> Cost:
    """Sampling; forward passes of reference, reward and (PPO) critic; updates of actor and critic."""
    size, corpus = Size.of(inputs.get("model", {})), inputs.get("corpus", {})
    prompt, said = corpus.get("prompt_tokens", 40.0), min(config.max_tokens, corpus.get("answer_tokens", 16.0))
    number = float(config.iterations * config.prompts * config.group)
    tokens, learned = number * (prompt + said), [config.learned(size)]
    if config.method == "ppo":
        learned.append(Learned.whole(size))  # the critic
    flops = size.spoken(prompt + said)
    sampling = machine.answer(size.flops, number, prompt / config.group, said, config.iterations, drawn=True)
    steps = config.iterations * config.epochs * config.minibatches
    return training_cost(
        size,
        flops,
        tokens * config.epochs,
        steps,
        machine,
        memory=size.taught(config.micro, prompt + said, frozen=1.0 if config.lora else 2.0, learned=learned)
        + size.answering(prompt + config.max_tokens),
        read=tokens * (1 + len(learned)) * flops,
        beside=sampling + watching(inputs, steps, size, machine) + 6e-5 * corpus.get("dialogues", 9e3),
        learned=learned,
    )


@stage(
    makes="model",
    version=2,
    config=Rlhf,
    inputs={
        "model": Input(kind="model", default="finetune", help="actor and reference start from it"),
        "reward": Input(kind="reward", default="reward", optional=True),
        "corpus": Input(kind="corpus", default="prepare", help="its training dialogues give the prompts"),
    },
    cost=rlhf_cost,
)
def rlhf(config: Rlhf, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
    """Reinforce what people prefer; writes Hugging Face files and `metrics.jsonl`."""
    device = config.prepare()
    if config.method == "grpo" and config.group < 2:
        raise DataError("GRPO compares answers to one prompt: it needs a group of at least 2", key="rlhf.group")
    tokenizer = load(inputs.model.path)
    base = load_decoder(inputs.model.path).to(device)
    actor = config.learner(base)
    if not any(parameter.requires_grad for parameter in actor.parameters()):
        raise ConfigError("every weight of the actor is frozen: nothing is left to reinforce", key="rlhf.freeze")
    reference = base.requires_grad_(False).eval() if config.lora else base.clone()  # the frozen weights, or a copy
    critic = None
    if config.method == "ppo":
        # the critic starts as the reward model, which knows the world it has to foretell, with a head that says nothing
        trunk = load_reward(inputs.reward.path).decoder if inputs.reward else base.clone().requires_grad_(True)
        critic = ValueModel(trunk.to(device))
    model = ActorCritic(actor, critic)
    dialogues = [
        example
        for example in read_jsonl(inputs.corpus.file("dialogues.jsonl"), Example)
        if example.tags.get("split", "train") == "train"
        and (not config.families or example.tags.get("family") in config.families)
    ]
    if not dialogues:
        raise DataError("the corpus has no dialogue to take prompts from", file=inputs.corpus.path, key="rlhf.families")
    prompts, dropped = read_prompts(dialogues, tokenizer, actor.config.max_position_embeddings - config.max_tokens)
    rollouts = Rollouts(
        model=model,
        reference=reference,
        prompts=prompts,
        tokenizer=tokenizer,
        score=_scorer(config, inputs, context),
        control=KLControl(config.kl, config.kl_target),
        settings=Settings(
            method=config.method,
            prompts=config.prompts,
            group=config.group,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            epochs=config.epochs,
            minibatches=config.minibatches,
            micro=config.micro,
            seed=config.seed,
            trace=config.trace,
            scale=config.scale,
            unfinished=config.unfinished,
        ),
    )
    weights = {"policy": 1.0, "entropy": -config.entropy}
    weights |= {"value": 0.5} if critic is not None else {"divergence": 1.0}
    objective = PolicyGradient(weights, clip=(config.clip_low, config.clip_high), temperature=config.temperature)
    total = config.iterations * rollouts.steps_per_iteration
    watch = ActorWatch(context.watch(tokenizer)) if context.watch else None
    run = config.run(context, total)
    fitted = fit(model, rollouts, objective, config.optimizer(model, total), run=run, watch=watch)
    save(settled(actor, out, inputs.model.ref), out, inputs.model.path)
    keep_logs(context.work, out)
    history = rollouts.history
    share = max(1, len(history) // 5)
    figures = {name: [each[name] for each in history] for name in history[0]}
    warned = alarms(history, config.kl_target)
    for name, alarm in warned.items():
        if alarm["raised"]:
            context.say.note(f"alarm: {name} went from {alarm['first']:.3g} to {alarm['last']:.3g}")
    return {
        "method": config.method,
        "reward_from": config.judge or inputs.reward.ref,
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        **fitted.best,
        "answers": len(history) * config.prompts * config.group,
        "prompts": len(prompts),
        "prompts_too_long": dropped,
        "reward_first": float(np.mean(figures["reward"][:share])),
        "reward_last": float(np.mean(figures["reward"][-share:])),
        "kl_last": float(np.mean(figures["kl"][-share:])),
        "beta_last": rollouts.control.beta,
        "silent_groups": int(sum(figures["silent_groups"])),
        "logprob_gap": max(figures["logprob_gap"]),
        "alarms": warned,
    }


class ActorWatch:
    """A watch of language models, shown the actor alone."""

    def __init__(self, inner: Watch) -> None:
        self.inner, self.every = inner, inner.every

    def __call__(self, model: Any, step: int) -> Mapping[str, Any]:
        return self.inner(model.actor, step)

    def values(self, name: str) -> Mapping[str, tuple[float, str]]:
        return values_of(self.inner, name)

    def higher(self, name: str) -> bool | None:
        return higher_of(self.inner, name)

    def flips(self, before: Mapping[str, float]) -> Flips:
        return flips_of(self.inner, before)


def _scorer(config: Rlhf, inputs: Inputs, context: Context) -> Scorer:
    """Where the reward comes from: the reward model, a judge by reference, or chance."""
    if config.judge in ("random", "random:"):
        return random_scores(config.seed)
    if config.judge:
        return _judged(refs.open(config.judge, context.root), config.judge_score or None)
    if inputs.reward is None:
        raise NotFound("an input is missing", key="rlhf.reward", todo="Name a reward, or a `judge`")
    judge = RewardJudge(inputs.reward.path)
    return lambda answers: judge.score([answer.ids for answer in answers], [len(answer.tokens) for answer in answers])


def _judged(judge: Judge, key: str | None) -> Scorer:
    def score(answers: Sequence[Answer]) -> np.ndarray:
        found = [value(verdict, key) for verdict in judge.judge([answer.example for answer in answers])]
        missing = sum(each is None for each in found)
        if missing == len(found):
            raise DataError(f"{judge.name} has no opinion on any answer", key="rlhf.judge_score")
        known = float(np.mean([each for each in found if each is not None]))
        return np.array([known if each is None else each for each in found])  # no opinion: neither good nor bad

    return score

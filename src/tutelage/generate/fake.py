"""A generator with a script: tests, docs and demonstrations need no model, no network and no key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from tutelage.core.artifact import Root
from tutelage.core.errors import NotFound
from tutelage.core.records import Example, Finish, Message, Response
from tutelage.generate.generator import Sampling, Scored, check_choices, seed_of

Answers = str | Sequence[str] | Mapping[str, str] | Callable[[Example, int], str]
REFUSAL = "I am sorry, I cannot help with that."


class FakeGenerator:
    """Answers by script, and remembers what it was asked in `asked`; implements Generator.

    `answers` is one text; several, taken in turn by sample number; a table from the last message's text (its entry ""
    answers the rest); or a function of the example and the sample number. `likelihood(example, choice)` weighs
    choices; without it a choice has one fixed number drawn from its own text, so that no choice is right by design.

    >>> FakeGenerator("yes").generate([Example.ask("Is it raining?")], Sampling())[0][0].message.content
    'yes'
    """

    def __init__(
        self,
        answers: Answers = "",
        *,
        name: str = "fake",
        likelihood: Callable[[Example, str], float] | None = None,
    ) -> None:
        self.name, self._answers, self._likelihood = name, answers, likelihood
        self.asked: list[Example] = []

    def generate(self, prompts: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """Scripted responses; a token is a word, and `max_tokens` and `stop` hold as for a model."""
        self.asked += prompts
        return [[self._response(prompt, sample, sampling) for sample in range(sampling.n)] for prompt in prompts]

    def loglikelihood(self, prompts: Sequence[Example], choices: Sequence[Sequence[str]]) -> list[list[Scored]]:
        """Scripted log-probabilities."""
        check_choices(prompts, choices)
        self.asked += prompts
        return [
            [
                Scored(
                    logprob=self._weigh(prompt, choice),
                    tokens=len(choice.split()),
                    characters=len(choice),
                    greedy=None,
                )
                for choice in each
            ]
            for prompt, each in zip(prompts, choices, strict=True)
        ]

    def _response(self, prompt: Example, sample: int, sampling: Sampling) -> Response:
        text = self._answer(prompt, sample)
        places = [place for place in (text.find(stop) for stop in sampling.stop) if place >= 0]
        text = text[: min(places)] if places else text
        words = text.split(" ")
        finish: Finish = "length" if len(words) > sampling.max_tokens else "stop"
        last = prompt.messages[-1].content if prompt.messages else ""
        return Response(
            message=Message(role="assistant", content=" ".join(words[: sampling.max_tokens])),
            finish=finish,
            usage={
                "prompt_tokens": sum(len(message.content.split()) for message in prompt.messages),
                "completion_tokens": min(len(words), sampling.max_tokens),
            },
            generator=self.name,
            seed=seed_of(sampling.seed, last, sample),
        )

    def _answer(self, prompt: Example, sample: int) -> str:
        answers = self._answers
        if isinstance(answers, str):
            return answers
        if callable(answers):
            return answers(prompt, sample)
        if isinstance(answers, Mapping):
            asked = prompt.messages[-1].content
            if asked not in answers and "" not in answers:
                raise NotFound(
                    f"the fake generator has no answer to {asked[:60]!r}", todo='Add an entry "" for the rest'
                )
            return answers.get(asked, answers.get("", ""))
        return answers[sample % len(answers)]

    def _weigh(self, prompt: Example, choice: str) -> float:
        if self._likelihood is not None:
            return self._likelihood(prompt, choice)
        drawn = int.from_bytes(hashlib.sha256(choice.encode()).digest()[:4], "big") / 2**32
        return -len(choice) * (0.5 + drawn)


def open_fake(ref: str, root: Root | None = None) -> FakeGenerator:
    """Open `fake:echo` (repeats the last message), `fake:refuse`, or `fake:say <text>`."""
    what, _, rest = ref.removeprefix("fake:").partition(" ")
    if what == "echo":
        return FakeGenerator(lambda example, sample: example.messages[-1].content, name=ref)
    if what == "refuse":
        return FakeGenerator(REFUSAL, name=ref)
    if what == "say":
        return FakeGenerator(rest, name=ref)
    raise NotFound(f"no fake generator {ref!r}", todo="There are fake:echo, fake:refuse and fake:say <text>")

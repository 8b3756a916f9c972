"""A model as a generator: answers that are its own, likelihoods equal to the plain forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.core import refs
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Example, Message
from tutelage.generate.generator import Generator, Sampling
from tutelage.generate.local import LocalGenerator, open_model
from tutelage.model import checkpoint
from tutelage.model.transformer import Decoder, DecoderConfig
from tutelage.tokens.chat import render
from tutelage.tokens.tokenizer import Tokenizer, learn

TEXT = "the cat sat on the mat and the dog ran to the park with a ball. is it true or false? yes, no, maybe. "
CONTEXT = 64


def text(content: str) -> Example:
    return Example(messages=(Message(role="text", content=content),))


ASKED: list[tuple[Example, list[str]]] = [
    (Example.ask("the cat sat"), ["yes", "no", "maybe"]),
    (Example.ask("is it true?"), ["yes", " the park with a ball"]),
    (text("the dog ran "), ["to the park", "a"]),
    (text("the"), [" mat", " cat sat", "m"]),
    (Example.ask("yes"), ["no"]),
]
PROMPTS, CHOICES = [prompt for prompt, _ in ASKED], [choices for _, choices in ASKED]


@pytest.fixture(scope="module")
def generator() -> LocalGenerator:
    tokenizer = learn([TEXT * 5], 320, 2)
    config = DecoderConfig(tokenizer.size, 32, 48, 2, 4, 2, max_position_embeddings=CONTEXT)
    decoder = Decoder(config, seed=1).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter *= 2
    return LocalGenerator(decoder, tokenizer, name="small", max_batch=6)


def test_it_is_a_generator(generator: LocalGenerator) -> None:
    assert isinstance(generator, Generator)


def test_answers_depend_on_prompt_and_seed_only(generator: LocalGenerator) -> None:
    sampling = Sampling(max_tokens=10, n=3, seed=5)
    together = generator.generate(PROMPTS, sampling)
    assert [len(each) for each in together] == [3] * len(PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        alone = generator.generate([prompt], sampling)[0]
        assert [each.tokens for each in alone] == [each.tokens for each in together[place]]
        assert len({each.tokens for each in alone}) == 3
    found = together[0][0]
    assert found.usage == {"prompt_tokens": len(generator.ids_of(PROMPTS[0])), "completion_tokens": len(found.tokens)}
    assert len(found.logprobs) == len(found.tokens)
    ended = found.finish == "stop"
    assert found.message.content == generator.tokenizer.decode(found.tokens[:-1] if ended else found.tokens)


def test_a_stop_string_is_cut_off(generator: LocalGenerator) -> None:
    free = generator.generate(PROMPTS[:1], Sampling(max_tokens=12, temperature=0))[0][0]
    stop = free.message.content[5:8]
    cut = generator.generate(PROMPTS[:1], Sampling(max_tokens=12, temperature=0, stop=(stop,)))[0][0]
    assert cut.message.content == free.message.content[: free.message.content.index(stop)]
    assert cut.finish == "stop"


def test_a_prompt_without_room_is_an_error_of_its_own(generator: LocalGenerator) -> None:
    long = Example.ask("the cat " * 80)
    first, second = generator.generate([long, PROMPTS[0]], Sampling(max_tokens=4))
    assert (first[0].finish, first[0].message.content) == ("error", "")
    assert second[0].finish in ("stop", "length")
    assert generator.generate([], Sampling()) == []


def slowly(generator: LocalGenerator, prompt: Example, choice: str) -> tuple[float, int, bool]:
    tokenizer = generator.tokenizer
    if prompt.messages[0].role == "text":
        before = prompt.messages[0].content
        read = len(render(text(before.rstrip(" ")).messages, tokenizer))
        ids = render(text(before + choice).messages, tokenizer)
        read = min(read, len(ids) - 1)
    else:
        head = render(prompt.messages, tokenizer)
        ids, read = [*head, *tokenizer.encode(choice), tokenizer.end], len(head)
    logs = torch.log_softmax(generator.decoder.logits(generator.decoder(torch.tensor([ids])))[0], -1)
    places = range(read, len(ids))
    greedy = all(int(logs[place - 1].argmax()) == ids[place] for place in places)
    return sum(float(logs[place - 1, ids[place]]) for place in places), len(places), greedy


def test_likelihoods_equal_the_plain_forward(generator: LocalGenerator) -> None:
    found = generator.loglikelihood(PROMPTS, CHOICES)
    for prompt, choices, scores in zip(PROMPTS, CHOICES, found, strict=True):
        for choice, score in zip(choices, scores, strict=True):
            logprob, count, greedy = slowly(generator, prompt, choice)
            assert score.logprob == pytest.approx(logprob, abs=1e-4)
            assert (score.tokens, score.greedy, score.characters) == (count, greedy, len(choice))


def test_the_likeliest_continuation_is_greedy(generator: LocalGenerator) -> None:
    ids = render(text("the cat").messages, generator.tokenizer)
    best = int(generator.decoder.logits(generator.decoder(torch.tensor([ids])))[0, -1].argmax())
    word = generator.tokenizer.decode([best])
    if generator.tokenizer.encode(word) == [best]:
        assert generator.loglikelihood([text("the cat")], [[word]])[0][0].greedy


def test_a_choice_that_another_begins_with_may_be_the_less_likely(generator: LocalGenerator) -> None:
    """Without its end an answer is never less likely than what continues it; with it, the model decides."""
    verbatim = generator.loglikelihood([text("the")], [[" cat", " cat sat"]])[0]
    assert verbatim[0].logprob > verbatim[1].logprob
    chat = Example.ask("the cat sat")
    encode = generator.tokenizer.encode
    head = generator.ids_of(chat)
    tail = torch.tensor([head + encode("a b")])
    logs = torch.log_softmax(generator.decoder.logits(generator.decoder(tail))[0], -1)
    short, long = generator.loglikelihood([chat], [["a", "a b"]])[0]
    shared = len(head) + len(encode("a")) - 1
    rest = encode("a b")[len(encode("a")) :]
    goes_on = sum(float(logs[shared + place, token]) for place, token in enumerate(rest))
    goes_on += float(logs[-1, generator.tokenizer.end])
    ends = float(logs[shared, generator.tokenizer.end])
    assert encode("a b")[: len(encode("a"))] == encode("a")
    assert short.logprob - long.logprob == pytest.approx(ends - goes_on, abs=1e-4)
    assert (short.tokens, long.tokens) == (len(encode("a")) + 1, len(encode("a b")) + 1)


def test_a_choice_that_is_too_long_is_never_cut_in_silence(generator: LocalGenerator) -> None:
    long = Example.ask("the cat sat on the mat. " * 20)
    found = generator.loglikelihood([long, PROMPTS[0]], [["yes", "no"], ["a ball with the park", "the cat " * 80]])
    assert [bool(each.error) for choices in found for each in choices] == [True, True, False, True]
    assert all(each.logprob == float("-inf") for each in found[0])
    assert f"the model's context is {CONTEXT}" in found[0][0].error
    alone = generator.loglikelihood([PROMPTS[0]], [["a ball with the park"]])[0][0]
    assert found[1][0].logprob == pytest.approx(alone.logprob, abs=1e-4), "its neighbours are no matter"


def test_with_cut_what_is_too_long_loses_its_beginning(generator: LocalGenerator) -> None:
    cutting = LocalGenerator(generator.decoder, generator.tokenizer, cut=True)
    long = Example.ask("the cat sat on the mat. " * 20)
    score = cutting.loglikelihood([long, PROMPTS[0]], [["yes", "no"], ["a ball with the park"]])[0][0]
    said = [*generator.tokenizer.encode("yes"), generator.tokenizer.end]
    ids = (generator.ids_of(long) + said)[-CONTEXT - 1 :]
    logs = torch.log_softmax(generator.decoder.logits(generator.decoder(torch.tensor([ids[:-1]])))[0], -1)
    expected = sum(float(logs[place - 1, ids[place]]) for place in range(len(ids) - len(said), len(ids)))
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UsageError, match="longer than the context"):
        cutting.loglikelihood([PROMPTS[0]], [["the cat " * 80]])


@pytest.mark.parametrize("stride", [0, 7, CONTEXT])
def test_running_text_is_weighed_token_by_token_in_windows(generator: LocalGenerator, stride: int) -> None:
    """Every token once, each in the window that the stride gives it; the texts' order and company are no matter."""
    texts = ["the cat sat on the mat. " * 9, "a dog", "the ball rolls in the park and the dog runs. " * 5]
    found = generator.rolling([text(each) for each in texts], stride)
    for given, score in zip(texts, found, strict=True):
        ids, step = render(text(given).messages, generator.tokenizer), stride or CONTEXT
        expected, done = 0.0, 0
        while done < len(ids) - 1:
            end = min(len(ids) - 1, done + (step if done else CONTEXT))
            begin = max(0, end - CONTEXT)
            window = torch.tensor([ids[begin:end]])
            logs = torch.log_softmax(generator.decoder.logits(generator.decoder(window))[0], -1)
            expected += sum(float(logs[place - begin, ids[place + 1]]) for place in range(done, end))
            done = end
        assert score.logprob == pytest.approx(expected, abs=1e-3)
        assert (score.tokens, score.characters) == (len(ids) - 1, len(given))
    with pytest.raises(UsageError, match="stride"):
        generator.rolling([text("a")], CONTEXT + 1)


def test_what_leaves_no_room_is_not_answered_and_says_why(generator: LocalGenerator) -> None:
    long = Example.ask("the cat sat on the mat. " * 20)
    found, other = (each[0] for each in generator.generate([long, PROMPTS[0]], Sampling(max_tokens=4)))
    count = len(generator.ids_of(long))
    assert found.finish == "error" and found.error == f"the conversation has {count} tokens, the model's context is 64"
    assert other.finish != "error" and not other.error


def test_choices_are_checked(generator: LocalGenerator) -> None:
    with pytest.raises(UsageError, match="as many lists"):
        generator.loglikelihood(PROMPTS, CHOICES[:1])
    with pytest.raises(UsageError, match="prompt 0 has an empty choice"):
        generator.loglikelihood(PROMPTS[:1], [[""]])


def test_a_folder_is_opened_by_reference(generator: LocalGenerator, tmp_path: Path) -> None:
    generator.tokenizer.save(tmp_path / "tokenizer")
    checkpoint.save(generator.decoder, tmp_path / "model", tokenizer=tmp_path / "tokenizer")
    again = refs.open(str(tmp_path / "model"))
    assert isinstance(again, LocalGenerator)
    assert again.eos == frozenset(generator.tokenizer.stops)
    sampling = Sampling(max_tokens=5, seed=2)
    ours, theirs = (each.generate(PROMPTS[:2], sampling) for each in (generator, again))
    assert [[each.tokens for each in row] for row in ours] == [[each.tokens for each in row] for row in theirs]
    with pytest.raises(UsageError, match="needs a root"):
        open_model("model:1234")


def test_a_tokenizer_of_another_model_is_refused(tokenizer_size: int = 300) -> None:
    tokenizer: Tokenizer = learn([TEXT], tokenizer_size, 2)
    decoder = Decoder(DecoderConfig(tokenizer.size - 1, 16, 16, 1, 1, 1))
    with pytest.raises(ConfigError, match="the model only"):
        LocalGenerator(decoder, tokenizer, name="x")

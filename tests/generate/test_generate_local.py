"""A model as a generator: answers that are its own, likelihoods equal to the plain forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.core import refs
from tutelage.core.errors import ConfigError, UsageError
from tutelage.core.records import Example, Message
from tutelage.generate.generator import Generator, Sampling
from tutelage.generate.local import LocalGenerator, open_model, windows
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


def test_what_is_too_long_says_so_or_loses_its_beginning(generator: LocalGenerator) -> None:
    long = Example.ask("the cat sat on the mat. " * 20)
    asked = [long, PROMPTS[0]], [["yes", "no"], ["a ball with the park"]]
    refused, other = generator.loglikelihood(*asked)
    count = len(generator.ids_of(long)) + len(generator.tokenizer.encode("yes")) + 1
    assert refused[0].error == f"the conversation has {count} tokens, the model's context is 64"
    assert refused[0].logprob == float("-inf") and refused[0].greedy is None and not other[0].error
    cutting = LocalGenerator(generator.decoder, generator.tokenizer, cut=True)
    score, kept = cutting.loglikelihood(*asked)[0][0], cutting.loglikelihood(*asked)[1][0]
    said = [*generator.tokenizer.encode("yes"), generator.tokenizer.end]
    ids = (generator.ids_of(long) + said)[-CONTEXT - 1 :]
    logs = torch.log_softmax(generator.decoder.logits(generator.decoder(torch.tensor([ids[:-1]])))[0], -1)
    expected = sum(float(logs[place - 1, ids[place]]) for place in range(len(ids) - len(said), len(ids)))
    assert score.logprob == pytest.approx(expected, abs=1e-4)
    assert kept.logprob == pytest.approx(other[0].logprob, abs=1e-5)
    with pytest.raises(UsageError, match="longer than the context"):
        cutting.loglikelihood([PROMPTS[0]], [["the cat " * 80]])


def test_whole_texts_are_weighed_in_windows(generator: LocalGenerator) -> None:
    content = "the cat sat on the mat and the dog ran. " * 8
    ids = render(text(content).messages, generator.tokenizer)

    def expected(pieces: list[tuple[int, int, int]]) -> float:
        total = 0.0
        for begin, skip, end in pieces:
            logs = torch.log_softmax(generator.decoder.logits(generator.decoder(torch.tensor([ids[begin:end]])))[0], -1)
            total += sum(float(logs[place - 1 - begin, ids[place]]) for place in range(begin + skip + 1, end + 1))
        return total

    assert len(ids) > CONTEXT + 20
    for stride in (0, 16):
        cut = windows(len(ids) - 1, CONTEXT, stride or CONTEXT)
        weighed = [place for begin, skip, end in cut for place in range(begin + skip + 1, end + 1)]
        assert weighed == list(range(1, len(ids))), "each token once"
        found = generator.rolling([text(content), text("a")], stride)
        assert found[0].logprob == pytest.approx(expected(cut), abs=1e-3) and found[0].tokens == len(ids) - 1
        assert found[1].logprob == pytest.approx(generator.rolling([text("a")], stride)[0].logprob, abs=1e-5)
    with pytest.raises(UsageError, match="a stride is at most"):
        generator.rolling([text("a")], CONTEXT + 1)


def test_its_identity_is_that_of_what_answers(generator: LocalGenerator) -> None:
    twin = LocalGenerator(generator.decoder.clone(), generator.tokenizer, name="another name")
    assert twin.identity == generator.identity
    assert LocalGenerator(twin.decoder, twin.tokenizer, eos=[1]).identity != twin.identity
    twin.decoder.embed_tokens.weight[0, 0] += 1
    changed = twin.identity
    assert changed != generator.identity
    twin.decoder.embed_tokens.weight[0, 0] -= 1
    assert twin.identity != changed
    template = Tokenizer(generator.tokenizer._marked, generator.tokenizer.config | {"chat_template": "{{ messages }}"})
    assert LocalGenerator(generator.decoder, template).identity != generator.identity
    learning = LocalGenerator(Decoder(generator.decoder.config, seed=1), generator.tokenizer)
    before = learning.identity
    learning.decoder.embed_tokens.weight.data[0, 0] += 1  # as an optimizer moves it: unmarked
    assert learning.identity != before


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

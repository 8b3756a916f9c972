"""The scripted generator, and that the light half of the room needs no torch."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

from tutelage.core import refs
from tutelage.core.errors import NotFound
from tutelage.core.records import Example
from tutelage.generate import fake
from tutelage.generate.fake import FakeGenerator
from tutelage.generate.generator import Generator, Sampling, seed_of, split_spaces

ASK = [Example.ask("one"), Example.ask("two")]


def said(generator: Generator, **sampling: object) -> list[list[str]]:
    found = generator.generate(ASK, Sampling(**sampling))  # type: ignore[arg-type]
    return [[each.message.content for each in row] for row in found]


def test_scripts() -> None:
    assert said(FakeGenerator("x")) == [["x"], ["x"]]
    assert said(FakeGenerator(["a", "b"]), n=3) == [["a", "b", "a"]] * 2
    assert said(FakeGenerator({"one": "1", "": "?"})) == [["1"], ["?"]]
    assert said(FakeGenerator(lambda example, sample: f"{example.messages[-1].content}{sample}"), n=2) == [
        ["one0", "one1"],
        ["two0", "two1"],
    ]
    assert said(FakeGenerator("a b c"), max_tokens=2) == [["a b"]] * 2
    assert said(FakeGenerator("a b c"), stop=("b",)) == [["a "]] * 2
    with pytest.raises(NotFound, match="no answer to 'two'"):
        said(FakeGenerator({"one": "1"}))


def test_it_remembers_and_weighs() -> None:
    generator = FakeGenerator()
    assert isinstance(generator, Generator)
    one, two = generator.loglikelihood(ASK, [["yes", "no"], ["yes"]])
    assert one[0] == two[0] and one[0].logprob != one[1].logprob
    assert generator.asked == ASK
    sure = FakeGenerator(likelihood=lambda example, choice: float(choice == example.target))
    assert [each.logprob for each in sure.loglikelihood([Example.ask("q", target="b")], [["a", "b"]])[0]] == [0, 1]


def test_references() -> None:
    assert said(refs.open("fake:echo")) == [["one"], ["two"]]
    assert said(refs.open("fake:say good day")) == [["good day"]] * 2
    assert "cannot" in said(refs.open("fake:refuse"))[0][0]
    with pytest.raises(NotFound, match="fake:echo"):
        refs.open("fake:nonsense")


def test_seeds_and_spaces() -> None:
    seeds = {seed_of(seed, prompt, sample) for seed in (0, 1) for prompt in ("a", (1, 2), (12,)) for sample in (0, 1)}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert split_spaces("a  ", "b") == ("a", "  b")
    assert split_spaces("a", " b") == ("a", " b")


def test_docstrings() -> None:
    assert doctest.testmod(fake, extraglobs={"Example": Example, "Sampling": Sampling}).failed == 0


def test_the_light_half_imports_no_torch() -> None:
    code = "import sys, tutelage.generate.fake, tutelage.generate.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

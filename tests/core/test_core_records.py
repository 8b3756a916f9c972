"""Records and configuration: equal values give equal bytes; a mistake is named with its place."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tutelage.core.config import Config, build, load_yaml, merge, parse_overrides
from tutelage.core.errors import ConfigError, DataError, NotFound, TutelageError
from tutelage.core.records import Example, Message, Ranking, Score, canonical, digest, read_jsonl, write_jsonl

plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), plain_json, max_size=6))
def test_the_digest_ignores_the_order_of_keys(value: dict) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_undefined_numbers_have_no_canonical_form() -> None:
    with pytest.raises(ValueError):
        canonical({"x": float("nan")})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_records_survive_a_file(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [Example.ask(question, target=answer, split="train") for question, answer in pairs]
    assert write_jsonl(path, rows) == len(rows)
    assert list(read_jsonl(path, Example)) == rows


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n\n{"messages": [{"role": "user", "contents": "hi"}]}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3, key 'messages\.0\.contents': extra inputs"):
        list(read_jsonl(path, Example))
    with pytest.raises(NotFound, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl", Example))


def test_records_are_frozen_and_checked() -> None:
    message = Message(role="user", content="hello")
    with pytest.raises(ValidationError):
        message.content = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="one place only"):
        Ranking(task="t", person="p", tiers=((0, 1), (1,)))
    with pytest.raises(ValidationError, match="outside the scale"):
        Score(task="t", person="p", candidate=0, criterion="helpful", value=6, scale=(1, 5))


class Inner(Config):
    rate: float = 0.1
    """A rate."""


class Outer(Config):
    depth: int = 4
    """Layers."""
    optimizer: Inner = Inner()
    """How it learns."""
    kind: Literal["small", "large"] = "small"
    """How much of it."""
    mixture: dict[str, Inner] = {}  # noqa: RUF012 - pydantic copies defaults
    """One per source."""


def test_overrides_reach_deep_and_stay_typed() -> None:
    over = parse_overrides(["pretrain.depth=6", "pretrain.optimizer.rate=1e-3", "budget=10m"])
    assert over["budget"] == "10m"
    found = build(Outer, merge({"depth": 2, "optimizer": {"rate": 1}}, over["pretrain"]))
    assert found.depth == 6 and found.optimizer.rate == 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dept": 3}, r"key 'pretrain\.dept': unknown key\. Did you mean 'depth'"),
        ({"optimizer": {"rats": 3}}, r"key 'pretrain\.optimizer\.rats': unknown key\. Did you mean 'rate'"),
        ({"mixture": {"books": {"rat": 3}}}, r"unknown key\. Did you mean 'rate'"),
        ({"depth": "many"}, r"key 'pretrain\.depth': input should be a valid integer"),
        (
            {"kind": "lage"},
            r"key 'pretrain\.kind': input should be 'small' or 'large', found 'lage'; did you mean 'large'",
        ),
        ([1], r"valid dictionary"),
    ],
)
def test_a_wrong_key_or_value_is_named(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values, prefix="pretrain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"recipe\.yaml, row 2: the key 'a' stands twice"),
        ("a: [1\n", r"recipe\.yaml, row \d"),
        ("- a\n", "expected `key: value`"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_bad_yaml_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_yaml(path)


def test_an_override_must_be_one() -> None:
    for bad in ("depth", "=3", "a..b=1"):
        with pytest.raises(ConfigError, match=r"stage\.key=value"):
            parse_overrides([bad])


def test_errors_say_where_and_what_to_do() -> None:
    error = TutelageError("no", file="a.yaml", row=3, key="b", todo="Do this")
    assert str(error) == "a.yaml, row 3, key 'b': no. Do this"
    assert error.as_dict()["exit_code"] == 1


def test_the_error_tree_is_drawn() -> None:
    import tutelage.core.errors as errors

    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, TutelageError):
            assert name in drawn, f"{name} is missing in the drawing"

"""Any text survives, no text forges a special token, and the files are Hugging Face's."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.errors import ConfigError, DataError, NotFound
from tutelage.tokens.tokenizer import SPECIALS, learn, load

TEXTS = [
    "The baker lives in Mill Street and sells bread.",
    "The nurse lives in Lamp Lane and sells nothing at 12:30.",
    "Who lives in Mill Street? The baker lives there, it's true.",
    "ka velo mira sontu dar",
] * 20
TOKENIZER = learn(TEXTS, vocabulary=400)


@given(st.text(max_size=50))
def test_any_text_survives(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    stream = TOKENIZER.stream()
    assert "".join([*map(stream.push, TOKENIZER.encode(text)), stream.close()]) == text


@given(st.lists(st.sampled_from([*SPECIALS, "a", " ", "<|"]), max_size=8))
def test_no_text_forges_a_special_token(parts: list[str]):
    ids = TOKENIZER.encode("".join(parts))
    assert not set(ids) & set(range(len(SPECIALS)))


def test_specials_stand_first_and_stop():
    assert [TOKENIZER.encode_marked(text) for text in SPECIALS] == [[place] for place in range(len(SPECIALS))]
    assert (TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.pad, TOKENIZER.end) == (0, 1, 2, 7)
    assert TOKENIZER.stops == [7, 1]
    assert TOKENIZER.decode([0, *TOKENIZER.encode("bread"), 7]) == "bread"
    assert TOKENIZER.decode([7], skip_special=False) == "<|end|>"


def test_digits_stand_alone_and_batches_agree():
    assert len(TOKENIZER.encode("2024")) == 4
    assert TOKENIZER.encode_batch(TEXTS[:4]) == [TOKENIZER.encode(text) for text in TEXTS[:4]]


def test_stream_gives_whole_characters():
    stream = TOKENIZER.stream()
    given_out = [stream.push(each) for each in TOKENIZER.encode("é")]
    assert given_out[-1] == "é"
    assert not "".join(given_out[:-1])
    stream.push(TOKENIZER.encode("é")[0])
    assert stream.close() == "\ufffd"


def test_learning_repeats(tmp_path: Path):
    again = learn(TEXTS, vocabulary=400)
    for place, tokenizer in enumerate((TOKENIZER, again)):
        tokenizer.save(tmp_path / str(place))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_files_open_in_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:4], "Ünïcode  and\n\nspaces \t 42", "don't 日本"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    ours = load(tmp_path)
    assert ours.encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])
    assert ours.template == TOKENIZER.template


def test_bad_input(tmp_path: Path):
    with pytest.raises(ConfigError, match="at least 264"):
        learn(TEXTS, vocabulary=100)
    with pytest.raises(NotFound, match="no tokenizer here"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        load(tmp_path)

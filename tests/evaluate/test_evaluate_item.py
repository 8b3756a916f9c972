"""A file of one's own: little is needed, every key is checked, and every fault names file, row and key."""

import gzip
import json

import pytest

from tutelage.core.errors import DataError, NotFound
from tutelage.core.records import Example
from tutelage.evaluate.item import Item, read_items
from tutelage.evaluate.suite import asked, load
from tutelage.starter.more import items_of
from tutelage.starter.world import build

GOOD = {"id": "1", "prompt": "2 + 2?", "target": "4"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_needs_what_is_asked_and_what_is_right(tmp_path):
    file = write(
        tmp_path / "mine.v2.jsonl",
        {"prompt": "2 + 2?", "target": "4"},
        {"prompt": "Red?", "target": "yes", "choices": ["yes", "no"], "slices": {"tone": 1}, "cluster": "c"},
        {"text": "To read.", "kind": "perplexity"},
        {"messages": [{"role": "user", "content": "Hm?"}], "system": "Be short.", "target": "x", "meta": {"mine": [1]}},
    )
    (mine,) = load(file)
    assert mine.name == "mine"
    kinds = [each.tags["kind"] for each in mine.items]
    assert kinds == ["generate", "choice", "perplexity", "generate"]
    assert mine.items[2].messages[0].role == "text"
    assert [each.role for each in mine.items[3].messages] == ["system", "user"]
    assert len({each.tags["id"] for each in mine.items}) == 4


@pytest.mark.parametrize(
    ("row", "key", "says"),
    [
        ({"clutser": "x"}, "clutser", "did you mean 'cluster'"),
        ({"tags": {"clutser": "x"}}, "clutser", "did you mean 'cluster'"),
        ({"kind": "chioce"}, "kind", "did you mean 'choice'"),
        ({"target": "bleu", "choices": ["blue", "red"]}, "target", "did you mean 'blue'"),
        ({"choices": ["4", "4", "5"]}, "choices", "all different"),
        ({"choices": ["4", " "]}, "choices", "empty"),
        ({"target": None, "kind": "translate"}, "target", "needs one"),
        ({"target": "  "}, "target", "needs one"),
        ({"kind": "arithmetic", "target": "four"}, "target", "needs a number"),
        ({"kind": "instruct"}, "constraints", "at least one"),
        ({"kind": "instruct", "constraints": [{"type": "wrods"}]}, "constraints.0", "does not match"),
        ({"kind": "instruct", "constraints": [{"type": "words", "at_mots": 3}]}, "constraints.0.words.at_mots", ""),
        ({"kind": "perplexity"}, "text", "is one `text`"),
        ({"kind": "judged", "answer": "x"}, "human", "needs `answer` and `human`"),
        ({"kind": "judged", "answer": "x", "human": [0.5, 1.5]}, "human", "0 to 1"),
        ({"constraints": [{"type": "no_comma"}]}, "constraints", "belongs to items of kind instruct"),
        ({"text": "x"}, "text", "one of prompt, text and messages"),
        ({"prompt": None}, "prompt", "none of them"),
        ({"id": 7}, "id", "valid string"),
        ({"slices": ["a"]}, "slices", "dictionary"),
        ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"groups": ["a"], "target": "4", "choices": ["4", "5"]}, "groups", "2 choices need as many groups"),
        ({"id": "1"}, "id", "stands in row 1 already"),
        ({"tags": {"id": "1"}}, "tags.id", "in the row and in its tags"),
        ({"tags": [1]}, "tags", "expected an object"),
        ({"messages": [{"role": "wizard", "content": "x"}], "prompt": None}, "messages.0.role", "wizard"),
    ],
)
def test_every_fault_is_named(tmp_path, row, key, says):
    bad = {"id": "2", "prompt": "2 + 3?", "target": "5"} | row
    if row.get("choices"):
        bad["target"] = row.get("target", row["choices"][0])
    file = write(tmp_path / "mine.jsonl", GOOD, bad)
    with pytest.raises(DataError) as error:
        load(file)
    assert (error.value.file, error.value.row, error.value.key) == (file, 2, key)
    assert says.lower() in str(error.value).lower()


def test_files_that_are_none(tmp_path):
    for content, says in (
        (b"{", "not JSON"),
        (b'["a"]', "expected an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"", "no items"),
    ):
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=says) as error:
            load(tmp_path / "bad.jsonl")
        assert error.value.file is not None
    with pytest.raises(NotFound):
        load(tmp_path / "none.jsonl")
    row = {"prompt": "Q", "target": "A"}
    with pytest.raises(DataError, match="stands in row 1 already"):
        load(write(tmp_path / "twice.jsonl", row, row))


def test_a_packed_file_a_mark_at_its_head_and_any_ending(tmp_path):
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write(json.dumps(GOOD) + "\n")
    (tmp_path / "mine.txt").write_text("\ufeff" + json.dumps(GOOD) + "\n", encoding="utf-8")
    for name in ("mine.jsonl.gz", "mine.txt"):
        assert [row for row, _ in read_items(tmp_path / name)] == [1]


def test_what_the_town_asks_has_only_known_keys_and_comes_back_as_it_was(tmp_path):
    every = [item for item in [*build(0, 0.05).items(), *items_of("more")] if asked(item)]
    file = write(tmp_path / "town.jsonl", *(item.model_dump(mode="json") for item in every))
    back = [item for _, item in read_items(file)]
    assert [each.tags for each in back] == [json.loads(json.dumps(each.tags)) for each in every]
    assert [(b.messages, b.target, b.choices) for b in back] == [(e.messages, e.target, e.choices) for e in every]
    assert all(type(each) is Example for each in back)
    assert all(field.description for field in Item.model_fields.values()), "every key says what it is"

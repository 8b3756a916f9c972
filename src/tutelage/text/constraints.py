"""Constraints on an answer that a program can verify: how many words, which keywords, which case, JSON, bullets, ...

The kinds are those of IFEval (Zhou et al. 2023, arXiv 2311.07911, table 1), as data: no pattern and no code comes from
an item. Keywords are plain text and match as whole words, whatever their case, except in scripts without spaces. What
cannot be decided (the language of three words) is None, neither kept nor broken.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from tutelage.core.errors import DataError
from tutelage.core.records import Record
from tutelage.text.language import identify

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]")
"""Scripts that put no spaces between words: each character counts as a word."""
_SENTENCE = re.compile(r"[.!?…]+(?=[\"'”’»)\]]*(?:\s|$))|[。！？।؟]+")
_SHORTENED = re.compile(r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|no|jr|sr|bzw|z\.b|ca)|\b[A-Z])$", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[*+•]\s|-\s|\d+[.)]\s)", re.MULTILINE)
_MARKED = re.compile(r"(?<!\*)\*[^\n*]+\*(?!\*)|\*\*[^\n*]+\*\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<[^\n<>]*\w[^\n<>]*>>")
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_QUOTES = ('""', "“”", "«»", "„“", "「」", "''")


def words(text: str) -> list[str]:
    """The words of a text; in scripts without spaces its characters."""
    return _WORD.findall(_UNSPACED.sub(lambda found: f" {found[0]} ", text))


def sentences(text: str) -> int:
    """How many sentences a text has: ends of sentences, and what stands after the last one. Known abbreviations and
    initials end none."""
    count, begun = 0, 0
    for mark in _SENTENCE.finditer(text):
        if mark[0] == "." and _SHORTENED.search(text[begun : mark.start()]) and mark.end() < len(text.rstrip()):
            continue
        count += bool(re.search(r"\w", text[begun : mark.start()]))
        begun = mark.end()
    return count + bool(re.search(r"\w", text[begun:]))


def occurrences(word: str, text: str) -> int:
    """How often a word or phrase stands in a text, whatever its case: whole words, in unspaced scripts anywhere."""
    inner = re.escape(word.strip())
    border = not _UNSPACED.search(word)
    before = r"(?<!\w)" if border and word[:1].isalnum() else ""
    after = r"(?!\w)" if border and word[-1:].isalnum() else ""
    return len(re.findall(before + inner + after, text, re.IGNORECASE))


class Verifiable(Record):
    """One constraint. `kept` says whether a text keeps it; None where that cannot be told."""

    type: str

    @abstractmethod
    def kept(self, text: str, prompt: str) -> bool | None:
        """Whether `text`, said after `prompt`, keeps the constraint."""


class _Counted(Verifiable):
    at_least: int | None = Field(default=None, ge=0)
    """No fewer than so many."""
    at_most: int | None = Field(default=None, ge=0)
    """No more than so many."""
    exactly: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _bounded(self) -> _Counted:
        if self.at_least is None and self.at_most is None and self.exactly is None:
            raise ValueError("needs `at_least`, `at_most` or `exactly`")
        if self.exactly is not None and (self.at_least is not None or self.at_most is not None):
            raise ValueError("`exactly` stands alone, without `at_least` and `at_most`")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"`at_least` {self.at_least} is more than `at_most` {self.at_most}")
        return self

    @abstractmethod
    def count(self, text: str) -> int:
        """How many there are."""

    def kept(self, text: str, prompt: str) -> bool:
        """Whether the count lies within the bounds."""
        found = self.count(text)
        if self.exactly is not None:
            return found == self.exactly
        return (self.at_least is None or found >= self.at_least) and (self.at_most is None or found <= self.at_most)


class Words(_Counted):
    """How many words."""

    type: Literal["words"] = "words"

    def count(self, text: str) -> int:
        return len(words(text))


class Sentences(_Counted):
    """How many sentences."""

    type: Literal["sentences"] = "sentences"

    def count(self, text: str) -> int:
        return sentences(text)


class Paragraphs(_Counted):
    """How many paragraphs, parted by `between`: a blank line, or a line of three stars."""

    type: Literal["paragraphs"] = "paragraphs"
    between: Literal["blank", "stars"] = "blank"

    def count(self, text: str) -> int:
        return len(_paragraphs(text, self.between))


class Keyword(_Counted):
    """How often a word or phrase stands there; without a bound, at least once."""

    type: Literal["keyword"] = "keyword"
    word: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _once(cls, given: Any) -> Any:
        bounds = ("at_least", "at_most", "exactly")
        return {**given, "at_least": 1} if isinstance(given, dict) and not any(b in given for b in bounds) else given

    def count(self, text: str) -> int:
        return occurrences(self.word, text)


class Letter(_Counted):
    """How often a letter stands there, whatever its case."""

    type: Literal["letter"] = "letter"
    letter: str = Field(min_length=1, max_length=1)

    def count(self, text: str) -> int:
        return text.lower().count(self.letter.lower())


class Capitals(_Counted):
    """How many words are written in capitals throughout."""

    type: Literal["capital_words"] = "capital_words"

    def count(self, text: str) -> int:
        return sum(word.isupper() for word in words(text))


class Bullets(_Counted):
    """How many lines are points of a list: `* `, `- `, or numbered."""

    type: Literal["bullets"] = "bullets"

    def count(self, text: str) -> int:
        return len(_BULLET.findall(text))


class Highlights(_Counted):
    """How many stretches are *highlighted*."""

    type: Literal["highlights"] = "highlights"

    def count(self, text: str) -> int:
        return len(_MARKED.findall(text))


class Placeholders(_Counted):
    """How many places to fill in, as [address]."""

    type: Literal["placeholders"] = "placeholders"

    def count(self, text: str) -> int:
        return len(_PLACEHOLDER.findall(text))


class Sections(_Counted):
    """How many sections are headed by `word` and a number or letter: `SECTION 1`."""

    type: Literal["sections"] = "sections"
    word: str = Field("Section", min_length=1)

    def count(self, text: str) -> int:
        return len(re.findall(rf"(?<!\w){re.escape(self.word)}\s+(?:\d+|[IVXLC]+|[A-Z])\b", text, re.IGNORECASE))


class Forbidden(Verifiable):
    """None of these words."""

    type: Literal["forbidden"] = "forbidden"
    words: tuple[str, ...] = Field(min_length=1)

    def kept(self, text: str, prompt: str) -> bool:
        return not any(occurrences(word, text) for word in self.words)


class Case(Verifiable):
    """All letters small, or all capital; letters without case do not count."""

    type: Literal["case"] = "case"
    case: Literal["lower", "upper"]

    def kept(self, text: str, prompt: str) -> bool:
        return text.islower() if self.case == "lower" else text.isupper()


class InLanguage(Verifiable):
    """Written in this language (ISO 639-1)."""

    type: Literal["language"] = "language"
    language: str = Field(pattern=r"^[a-z]{2}$")

    def kept(self, text: str, prompt: str) -> bool | None:
        found = identify(text).code
        return None if found == "und" else found == self.language


class Json(Verifiable):
    """The whole answer is JSON, perhaps in a ``` fence; `keys` must stand in its object."""

    type: Literal["json"] = "json"
    keys: tuple[str, ...] = ()

    def kept(self, text: str, prompt: str) -> bool:
        fenced = _FENCE.match(text.strip())
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(found, dict) and all(key in found for key in self.keys))


class StartsWith(Verifiable):
    """Begins with this text, whatever its case."""

    type: Literal["starts_with"] = "starts_with"
    text: str = Field(min_length=1)

    def kept(self, text: str, prompt: str) -> bool:
        return _plain(text).startswith(_plain(self.text))


class EndsWith(Verifiable):
    """Ends with exactly this text, whatever its case and quotes around the whole."""

    type: Literal["ends_with"] = "ends_with"
    text: str = Field(min_length=1)

    def kept(self, text: str, prompt: str) -> bool:
        return _plain(text.strip().strip('"')).endswith(_plain(self.text))


class ParagraphStart(Verifiable):
    """The paragraph of this number (from 1) begins with this word."""

    type: Literal["paragraph_starts"] = "paragraph_starts"
    number: int = Field(ge=1)
    word: str = Field(min_length=1)
    of: int | None = Field(default=None, ge=1)
    """There must be exactly so many paragraphs."""

    def kept(self, text: str, prompt: str) -> bool:
        found = _paragraphs(text, "blank")
        if self.number > len(found) or (self.of is not None and len(found) != self.of):
            return False
        first = words(found[self.number - 1])[:1]
        return [each.lower() for each in first] == [self.word.lower()]


class Quoted(Verifiable):
    """The whole answer stands in quotation marks."""

    type: Literal["quoted"] = "quoted"

    def kept(self, text: str, prompt: str) -> bool:
        text = text.strip()
        return len(text) > 1 and any(text[0] == mark[0] and text[-1] == mark[1] for mark in _QUOTES)


class NoComma(Verifiable):
    """No comma, of any script."""

    type: Literal["no_comma"] = "no_comma"

    def kept(self, text: str, prompt: str) -> bool:
        return not re.search("[,،，、]", text)


class Title(Verifiable):
    """A title in double angular brackets: <<title>>."""

    type: Literal["title"] = "title"

    def kept(self, text: str, prompt: str) -> bool:
        return bool(_TITLE.search(text))


class Postscript(Verifiable):
    """A postscript at the end, begun by `mark`."""

    type: Literal["postscript"] = "postscript"
    mark: str = Field("P.S.", min_length=1)

    def kept(self, text: str, prompt: str) -> bool:
        loose = r"\.?\s*".join(map(re.escape, self.mark.replace(".", "").replace(" ", "")))
        return bool(re.search(rf"(?:^|\n)\s*{loose}(?!\w).*\w", text, re.IGNORECASE | re.DOTALL))


class OneOf(Verifiable):
    """The answer is one of these, and nothing else but marks around it."""

    type: Literal["one_of"] = "one_of"
    options: tuple[str, ...] = Field(min_length=2)

    def kept(self, text: str, prompt: str) -> bool:
        said = [word.lower() for word in words(text)]
        return any(said == [word.lower() for word in words(option)] for option in self.options)


class TwoAnswers(Verifiable):
    """Two different answers, parted by six stars."""

    type: Literal["two_answers"] = "two_answers"

    def kept(self, text: str, prompt: str) -> bool:
        parts = [part.strip() for part in text.split("******")]
        found = [part for part in parts if part]
        return len(found) == 2 and found[0] != found[1] and not any(not part for part in parts[1:-1])


class RepeatPrompt(Verifiable):
    """The request is repeated first, word for word (or `text` is), and then answered."""

    type: Literal["repeat_prompt"] = "repeat_prompt"
    text: str = ""
    """What is to be repeated, where it is not the whole request."""

    def kept(self, text: str, prompt: str) -> bool:
        asked, said = _plain(self.text or prompt), _plain(text)
        return said.startswith(asked) and len(said) > len(asked)


Constraint = Annotated[
    Words | Sentences | Paragraphs | Keyword | Letter | Capitals | Bullets | Highlights | Placeholders | Sections
    | Forbidden | Case | InLanguage | Json | StartsWith | EndsWith | ParagraphStart | Quoted | NoComma | Title
    | Postscript | OneOf | TwoAnswers | RepeatPrompt,
    Field(discriminator="type"),
]  # fmt: skip
_ALL: TypeAdapter[tuple[Constraint, ...]] = TypeAdapter(tuple[Constraint, ...])


def constraints(given: Sequence[Any]) -> tuple[Constraint, ...]:
    """Constraints from plain data. Raises pydantic's ValidationError naming the place and the key."""
    return _ALL.validate_python(tuple(given))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _paragraphs(text: str, between: str) -> list[str]:
    border = r"\n\s*\n" if between == "blank" else r"\s?\*\*\*\s?"
    return [part for part in re.split(border, text.strip()) if part.strip()]


def loosened(text: str) -> list[str]:
    """A text as it may be meant: without its first line, its last, both, and each without stars (IFEval, section 2.1:
    "Sure, here it is" and markdown are no failure to follow)."""
    lines = text.split("\n")
    cut = ["\n".join(lines[first:last]).strip() for first, last in ((0, None), (1, None), (0, -1), (1, -1))]
    return [each for part in cut for each in (part, part.replace("*", "")) if each.strip()]


class Followed(Record):
    """Whether one constraint was kept, strictly and loosely; None where that cannot be told."""

    type: str
    strict: bool | None
    loose: bool | None


def verify(given: Sequence[Any], text: str, prompt: str) -> list[Followed]:
    """Each constraint on a text. An empty text keeps none."""
    found = []
    for each in constraints(given):
        strict = each.kept(text, prompt) if text.strip() else False
        tried = [each.kept(variant, prompt) for variant in loosened(text)]
        loose = True if any(tried) else None if None in tried or strict is None else False
        found.append(Followed(type=each.type, strict=strict, loose=loose))
    return found


_RELATION = {"at least": "at_least", "less than": "at_most"}


def from_ifeval(ids: Sequence[str], arguments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """IFEval's `instruction_id_list` and `kwargs` as constraints. Raises DataError for an id that is not known.

    "less than N" becomes `at_most` N - 1.
    """
    if len(ids) != len(arguments):
        raise DataError(f"{len(ids)} instructions need as many kwargs, found {len(arguments)}", key="kwargs")
    return [each for name, given in zip(ids, arguments, strict=True) for each in _ifeval(name, given)]


def _ifeval(name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    given = {key: value for key, value in given.items() if value is not None}

    def bound(count: str, relation: str) -> dict[str, Any]:
        if given.get(relation) not in _RELATION:
            raise DataError(f"expected 'at least' or 'less than', found {given.get(relation)!r}", key=relation)
        number = int(given[count])
        return {"at_least": number} if given[relation] == "at least" else {"at_most": max(0, number - 1)}

    try:
        match name:
            case "keywords:existence":
                return [{"type": "keyword", "word": word} for word in given["keywords"]]
            case "keywords:frequency":
                return [{"type": "keyword", "word": given["keyword"]} | bound("frequency", "relation")]
            case "keywords:forbidden_words":
                return [{"type": "forbidden", "words": given["forbidden_words"]}]
            case "keywords:letter_frequency":
                return [{"type": "letter", "letter": given["letter"]} | bound("let_frequency", "let_relation")]
            case "language:response_language":
                return [{"type": "language", "language": given["language"]}]
            case "length_constraints:number_sentences":
                return [{"type": "sentences"} | bound("num_sentences", "relation")]
            case "length_constraints:number_paragraphs":
                return [{"type": "paragraphs", "between": "stars", "exactly": int(given["num_paragraphs"])}]
            case "length_constraints:number_words":
                return [{"type": "words"} | bound("num_words", "relation")]
            case "length_constraints:nth_paragraph_first_word":
                said = {"number": int(given["nth_paragraph"]), "of": int(given["num_paragraphs"])}
                return [{"type": "paragraph_starts", "word": given["first_word"]} | said]
            case "detectable_content:number_placeholders":
                return [{"type": "placeholders", "at_least": int(given["num_placeholders"])}]
            case "detectable_content:postscript":
                return [{"type": "postscript", "mark": given["postscript_marker"]}]
            case "detectable_format:number_bullet_lists":
                return [{"type": "bullets", "exactly": int(given["num_bullets"])}]
            case "detectable_format:constrained_response":
                options = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
                return [{"type": "one_of", "options": options}]
            case "detectable_format:number_highlighted_sections":
                return [{"type": "highlights", "at_least": int(given["num_highlights"])}]
            case "detectable_format:multiple_sections":
                count = {"at_least": int(given["num_sections"])}
                return [{"type": "sections", "word": given["section_spliter"]} | count]
            case "detectable_format:json_format":
                return [{"type": "json"}]
            case "detectable_format:title":
                return [{"type": "title"}]
            case "combination:two_responses":
                return [{"type": "two_answers"}]
            case "combination:repeat_prompt":
                return [{"type": "repeat_prompt", "text": given["prompt_to_repeat"]}]
            case "startend:end_checker":
                return [{"type": "ends_with", "text": given["end_phrase"]}]
            case "startend:quotation":
                return [{"type": "quoted"}]
            case "change_case:capital_word_frequency":
                return [{"type": "capital_words"} | bound("capital_frequency", "capital_relation")]
            case "change_case:english_capital" | "change_case:english_lowercase":
                return [{"type": "case", "case": "upper" if name.endswith("capital") else "lower"}]
            case "punctuation:no_comma":
                return [{"type": "no_comma"}]
    except KeyError as missing:
        raise DataError(f"the instruction {name!r} lacks {missing}", key=f"kwargs.{missing.args[0]}") from None
    raise DataError(f"no such instruction: {name!r}", key="instruction_id_list")

"""How a summary stands to its source and its references: ROUGE-L, compression, novelty, what was copied, coverage.

ROUGE-L by its definition (Lin 2004, equations 2 to 4 and 5 to 7, with beta 1: the plain F1); fragments as Grusky et
al. 2018 (Newsroom, figure 3). Words are runs of letters and digits in small letters, unstemmed; in scripts without
spaces characters. All figures run from 0 to 1, but `density`, which counts words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*(?=\S)|\n+")
_SMALL = frozenset(
    "a an the of to in on at for by with and or but is are was were be been it its this that he she they we you i his "  # noqa: SIM905
    "her their as from not no has have had will would".split()
)


def words(text: str) -> list[str]:
    """The words of a text in small letters."""
    return _WORD.findall(text.lower())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def _members(a: Sequence[str], b: Sequence[str]) -> set[int]:
    """Places of `a` on one longest common subsequence with `b`."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
    found, i, j = set(), len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.add(i - 1)
            i, j = i - 1, j - 1
        elif table[i - 1][j] >= table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def _f1(hits: float, said: int, wanted: int) -> float:
    return 2 * hits / (said + wanted) if hits else 0.0


def rouge_l(summary: str, references: Sequence[str]) -> float:
    """Sentence-level ROUGE-L F1 against the best reference: the whole text is one sequence."""
    said = words(summary)
    return max((_f1(common(said, w), len(said), len(w)) for w in map(words, references)), default=0.0)


def rouge_l_summary(summary: str, references: Sequence[str]) -> float:
    """Summary-level ROUGE-L F1 against the best reference: of each reference sentence the union of its longest common
    subsequences with all sentences of the summary, no word counted more often than it stands in either."""
    sentences = [words(part) for part in _SENTENCE.split(summary) if words(part)]
    return max((_union(sentences, reference) for reference in references), default=0.0)


def _union(sentences: Sequence[Sequence[str]], reference: str) -> float:
    wanted = [words(part) for part in _SENTENCE.split(reference) if words(part)]
    left = Counter(word for sentence in sentences for word in sentence)
    hits = 0
    for sentence in wanted:
        for place in sorted(set().union(*(_members(sentence, said) for said in sentences))):
            if left[sentence[place]] > 0:
                left[sentence[place]] -= 1
                hits += 1
    return _f1(hits, sum(map(len, sentences)), sum(map(len, wanted)))


def fragments(summary: Sequence[str], source: Sequence[str]) -> list[int]:
    """Lengths of the longest stretches that the summary shares with its source, greedily from the left."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(source):
        places.setdefault(word, []).append(place)
    found, start = [], 0
    while start < len(summary):
        longest = 0
        for place in places.get(summary[start], ()):
            length = 0
            while (
                start + length < len(summary)
                and place + length < len(source)
                and summary[start + length] == source[place + length]
            ):
                length += 1
            longest = max(longest, length)
        if longest:
            found.append(longest)
        start += max(1, longest)
    return found


def figures(summary: str, references: Sequence[str], document: str) -> dict[str, float]:
    """All figures of one summary.

    `compression` words of the summary per word of the document; `novelty` the share of the summary's word pairs that
    the document lacks; `copied` the share of its words within stretches of two and more taken from the document;
    `density` the mean square of those stretches' lengths per word; `reference_coverage` and `source_coverage` the share
    of the reference's and the document's content words that the summary holds.
    """
    said, source = words(summary), words(document)
    found = {"rouge_l": rouge_l(summary, references), "rouge_l_summary": rouge_l_summary(summary, references)}
    wanted = [set(words(each)) - _SMALL for each in references]
    held = set(said)
    covered = [len(each & held) / len(each) for each in wanted if each]
    if covered:
        found["reference_coverage"] = max(covered)
    if said and source:
        pairs = list(pairwise(said))
        known = set(pairwise(source))
        shared = fragments(said, source)
        content = set(source) - _SMALL
        found |= {
            "compression": len(said) / len(source),
            "copied": sum(length for length in shared if length > 1) / len(said),
            "density": sum(length**2 for length in shared) / len(said),
        }
        if pairs:
            found["novelty"] = sum(pair not in known for pair in pairs) / len(pairs)
        if content:
            found["source_coverage"] = len(content & held) / len(content)
    return found

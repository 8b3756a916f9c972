"""What was said, kept as it comes: nothing is asked twice after a kill, and answers are scored again without asking.

An answer is kept under everything it follows from: what answered (a local model by its weights, tokenizer, template and
ends), the code that made it, what it was shown, and how it was drawn. What is right is no part of that: a corrected
target is scored anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tutelage.core.records import Example, digest
from tutelage.generate.generator import Generator

ANSWERING = ("tokens", "model", "generate", "judge", "guard")
"""The packages that an answer goes through; a change in any of them makes it another one."""


@functools.cache
def code() -> str:
    """A hash of the sources of what answers."""
    home, total = Path(__file__).resolve().parents[1], hashlib.sha256()
    for package in ANSWERING:
        for file in sorted(each for each in (home / package).rglob("*") if each.suffix in (".py", ".c", ".yaml")):
            total.update(f"{file.relative_to(home)}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def _failed(answer: Any) -> bool:
    return isinstance(answer, dict) and "error" in answer


class AnswerLog:
    """Answers by key, one JSON line each, a chunk written in one go. A torn line is passed over.

    Without a path it is a memory of one examination.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        self._torn = False
        if path is not None and path.is_file():
            with path.open("rb") as lines:
                for line in lines:
                    self._torn = not line.endswith(b"\n")
                    try:
                        entry = json.loads(line)
                        self.known[entry["key"]] = entry["answer"]
                    except (ValueError, KeyError, TypeError):
                        continue

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Any:
        return self.known[key]

    def key(self, generator: Generator, target: str, item: Example, how: Any) -> str:
        """The key of an answer. `target` names what answers where it cannot say so by itself: a sealed reference, an
        address."""
        who = target or generator.name
        if self.path is not None:
            who = getattr(generator, "identity", "") or who
        return str(digest([who, code(), [message.model_dump(mode="json") for message in item.messages], how]))

    def put(self, entries: Iterable[tuple[str, Any]], *, lasting: bool = True) -> None:
        """Remember answers, on disk before anything else is asked. What failed (an `error`, or a judge's words in the
        place of a number), and what is not `lasting`, is remembered here, not there: the next run asks again."""
        fresh = list(entries)
        self.known.update(fresh)
        fresh = [(key, answer) for key, answer in fresh if not (isinstance(answer, str) or _failed(answer))]
        if self.path is None or not fresh or not lasting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n" for key, answer in fresh)
        text, self._torn = ("\n" if self._torn else "") + lines, False
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            left = text.encode("utf-8", "surrogatepass")
            while left:
                left = left[os.write(file, left) :]
        finally:
            os.close(file)

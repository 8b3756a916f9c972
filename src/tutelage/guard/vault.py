"""Personal data out of a conversation's text and back again: placeholders that only this conversation can open.

A placeholder is a keyed hash of (conversation, type, value): the same value has the same placeholder in every turn, and
nobody without the key can tell whether two conversations speak of the same person. What they stand for is kept
encrypted by the store, under the conversation, and never written to a log.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence

from tutelage.core.records import Span

_PLACEHOLDER = re.compile(r"\[[A-Z]{2,12}-[0-9a-f]{8}(?:[0-9a-f]{8})?\]")
LONGEST = 1 + 12 + 1 + 16 + 1
"""Characters of the longest placeholder."""

Keep = Callable[[Mapping[str, tuple[str, str]]], None]
"""Keeps new entries: placeholder -> (type, value)."""


class Vault:
    """The placeholders of one conversation.

    Args:
        key: 32 bytes, derived from the root's secret.
        known: gives what earlier turns put in, placeholder -> (type, value); called at most once, when it is needed.
        keep: called with what is new, once for each text that is masked.
    """

    def __init__(
        self,
        key: bytes,
        conversation: str,
        known: Callable[[], Mapping[str, tuple[str, str]]] = dict,
        keep: Keep | None = None,
    ) -> None:
        self._key, self._conversation, self._keep, self._load = key, conversation, keep, known
        self._entries: dict[str, tuple[str, str]] | None = None
        self._new: dict[str, tuple[str, str]] = {}

    @property
    def _known(self) -> dict[str, tuple[str, str]]:
        if self._entries is None:
            self._entries = dict(self._load())
        return self._entries

    def placeholder(self, kind: str, value: str) -> str:
        """What stands for a value, now and in every later turn."""
        message = "\0".join((self._conversation, kind, value)).encode("utf-8", "surrogatepass")
        mark = hmac.new(self._key, message, hashlib.sha256).hexdigest()
        for length in (8, 16):
            made = f"[{kind.upper()}-{mark[:length]}]"
            if self._known.get(made, (kind, value)) == (kind, value):
                break
        if made not in self._known:
            self._known[made] = self._new[made] = (kind, value)
        return made

    def mask(self, text: str, spans: Sequence[Span]) -> str:
        """The text with each span as its placeholder; what is new is kept. Spans are in order and do not overlap."""
        out, at = [], 0
        for span in sorted(spans, key=lambda each: each.start):
            if span.start < at:
                continue
            out += [text[at : span.start], self.placeholder(span.type, text[span.start : span.end])]
            at = span.end
        if self._new and self._keep:
            self._keep(self._new)
        self._new = {}
        return "".join([*out, text[at:]])

    def load(self) -> None:
        """Fetch what earlier turns put in, which may ask a store; after that nothing waits for one."""
        self._known  # noqa: B018

    def ready(self, text: str) -> bool:
        """Whether this text can be unmasked without asking a store."""
        return self._entries is not None or _PLACEHOLDER.search(text) is None

    def unmask(self, text: str) -> str:
        """The text with this conversation's placeholders opened; others stay as they are."""
        return _PLACEHOLDER.sub(lambda found: self._known.get(found[0], ("", found[0]))[1], text)

    def __len__(self) -> int:
        return len(self._known)


class Unmasker:
    """Opens placeholders in a stream, wherever the parts are cut: what may be the beginning of one waits."""

    def __init__(self, vault: Vault) -> None:
        self._vault, self._held = vault, ""

    @property
    def held(self) -> int:
        """Characters that wait, for they may be the beginning of a placeholder."""
        return len(self._held)

    def ready(self, delta: str) -> bool:
        """Whether `feed` can take this without asking a store; `load` makes it so."""
        return self._vault.ready(self._held + delta)

    def load(self) -> None:
        """Fetch what the conversation's placeholders stand for."""
        self._vault.load()

    def feed(self, delta: str) -> str:
        """More text; what can be shown of it."""
        text = self._held + delta
        begin = text.rfind("[", max(0, len(text) - LONGEST + 1))
        if begin >= 0 and "]" not in text[begin:] and _may_begin(text[begin:]):
            text, self._held = text[:begin], text[begin:]
        else:
            self._held = ""
        return self._vault.unmask(text)

    def close(self) -> str:
        """The end: whatever waited was no placeholder."""
        text, self._held = self._held, ""
        return self._vault.unmask(text)


def _may_begin(text: str) -> bool:
    """Whether more text could make a placeholder of this."""
    return re.fullmatch(r"\[(?:[A-Z]{0,12}|[A-Z]{2,12}-[0-9a-f]{0,16})", text) is not None

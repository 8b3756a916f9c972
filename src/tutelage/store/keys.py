"""Keys and identifiers: what is derived from the root's one secret, and how rows are named."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tutelage.core.errors import TutelageError

_last = [0, 0]  # the millisecond of the last version 7 identifier, and how many were made in it
_lock = threading.Lock()


def now() -> int:
    """Milliseconds since 1970 UTC, by this machine's clock; clients' clocks are never believed."""
    return time.time_ns() // 1_000_000


def uuid7() -> str:
    """A new identifier that sorts by time (RFC 9562, version 7; 12 bits count within a millisecond)."""
    with _lock:
        moment = max(now(), _last[0])
        count = _last[1] + 1 if moment == _last[0] else 0
        if count > 0xFFF:
            moment, count = moment + 1, 0
        _last[:] = [moment, count]
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    value = (moment << 80) | (0x7 << 76) | (count << 64) | (0b10 << 62) | random
    return str(uuid.UUID(int=value))


def derived_id(*parts: object) -> str:
    """The identifier (RFC 9562, version 8) that these parts always give: sending twice cannot make two rows."""
    total = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    value = int.from_bytes(total[:16], "big")
    value = (value & ~(0xF << 76)) | (0x8 << 76)
    value = (value & ~(0b11 << 62)) | (0b10 << 62)
    return str(uuid.UUID(int=value))


class Keys:
    """Derives one 32-byte key per purpose from the root's secret, and seals bytes under it (AES-256-GCM)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._made: dict[str, bytes] = {}

    def key(self, purpose: str) -> bytes:
        """HKDF-Expand (RFC 5869) of the secret, which is uniform already: one independent key per purpose."""
        if purpose not in self._made:
            self._made[purpose] = hmac.new(self._secret, f"tutelage/{purpose}\x01".encode(), hashlib.sha256).digest()
        return self._made[purpose]

    def mark(self, purpose: str, value: str) -> str:
        """A keyed hash of a value (32 hex digits): equal values meet, nobody without the key can guess them."""
        return hmac.new(self.key(purpose), value.encode(), hashlib.sha256).hexdigest()[:32]

    def seal(self, purpose: str, plain: bytes, bound: str = "") -> bytes:
        """Encrypt; `bound` (a row's id, say) must be the same when it is opened again."""
        nonce = os.urandom(12)
        return nonce + AESGCM(self.key(purpose)).encrypt(nonce, plain, bound.encode())

    def unseal(self, purpose: str, sealed: bytes, bound: str = "") -> bytes:
        """Decrypt what `seal` made. Raises TutelageError when the key or the bytes are wrong."""
        try:
            return AESGCM(self.key(purpose)).decrypt(sealed[:12], sealed[12:], bound.encode())
        except InvalidTag:
            raise TutelageError(
                "an encrypted row does not open", key=purpose, todo="Restore secret.key from your backup"
            ) from None

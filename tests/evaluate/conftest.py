"""What tests of examinations share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from endpoints import Endpoint, Quiet


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, Counter[str]]]:
    handler = type("Handler", (Endpoint,), {"seen": Counter(), "over": threading.Event()})
    server = Quiet(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.seen  # type: ignore[attr-defined]
    handler.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()

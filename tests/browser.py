"""A real Chromium for tests of pages: one per session and xdist worker, driven by Playwright."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browsers:
    """One Chromium for a worker's tests. If it hangs while a window closes it is killed; the next test gets another."""

    PATIENCE_S = 30.0

    def __init__(self, kind: Any) -> None:
        self.kind, self.browser, self.mark = kind, None, ""  # type: Any, Any, str

    def new_context(self, **options: Any) -> Any:
        if self.browser is None or not self.browser.is_connected():
            self.mark = f"--tests={uuid.uuid4().hex}"  # Chromium passes over switches that it does not know
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", self.mark]
            self.browser = self.kind.launch(executable_path=CHROMIUM, args=flags)
        return self.browser.new_context(**options)

    def close(self, window: Any = None) -> None:
        """Close a window, or the browser."""
        closing = self.browser if window is None else window
        if closing is None:
            return
        killer = threading.Timer(self.PATIENCE_S, self.signal, (signal.SIGKILL,))
        killer.start()
        try:
            closing.close()
        except Exception:  # a playwright Error of its own kind, when its browser was killed
            if self.browser.is_connected():
                raise
        finally:
            killer.cancel()

    def signal(self, number: int) -> None:
        """To every process of the browser."""
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (each / "cmdline").read_bytes():
                    os.kill(int(each.name), number)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """System Chromium, driven by Playwright. Without it these tests are skipped, except in CI, where they fail."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None  # type: ignore[assignment]
    if CHROMIUM is None or sync_playwright is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Chromium and Playwright for tests of pages")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        made = Browsers(playwright.chromium)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Playwright keeps its event loop open on this thread until the session ends; tests without a browser do not see
    it, so that they may run loops of their own."""
    kept = asyncio._get_running_loop()
    if kept is None or "browser" in request.fixturenames:
        yield
        return
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(kept)

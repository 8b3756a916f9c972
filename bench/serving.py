"""A service in a process of its own, and people who answer over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.environments import HOME


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Service:
    """`tutelage serve` over a root, always on the same port; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = root / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run, and return once it answers."""
        command = [sys.executable, "-m", "tutelage", "serve", "--root", str(self.root), "--port", str(self.port)]
        paths = os.pathsep.join([str(HOME / "src"), str(HOME)])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.root, env={**os.environ, "PYTHONPATH": paths}
            )
        until = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the service did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # nothing is released, so no model answers; the rooms of the annotators do
        except OSError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGKILL in the middle of whatever it does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)

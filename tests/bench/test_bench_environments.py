import threading
import time
from pathlib import Path

import pytest

from bench import environments


def test_who_asks_while_another_makes_an_environment_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    making, most = [], []

    def made(name: str) -> Path:
        making.append(name)
        most.append(len(making))
        time.sleep(0.05)
        making.remove(name)
        return tmp_path / name

    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "new" / "envs")
    monkeypatch.setattr(environments, "_made", made)
    asking = [threading.Thread(target=environments.python_of, args=("lmeval",)) for _ in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert most == [1, 1, 1, 1]

"""What holds for every test: no deadline (machines are noisy), no chance in CI, and numbers as the standard says."""

import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.browser", "tests.postgres"]

TOGETHER = (
    "tests/evaluate/test_evaluate_harness.py",
    "tests/scale/test_scale_launch.py",
    "tests/test_examples.py",
    "tests/test_life.py",
    "tests/test_public_life.py",
)
"""Files whose tests share one long fixture or environment, or go in an order: one worker runs all of a file's tests."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests to workers one by one, but for TOGETHER. (pytest-xdist's own groups are a suffix that pytest 9.2 drops.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid

    return Scheduling(config, log)


settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# CI tries the same examples every time, so that it fails for a change and not by chance; a person's machine looks on.
settings.register_profile("ci", settings.get_profile("house"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "house")


def _seed() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what fixtures of a module or session draw; the next fixture does it for the test itself."""
    _seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    # Seeded for each test, and only where the module is loaded already: what a test draws without a generator of its
    # own (a weight's default start, say) is the same alone, in any order and on any worker.
    _seed()


@pytest.fixture(autouse=True)
def numbers() -> Iterator[None]:
    """Training flushes subnormal numbers to zero and chooses its products for speed; the next test gets torch's own."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
        sys.modules["torch"].set_float32_matmul_precision("highest")

"""What holds for every test: no deadline (machines are noisy), and numbers as the standard says."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(autouse=True)
def subnormals() -> Iterator[None]:
    """Training flushes subnormal numbers to zero for speed; the next test gets them back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)

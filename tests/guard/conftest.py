"""A small root with a trained guard, and bundles over it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from guard_house import make_bundle, make_root

from tutelage.core.artifact import Artifact, Root


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with labels, a classifier and a stand-in for a model."""
    return make_root(tmp_path_factory.mktemp("guard"))


@pytest.fixture
def bundled(small_root: Root, tmp_path: Path) -> Callable[..., Artifact]:
    """Makes a bundle: `bundled(input="block", output="review", change=(old, new))`."""
    return lambda **values: make_bundle(small_root, tmp_path, **values)


@pytest.fixture
def small_bundle(bundled: Callable[..., Artifact]) -> Artifact:
    """A bundle that blocks on both sides and redacts personal data."""
    return bundled()

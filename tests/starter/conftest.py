import pytest

from tutelage.starter import world
from tutelage.starter.world import World


@pytest.fixture(scope="session")
def town() -> World:
    """The town of full size: parts are made once."""
    return world.build(0)


@pytest.fixture(scope="session")
def small() -> World:
    return world.build(0, 0.1)

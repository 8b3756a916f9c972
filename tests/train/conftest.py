"""What several files of this room begin with."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from small import taught

from tutelage.core.artifact import Artifact, Root


@pytest.fixture(scope="session")
def little_life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, Mapping[str, Artifact]]:
    """The little world with a pre-trained and a tuned model; what is made beside them stays in the same root."""
    return taught(tmp_path_factory.mktemp("little-life"))

import pytest

import serving
from fixtures import deadline, own_environment  # noqa: F401


@pytest.fixture(scope="module")
def demo():
    """A router over two replicas of the demo model; tests must leave it as it was."""
    with serving.System(serving.DEMO, "--dtype", "float32", workers=2) as system:
        yield system

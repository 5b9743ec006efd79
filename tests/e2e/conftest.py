import faulthandler
import os

import pytest

import serving

# Ends a run that hangs in spite of the deadlines of its parts.
TEST_SECONDS = 600


@pytest.fixture(autouse=True)
def _deadline():
    faulthandler.dump_traceback_later(TEST_SECONDS * serving.SLOWNESS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def _own_environment():
    # A caller's LCKV_* would be flags of every process started here.
    for name in list(os.environ):
        if name.startswith("LCKV_"):
            del os.environ[name]


@pytest.fixture(scope="module")
def demo():
    """A router over two replicas of the demo model; tests must leave it as it was."""
    with serving.System(serving.DEMO, "--dtype", "float32", workers=2) as system:
        yield system

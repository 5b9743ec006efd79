import faulthandler
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))

import serving  # noqa: E402

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

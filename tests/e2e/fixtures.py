"""What every test that starts programs of ours runs under; a conftest.py imports these by name."""

import faulthandler
import os

import pytest

import serving

# Ends a run that hangs in spite of the deadlines of its parts.
TEST_SECONDS = 600
# Of the tests themselves.
KEPT = {"LCKV_BIN", "LCKV_CLUSTER", "LCKV_PRESET"}


@pytest.fixture(autouse=True)
def deadline():
    faulthandler.dump_traceback_later(TEST_SECONDS * serving.SLOWNESS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def own_environment():
    # A caller's LCKV_* would be flags of every process started here.
    for name in list(os.environ):
        if name.startswith("LCKV_") and name not in KEPT:
            del os.environ[name]

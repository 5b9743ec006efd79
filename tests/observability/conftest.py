import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))

import live  # noqa: E402
from fixtures import deadline, own_environment  # noqa: E402, F401


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    system = live.Served(tmp_path_factory.mktemp("served"))
    try:
        system.run_load()
        yield system
    finally:
        system.close()

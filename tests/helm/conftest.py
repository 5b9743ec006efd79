import pathlib
import sys

import pytest

import chart
import switches

sys.path += [str(pathlib.Path(__file__).parents[1] / name) for name in ("e2e", "observability")]

from fixtures import deadline, own_environment  # noqa: E402, F401


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """{name: manifests} of every file in ci and every switch."""
    folder = tmp_path_factory.mktemp("values")
    return {name: chart.render(folder, values) for name, values in switches.everything().items()}

import os

import pytest

import chart
import switches


@pytest.fixture(scope="session", autouse=True)
def _own_environment():
    # A caller's LCKV_* would be flags of every process started here.
    for name in list(os.environ):
        if name.startswith("LCKV_") and name not in ("LCKV_BIN", "LCKV_CLUSTER"):
            del os.environ[name]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """{name: manifests} of every file in ci and every switch."""
    folder = tmp_path_factory.mktemp("values")
    return {name: chart.render(folder, values) for name, values in switches.everything().items()}

#!/usr/bin/env python3
"""Writes the dashboards, a file of Python each; the JSON beside it is what Grafana reads.

    build/tools/dashboards/bin/python deploy/grafana/dashboards.py [FOLDER]

FOLDER is deploy/grafana/dashboards unless another is given. deploy/install-deps.sh brings the SDK.
"""

import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from fleet import fleet
from model_memory import model_memory
from step import step


def main():
    here = pathlib.Path(__file__).parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "dashboards"
    for name, made in (("fleet", fleet()), ("model-memory", model_memory()), ("step", step())):
        text = JSONEncoder(sort_keys=True, indent=1).encode(made)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Simulated devices for tests."""

import json

import serving


def device(folder, name, step_us):
    """The file of one that takes so long for a step, whatever is in it."""
    made = json.loads((serving.ROOT / "deploy/devices/l4.json").read_text())
    path = folder / f"{name}.json"
    path.write_text(json.dumps(made | {"name": name, "step_overhead_us": step_us}))
    return path

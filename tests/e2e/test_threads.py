"""How a worker's threads wait between operations."""

import pathlib
import re

import pytest

import api
import serving

TOKENS = 48


def num_sleeps(worker):
    """Times that the process' threads have given up their cores to wait."""
    statuses = pathlib.Path(f"/proc/{worker.popen.pid}/task").glob("*/status")
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", s.read_text(), re.M).group(1)) for s in statuses)


def sleeps_of_a_generation(*flags):
    with serving.System(serving.DEMO, "--threads", 2, *flags) as system:
        request = api.request(
            text="Once upon a time", sampling={"temperature": 0}, stopping={"max_new_tokens": TOKENS, "ignore_eos": True}
        )
        system.client.generate(request)
        before = num_sleeps(system.workers[0])
        system.client.generate(request)
        return num_sleeps(system.workers[0]) - before


@pytest.mark.skipif(api.PRESET == "tsan", reason="OpenMP runs one thread there")
def test_threads_that_spin_seldom_sleep():
    sleeping, spinning = sleeps_of_a_generation(), sleeps_of_a_generation("--thread-wait", "spin")
    assert sleeping > 10 * TOKENS
    assert spinning < sleeping / 3, (spinning, sleeping)

"""How a worker's threads wait between operations."""

import pathlib
import re

import pytest

import api
import serving

# Of a prompt, whose operations are worth all threads.
TOKENS = 500


def num_sleeps(worker):
    """Times that the process' threads have given up their cores to wait."""
    statuses = pathlib.Path(f"/proc/{worker.popen.pid}/task").glob("*/status")
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", s.read_text(), re.M).group(1)) for s in statuses)


def sleeps_of_a_prompt(*flags):
    with serving.System(serving.DEMO, "--threads", 2, "--no-enable-prefix-caching", *flags) as system:
        asked = api.request([1 + i % 1000 for i in range(TOKENS)], stopping={"max_new_tokens": 1})
        system.client.generate(asked)
        before = num_sleeps(system.workers[0])
        system.client.generate(asked)
        return num_sleeps(system.workers[0]) - before


@pytest.mark.skipif(api.PRESET == "tsan", reason="OpenMP runs one thread there")
def test_threads_that_spin_seldom_sleep():
    sleeping, spinning = sleeps_of_a_prompt(), sleeps_of_a_prompt("--thread-wait", "spin")
    assert sleeping > 100 and spinning < sleeping / 2, (sleeping, spinning)

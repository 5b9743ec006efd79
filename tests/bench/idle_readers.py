#!/usr/bin/python3
"""One client in 20 never reads: the others' p99 time between tokens, against the same load with that one reading.

`--smoke`: one short round, to see that it runs.
"""

import json
import pathlib
import random
import statistics
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
import api  # noqa: E402
import serving  # noqa: E402

GOAL = 1.2
NUM_OTHERS = 19
ROUNDS = 5
FLAGS = ["--dtype", "float32", "--max-num-seqs", 64, "--kv-cache-memory", "256MiB"]


class Twentieth(threading.Thread):
    """One stream after another until told to stop; or one that is never read."""

    def __init__(self, client, reads):
        super().__init__(daemon=True)
        self.client, self.reads, self.ended = client, reads, threading.Event()

    def run(self):
        while not self.ended.is_set():
            # As wide as allowed: what is not read fills every buffer on its way.
            call = self.client.stream(
                api.request(
                    [random.randrange(3, 4096) for _ in range(64)],
                    sampling={"temperature": 0},
                    stopping={"max_new_tokens": 400, "ignore_eos": True},
                    output={"num_logprobs": 20},
                ),
                timeout=600,
            )
            if self.reads:
                for _ in call:
                    if self.ended.is_set():
                        break
            else:
                self.ended.wait()
            call.cancel()


def p99_ms(system, reads, num_requests):
    twentieth = Twentieth(system.client, reads)
    twentieth.start()
    try:
        result = serving.run(
            "lckv", "bench", "--router", system.router.address, "--json", "--concurrency", NUM_OTHERS,
            "--num-requests", num_requests, "--prompt-tokens", 64, "--output-tokens", 128, timeout=600,
        )  # fmt: skip
    finally:
        twentieth.ended.set()
        twentieth.join(60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["itl_ms"]["p99"]


def main():
    smoke = sys.argv[1:] == ["--smoke"]
    assert smoke or not sys.argv[1:], "idle_readers: unknown arguments; valid: --smoke"
    rounds, num_requests = (1, NUM_OTHERS) if smoke else (ROUNDS, 5 * NUM_OTHERS)
    with serving.System(serving.DEMO, *FLAGS) as system:
        # In turns: other work on the machine comes and goes.
        pairs = [[p99_ms(system, reads, num_requests) for reads in (True, False)] for _ in range(rounds)]
    undisturbed, disturbed = (statistics.median(column) for column in zip(*pairs))
    ratio = disturbed / undisturbed
    print(
        f"p99 between tokens of {NUM_OTHERS} streams beside one that never reads: {disturbed:.2f} ms,"
        f" beside one that reads: {undisturbed:.2f} ms: {ratio:.3f} times (goal <= {GOAL})"
    )


if __name__ == "__main__":
    main()

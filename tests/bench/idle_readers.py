#!/usr/bin/python3
"""One client in 20, and in 200, never reads: the others' p99 time between tokens, against the same load with that one
reading.

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
# Others, and calls of each of them in a round.
LOADS = [(19, 5), (199, 2)]
ROUNDS = 5
FLAGS = ["--dtype", "float32", "--max-num-seqs", 256, "--kv-cache-memory", "256MiB"]


class OneOfThem(threading.Thread):
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


def p99_ms(system, reads, num_others, num_requests):
    one = OneOfThem(system.client, reads)
    one.start()
    try:
        result = serving.run(
            "lckv", "bench", "--router", system.router.address, "--json", "--concurrency", num_others,
            "--num-requests", num_requests, "--prompt-tokens", 64, "--output-tokens", 128, timeout=600,
        )  # fmt: skip
    finally:
        one.ended.set()
        one.join(60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["itl_ms"]["p99"]


def measure(num_others, calls, rounds):
    with serving.System(serving.DEMO, *FLAGS) as system:
        # In turns: other work on the machine comes and goes.
        pairs = [
            [p99_ms(system, reads, num_others, calls * num_others) for reads in (True, False)] for _ in range(rounds)
        ]
    undisturbed, disturbed = (statistics.median(column) for column in zip(*pairs))
    ratio = disturbed / undisturbed
    print(
        f"p99 between tokens of {num_others} streams beside one that never reads: {disturbed:.2f} ms,"
        f" beside one that reads: {undisturbed:.2f} ms: {ratio:.3f} times (goal <= {GOAL})"
    )


def main():
    smoke = sys.argv[1:] == ["--smoke"]
    assert smoke or not sys.argv[1:], "idle_readers: unknown arguments; valid: --smoke"
    for num_others, calls in LOADS[:1] if smoke else LOADS:
        measure(num_others, 1 if smoke else calls, 1 if smoke else ROUNDS)


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""How soon a stopped rank's streams go on elsewhere, and whether load alone is ever taken for a failure.

`detection.py [--minutes 30] [--smoke]`: three replicas of two ranks behind one router, all with the timeouts they are
shipped with. First a leader, a follower and a launcher in turn are stopped under load, and every stream that was moved
is compared with an undisturbed run of its request: where one differs, the exit code is 1. Then as many streams as there
are seats, and as many again that wait, run for so long: no replica may be given up and no stream be moved.
`--minutes 0` leaves that part out.
"""

import argparse
import os
import pathlib
import random
import signal
import statistics
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import api  # noqa: E402
import ranks  # noqa: E402
import serving  # noqa: E402
from streams import Stream, results  # noqa: E402

NUM_REPLICAS = 3
SEATS = 16  # of each
GOAL_SECONDS = 5
FLAGS = ["--dtype", "float32", "--tensor-parallel-size", 2, "--max-num-seqs", SEATS]


def request(dice):
    return api.request(
        text="Once upon a time" + " and" * dice.randrange(200),
        sampling={"temperature": 0.8, "seed": str(dice.randrange(1 << 30))},
        stopping={"ignore_eos": True, "max_new_tokens": 100 + dice.randrange(200)},
    )


class Client(threading.Thread):
    """One stream after the other until told to end."""

    def __init__(self, client, seed):
        super().__init__(daemon=True)
        self.client, self.dice, self.ending = client, random.Random(seed), False
        self.num_streams = self.num_tokens = self.num_resumes = 0
        self.last = None  # when the stream's last token came
        self.gaps = []
        self.moved = []  # requests of moved streams, and what they gave
        self.error = None
        self.start()

    def run(self):
        try:
            while not self.ending:
                self.read_one(request(self.dice))
        except (AssertionError, grpc.RpcError) as error:
            self.error = error

    def read_one(self, asked):
        self.last = None
        choice = api.Choice()
        for event in self.client.stream(asked, timeout=600):
            now = time.monotonic()
            choice.add(event)
            if event.HasField("tokens"):
                self.num_tokens += len(event.tokens.ids)
                if self.last is not None:
                    self.gaps.append((now, now - self.last))
                self.last = now
        self.num_streams += 1
        if choice.finished.usage.num_resumes > 0:
            self.num_resumes += choice.finished.usage.num_resumes
            self.moved.append((asked, (choice.ids, choice.text)))

    def end(self):
        self.ending = True
        self.join(600)
        assert not self.is_alive(), "a stream past its deadline"
        assert self.error is None, self.error


class Load:
    def __init__(self, client, count):
        self.clients = [Client(client, seed) for seed in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.end()

    def total(self, field):
        return sum(getattr(client, field) for client in self.clients)

    def longest_gap_since(self, moment):
        return max((gap for client in self.clients for at, gap in client.gaps if at > moment), default=0)


def num_different(system, moved):
    """How many of these streams are not, byte for byte, what their request gives undisturbed."""
    undisturbed = results([Stream(system.client, asked) for asked, _ in moved])
    return sum(choices[0] != had for choices, (_, had) in zip(undisturbed, moved))


def stop_one(system, number, victim):
    """The longest time between two tokens of any stream, from the stop until all go on; how many streams moved; how many
    of them differ."""
    worker = system.workers[number]
    pids = ranks.ranks_of(worker)
    pid = {"leader": pids[0], "follower": pids[1], "launcher": worker.popen.pid}[victim]
    with Load(system.client, NUM_REPLICAS * SEATS // 2) as load:
        serving.wait_until(lambda: all(client.num_tokens > 20 for client in load.clients), "all streams run")
        stopped = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(2 * GOAL_SECONDS)
        finally:
            if victim == "launcher":
                os.kill(pid, signal.SIGCONT)
    gap, moved = load.longest_gap_since(stopped), [one for client in load.clients for one in client.moved]
    if victim != "launcher":  # whose ranks serve on
        worker.wait()
        worker.close()
        system.workers[number] = serving.Worker(serving.DEMO, *FLAGS, port=worker.port)
        system.workers[number].wait_ready()
    system.router.wait_ready(NUM_REPLICAS)
    return gap, len(moved), num_different(system, moved)


def verdict(met, smoke):
    return "" if smoke else f": {'met' if met else 'missed'}"


def stops(system, repetitions, smoke):
    """How many moved streams differ from undisturbed ones."""
    all_different = 0
    for number, victim in enumerate(("leader", "follower", "launcher")):
        measured = [stop_one(system, number, victim) for _ in range(repetitions)]
        gaps, moved, different = zip(*measured)
        all_different += sum(different)
        print(
            f"{victim} stopped, {repetitions} times: {statistics.median(moved):.0f} streams moved (median), longest gap"
            f" {max(gaps):.2f} s (goal <= {GOAL_SECONDS} s){verdict(max(gaps) <= GOAL_SECONDS, smoke)};"
            f" {sum(different)} of {sum(moved)} moved streams differ from undisturbed runs",
            flush=True,
        )
    return all_different


def saturated(system, seconds, smoke):
    began = time.monotonic()
    with Load(system.client, 2 * NUM_REPLICAS * SEATS) as load:
        while time.monotonic() - began < seconds:
            time.sleep(min(60, seconds))
            print(
                f"{time.monotonic() - began:6.0f} s  {load.total('num_streams')} streams,"
                f" {load.total('num_tokens')} tokens, {load.total('num_resumes')} moved",
                flush=True,
            )
    moved = load.total("num_resumes")
    ended = sum(not worker.alive() for worker in system.workers)
    print(
        f"saturated for {seconds / 60:.1f} min: {load.total('num_streams')} streams, {moved} moved, {ended} replicas"
        f" ended (goal: 0, 0){verdict(moved + ended == 0, smoke)}"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    with serving.System(serving.DEMO, *FLAGS, workers=NUM_REPLICAS) as system:
        different = stops(system, 1 if options.smoke else 3, options.smoke)
        if options.minutes > 0:
            saturated(system, 5 if options.smoke else options.minutes * 60, options.smoke)
    if different:
        sys.exit(f"{different} moved streams are not what an undisturbed run gives")


if __name__ == "__main__":
    main()

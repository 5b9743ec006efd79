"""Upgrades as the chart does them, with real processes under load: rollouts.py replays what Kubernetes does."""

import contextlib
import math
import os
import random
import threading
import time

import grpc
import pytest

import api
import devices
import rollouts
import serving
import streams

SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
STEP_US = 100_000  # of simulated replicas: how long a stream takes is its number of tokens, on any machine
NUM_CALLERS = 12
NUM_LONG = 6
LONG_TOKENS = 450  # longer than it takes routers to go


def is_turned_away(stream):
    """What a standing connection brings in the instant in which its server shuts down gRPC cancels, before anything of
    ours has seen it (github.com/grpc/grpc/issues/41785). It has not begun, and is called again."""
    return stream.error is not None and stream.error.code() == grpc.StatusCode.CANCELLED and not stream.choices


class Load:
    """Callers of a Service that call again and again until they are stopped: each on one connection, or on a new one for
    each call."""

    def __init__(self, address, asked, expected):
        self.address, self.asked, self.expected = address, asked, expected
        self.stopping = threading.Event()
        self.ended = []  # (seconds, number, stream)
        self.num_turned_away = 0
        self.threads = [
            threading.Thread(target=self.run, args=(number, number % 2 == 0), daemon=True)
            for number in range(NUM_CALLERS)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, number, stays):
        client = api.Client(self.address)
        while not self.stopping.is_set():
            begin = time.monotonic()
            stream = streams.Stream(client, self.asked[number % len(self.asked)])
            stream.join()
            if stays and is_turned_away(stream):
                self.num_turned_away += 1
                continue
            self.ended.append((time.monotonic() - begin, number % len(self.asked), stream))
            number += NUM_CALLERS
            if not stays:
                client.close()
                client = api.Client(self.address)
            self.stopping.wait(0.01)
        client.close()

    def stop(self):
        """All calls go on to their end."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(serving.STOP_SECONDS + 60)
            assert not thread.is_alive()

    def failed(self, within=math.inf):
        """Streams that did not end well in so many seconds."""
        return [
            (round(seconds, 2), str(stream.error)) for seconds, _, stream in self.ended
            if stream.error is not None and seconds < within
        ]  # fmt: skip

    def wrong(self):
        return [
            number for _, number, stream in self.ended
            if stream.error is None and stream.result() != self.expected[number]
        ]  # fmt: skip


def expect_clean_ends(pods):
    """SIGTERM was enough for each."""
    for pod in pods:
        assert not pod.killed and pod.process.popen.returncode == 0, pod.process.log()
    took = [f"{pod.ended_at - pod.terminated_at:.1f} s" for pod in pods]
    print(f"ended after SIGTERM within {', '.join(took)} of {pods[0].grace} s")


def undisturbed(folder, asked):
    """What these calls give where nothing happens: of a replica that is as fast as it can be."""
    fast = ["--device", "sim", "--sim-device", devices.device(folder, "fast", 100), "--dtype", "float32"]
    with serving.System(serving.DEMO, *fast) as system:
        return streams.results([streams.Stream(system.client, one) for one in asked])


@pytest.fixture
def dice():
    print(f"seed {SEED}")
    return random.Random(SEED)


def simulated(folder):
    device = devices.device(folder, "slow", STEP_US)
    return {"--device": "sim", "--sim-device": device, "--dtype": "float32"}


@pytest.mark.parametrize(("device", "replicas"), [("cpu", 1), ("cpu", 3), ("cuda", 2)])
def test_an_upgrade_of_workers_fails_no_stream(tmp_path, dice, device, replicas):
    """Of real ones with a pod more for the time, and of those whose GPUs have room for no pod more."""
    model = {"replicas": replicas, "device": device, "flags": {"dtype": "float32"}}
    asked = [
        streams.request_number(number, max_new_tokens=dice.randrange(20, 200)) for number in range(3 * NUM_CALLERS)
    ]
    with contextlib.ExitStack() as stack:
        local = {} if device == "cpu" else simulated(tmp_path)
        cluster = stack.enter_context(contextlib.closing(rollouts.Cluster(tmp_path, model, dice, local)))
        if device == "cpu":
            client = stack.enter_context(contextlib.closing(api.Client(cluster.service.address)))
            expected = streams.results([streams.Stream(client, one) for one in asked])
        else:
            expected = undisturbed(tmp_path, asked)
        load = Load(cluster.service.address, asked, expected)
        stack.callback(load.stopping.set)
        cluster.go_on_until(lambda _: load.ended, "streams end")
        before = cluster.upgrade(cluster.workers)
        load.stop()
        expect_clean_ends(before)
        moved = sum(stream.error is None and stream.num_resumes() > 0 for _, _, stream in load.ended)
        print(f"{device}: {len(load.ended)} streams, {moved} moved")
        assert load.failed() == [] and load.wrong() == []
        assert moved > 0 or device == "cpu"


class LongCall(threading.Thread):
    """A call that its client carries on with `resume` whenever it is interrupted."""

    def __init__(self, address, asked):
        super().__init__(daemon=True)
        self.client, self.asked = api.Client(address), asked
        self.streams = []
        self.start()

    def run(self):
        asked = api.GenerateRequest.FromString(self.asked.SerializeToString())
        while True:
            begin = time.monotonic()
            stream = streams.Stream(self.client, asked)
            stream.join()
            self.streams.append((time.monotonic() - begin, stream))
            if stream.error is None or api.details(stream.error, api.Interrupted) is None:
                return
            streams.resume(asked, stream)

    def result(self, seconds):
        """Ids and text of all streams together."""
        self.join(seconds)
        assert not self.is_alive(), "a call past its deadline"
        self.client.close()
        choices = [stream.choices[0] for _, stream in self.streams]
        return {0: (sum((choice.ids for choice in choices), []), "".join(choice.text for choice in choices))}


def test_an_upgrade_of_routers_fails_no_stream_shorter_than_the_grace(tmp_path, dice):
    asked = [
        streams.request_number(number, max_new_tokens=dice.randrange(10, 60)) for number in range(3 * NUM_CALLERS)
    ]
    long_asked = [streams.request_number(2 * number + 1, max_new_tokens=LONG_TOKENS) for number in range(NUM_LONG)]
    expected = undisturbed(tmp_path, asked + long_asked)
    with contextlib.ExitStack() as stack:
        model = {"replicas": 2, "device": "sim"}
        cluster = rollouts.Cluster(tmp_path, model, dice, simulated(tmp_path))
        stack.enter_context(contextlib.closing(cluster))
        load = Load(cluster.service.address, asked, expected)
        stack.callback(load.stopping.set)
        cluster.go_on_until(lambda _: load.ended, "streams end")
        calls = [LongCall(cluster.service.address, one) for one in long_asked]
        before = cluster.upgrade(cluster.routers)
        load.stop()
        found = [call.result(LONG_TOKENS * STEP_US / 1e6 + api.DEADLINE) for call in calls]
        expect_clean_ends(before)
        cut = [took for call in calls for took, stream in call.streams if stream.error is not None]
        print(f"{len(load.ended)} short streams, {load.num_turned_away} of them called twice")
        print(f"{len(calls)} long ones, {len(cut)} times interrupted")
        assert load.failed(within=cluster.grace) == [] and load.wrong() == []
        # Greedy, and as if nothing had happened.
        assert found == expected[len(asked) :]
        # Old routers let long ones go on for the whole grace.
        assert cut and min(cut) >= cluster.grace
        for call in calls:
            for _, stream in call.streams[:-1]:
                assert stream.error.code() == grpc.StatusCode.UNAVAILABLE

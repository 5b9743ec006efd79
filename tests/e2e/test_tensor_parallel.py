"""Replicas of several ranks: they serve as one, and whatever befalls a rank ends all of them, with one line."""

import os
import signal
import time

import pytest

import api
import serving
from ranks import END_SECONDS, FLAGS, RANK_SECONDS, Replica, errors
from tcp_ports import free_port

PROMPTS = ["The history of the city", "Once upon a time", "The people of the village", "In the year"]
# Between the logprobs of replicas of different sizes, float32.
TOLERANCE = 1e-4


def generate(client, text, **fields):
    asked = api.request(text=text, stopping={"ignore_eos": True, "max_new_tokens": 40}, **fields)
    return client.generate(asked)


def start_stream(router):
    asked = api.request(
        text=PROMPTS[0],
        sampling={"temperature": 0.8, "seed": 3},
        stopping={"ignore_eos": True, "max_new_tokens": 400},
    )
    call = router.client.stream(asked)
    read = api.Choice()
    for event in call:
        read.add(event)
        if len(read.ids) >= 5:
            return call
    raise AssertionError("the stream ended early")


def greedy(client):
    """For each prompt what follows it, with the two most likely tokens of each place."""
    fields = {"sampling": {"temperature": 0}, "output": {"num_logprobs": 2}}
    return [generate(client, text, **fields)[0] for text in PROMPTS]


def compare(one, other):
    """Equal as far as the choice is clear; how many tokens that are."""
    assert len(one.ids) == len(other.ids) == 40
    for place, (a, b) in enumerate(zip(one.logprobs, other.logprobs)):
        assert abs(a.top[0].logprob - b.top[0].logprob) <= TOLERANCE
        if a.id != b.id:
            assert a.top[0].logprob - a.top[1].logprob <= 2 * TOLERANCE
            return place
    return len(one.ids)


def test_two_ranks_give_what_one_gives():
    results = []
    kv_bytes = []
    for flags in (["--dtype", "float32"], FLAGS):
        with serving.System(serving.DEMO, *flags) as system:
            results.append(greedy(system.client))
            kv_bytes.append(system.client.models()[0].kv_bytes_per_token)
            if flags is not FLAGS:
                continue
            address = system.workers[0].metrics_address
            ranks = system.client.replicas()
            assert [replica.tensor_parallel_size for replica in ranks] == [2]
            # What a rank tells of itself is looked up five times a second: these tokens may take less.
            serving.wait_until(lambda: serving.metric(address, "lckv_rank_step", rank="0") > 0, "a rank's step")
            assert serving.metric(address, "lckv_rank_collectives_total", rank="0") > 0
            assert serving.metric(address, "vllm:num_requests_running") == 0
            assert system.workers[0].stop() == 0, system.workers[0].log()
            assert not errors(system.workers[0].log())
    assert kv_bytes[0] == kv_bytes[1] > 0  # the model's, not a rank's
    num_clear = sum(compare(one, other) for one, other in zip(*results))
    assert num_clear > 20 * len(PROMPTS)


def test_followers_serve_their_own_metrics_where_asked_to():
    port = free_port() - 1
    with Replica("--rank-metrics-port", str(port)):
        text = serving.scrape(f"127.0.0.1:{port + 1}")
        assert 'lckv_rank_step{' in text and 'rank="1"' in text and "vllm:" not in text


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("busy", [True, False])
def test_killed_rank_ends_the_replica(victim, busy):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            call = start_stream(router) if busy else None
            os.kill(replica.ranks[victim], signal.SIGKILL)
            replica.expect_end()
            rank, _, _, why = replica.last_line()
            assert (rank, why) == (victim, "killed by SIGKILL")
            if call is not None:
                call.cancel()
        finally:
            router.close()


def test_killed_launcher_takes_its_ranks_along():
    with Replica() as replica:
        replica.launcher.kill()
        replica.expect_nothing_left()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("busy", [True, False])
def test_stopped_rank_ends_the_replica(victim, busy):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            call = start_stream(router) if busy else None
            begin = time.monotonic()
            os.kill(replica.ranks[victim], signal.SIGSTOP)
            replica.expect_end()
            assert time.monotonic() - begin < RANK_SECONDS + END_SECONDS
            rank, _, _, why = replica.last_line()
            assert rank == victim
            assert why == f"silent for {RANK_SECONDS}s (--rank-timeout)"
            if call is not None:
                call.cancel()
        finally:
            router.close()


def test_rank_that_pauses_for_a_moment_harms_nothing():
    with Replica(timeouts=["--rank-timeout", f"{10 * serving.SLOWNESS}s"]) as replica:
        os.kill(replica.ranks[1], signal.SIGSTOP)
        time.sleep(1)
        os.kill(replica.ranks[1], signal.SIGCONT)
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            assert len(generate(router.client, PROMPTS[0])[0].ids) == 40
        finally:
            router.close()
        assert replica.launcher.stop() == 0, replica.launcher.log()
        replica.expect_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_its_streams(number):
    with Replica() as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            asked = api.request(
                text=PROMPTS[0], stopping={"ignore_eos": True, "max_new_tokens": 300}
            )
            call = router.client.stream(asked)
            choice = api.Choice()
            for event in call:
                choice.add(event)
                if len(choice.ids) >= 5:
                    break
            replica.launcher.signal(number)
            for event in call:
                choice.add(event)
            assert len(choice.ids) == 300
            replica.expect_end(0)
            assert not errors(replica.launcher.log())
        finally:
            router.close()


def test_told_to_end_while_it_starts_it_ends_in_order():
    process = serving.Process(
        "lckv-worker",
        ["--model", serving.DEMO, *FLAGS, "--port", 0, "--metrics-port", 0, "--health-port", 0,
         "--local-ranks", 1, "--leader", f"127.0.0.1:{free_port()}"],
    )
    try:
        process.find("listening")  # and waiting for a rank that nobody starts
        assert process.stop() == 0, process.log()
        assert not errors(process.log())
    finally:
        process.close()

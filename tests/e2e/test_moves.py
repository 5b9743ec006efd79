"""Streams that lose their replica go on at another: every one is compared with an undisturbed run."""

import collections
import os
import random
import signal
import time
import types

import grpc
import pytest

import api
import proxy
import ranks
import restarts
import serving
from streams import Stream, request_number, results, resume, start_all

FLAGS = ["--dtype", "float32"]
READY, DRAINING = 3, 4


def busiest(system):
    """The worker with most running sequences, as the router sees it."""
    running = {replica.address: replica.num_running for replica in system.client.replicas()}
    return max(system.workers, key=lambda worker: running.get(worker.address, 0))


def test_no_kill_loses_a_token_of_100_streams():
    seed = int(time.time())
    print(f"seed {seed}")
    dice = random.Random(seed)
    length = 384  # long enough that many streams meet several kills
    num_kills_wanted = 40 if serving.SLOWNESS == 1 else 8
    with serving.System(serving.DEMO, *FLAGS, "--tensor-parallel-size", 2, workers=3) as system:
        expected = results(start_all(system.client, 100, max_new_tokens=length))
        streams = start_all(system.client, 100, max_new_tokens=length)
        ended = []
        victims = collections.Counter()
        # What kills came upon, as far as it is seen from here: not at which replica a stream was, but of so many some
        # were at the victim.
        without_token = set()  # their prompts wait or are being encoded
        still_replayed = set()  # no token came since the kill before
        had = {}

        def look():
            live = [stream for stream in streams if stream.is_alive()]
            without_token.update(stream for stream in live if stream.num_ids() == 0)
            still_replayed.update(stream for stream in live if 0 < stream.num_ids() == had.get(stream))
            had.clear()
            had.update((stream, stream.num_ids()) for stream in live)

        def kill_one():
            look()
            number = dice.randrange(3)
            worker = system.workers[number]
            victim = dice.choice(["leader", "follower", "launcher"])
            victims[victim] += 1
            if victim == "launcher":
                worker.kill()
            else:
                found = ranks.ranks_of(worker)
                # Ranks under a sanitizer may be too slow for the shipped timeouts: this replica ends by itself.
                assert len(found) == 2 or serving.SLOWNESS > 1, worker.log()
                if len(found) == 2:
                    os.kill(found[victim == "follower"], signal.SIGKILL)
                assert worker.wait() == 1, worker.log()
            worker.close()
            # A dead replica's successor has its address, so that the router finds it.
            system.workers[number] = serving.Worker(
                serving.DEMO, *FLAGS, "--tensor-parallel-size", 2, port=worker.port
            )
            system.workers[number].wait_ready()

        def gained(before):
            return all(
                stream.num_ids() > had or not stream.is_alive() for stream, had in zip(streams, before)
            )

        while victims.total() < num_kills_wanted or any(stream.is_alive() for stream in streams):
            if victims.total() < num_kills_wanted:
                # As many at once until the last kill.
                for number, stream in enumerate(streams):
                    if not stream.is_alive():
                        ended.append((number, stream))
                        streams[number] = Stream(system.client, request_number(number, max_new_tokens=length))
            # One or two: the first finds prompts being encoded, the second streams that are being replayed. A third,
            # before they have gained a token, would make them suspects.
            for _ in range(dice.randrange(1, 3)):
                kill_one()
            # A token of before the last kill is not progress after it.
            before = [stream.num_ids() for stream in streams]
            # Ends what hangs; how long it takes is printed.
            serving.wait_until(lambda before=before: gained(before), "every stream goes on", 180 * serving.SLOWNESS)
        ended += enumerate(streams)
        for number, stream in ended:
            assert stream.result() == expected[number]
        resumed = sorted(stream.num_resumes() for _, stream in ended)
        gaps = sorted(stream.longest_gap() for _, stream in ended)
        several = sum(count >= 3 for count in resumed)
        print(f"kills: {dict(victims)}; {len(ended)} streams, {sum(map(bool, resumed))} resumed, {several} three times or")
        print(f"more, at most {resumed[-1]} times; longest gap p50 {gaps[len(gaps) // 2]:.2f} s,"
              f" p99 {gaps[len(gaps) * 99 // 100]:.2f} s")
        # One that was never moved was at no victim, and may only have waited for its turn.
        in_prefill = sum(stream.num_resumes() > 0 for stream in without_token)
        in_resume = sum(stream.num_resumes() > 0 for stream in still_replayed)
        print(f"moved, and at a kill before their first token: {in_prefill} streams; without one since the kill before:"
              f" {in_resume}")
        # Under a sanitizer few kills are far apart, and most streams end between them.
        assert any(resumed)
        assert sum(map(bool, resumed)) >= 0.3 * len(ended) or serving.SLOWNESS > 1
        assert several >= 0.05 * len(ended) or serving.SLOWNESS > 1
        assert in_prefill > 0 or serving.SLOWNESS > 1
        assert in_resume > 0 or serving.SLOWNESS > 1


def test_a_stopped_replica_is_left():
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        expected = results(start_all(system.client, 8, max_new_tokens=400))
        streams = start_all(system.client, 8, max_new_tokens=400)
        serving.wait_until(lambda: all(stream.num_ids() > 20 for stream in streams), "all run")
        stopped = busiest(system)
        stopped.signal(signal.SIGSTOP)
        try:
            assert results(streams) == expected
        finally:
            stopped.signal(signal.SIGCONT)
        moved = [stream for stream in streams if stream.num_resumes() > 0]
        assert moved
        print(f"longest gap {max(stream.longest_gap() for stream in moved):.2f} s")
        # The replica is back, and holds nothing of what was moved away.
        serving.wait_until(lambda: system.router.num_ready() == 2, "both ready again")
        serving.wait_until(
            lambda: serving.metric(stopped.metrics_address, "vllm:num_requests_running") == 0, "empty"
        )


@pytest.mark.parametrize("how", ["cut", "stalled"])
def test_a_broken_connection_moves_its_streams(how):
    workers = [serving.Worker(serving.DEMO, *FLAGS).wait_ready() for _ in range(2)]
    line = proxy.Proxy(workers[0].address)
    router = serving.Router([line.address, workers[1]])
    try:
        router.wait_ready(2)
        expected = results(start_all(router.client, 8, max_new_tokens=400))
        streams = start_all(router.client, 8, max_new_tokens=400)
        serving.wait_until(lambda: all(stream.num_ids() > 20 for stream in streams), "all run")
        if how == "cut":
            line.cut()
        else:
            line.stall()
        assert results(streams) == expected
        assert any(stream.num_resumes() for stream in streams)
        print(f"{how}: longest gap {max(stream.longest_gap() for stream in streams):.2f} s")
        # What the worker could not pass on it does not keep.
        serving.wait_until(
            lambda: serving.metric(workers[0].metrics_address, "vllm:num_requests_running") == 0, "empty"
        )
    finally:
        line.close()
        for process in (router, *workers):
            process.close()


def test_choices_logprobs_and_stop_strings_survive_a_kill():
    asked = request_number(0)
    asked.num_choices = 3
    asked.output.num_logprobs = 2
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        plain = system.client.generate(asked)
        # A stop string that begins in one token and ends in another, late in choice 1.
        asked.stopping.stop_strings.append(plain[1].text[-40:-30])

        def seen(choices):
            return {
                number: (choice.ids, choice.text, list(choice.logprobs), choice.finished.reason)
                for number, choice in choices.items()
            }

        expected = seen(system.client.generate(asked))
        stream = Stream(system.client, asked)
        serving.wait_until(lambda: stream.num_ids() > 60, "it runs")
        busiest(system).kill()
        stream.result()
        assert seen(stream.choices) == expected
        assert stream.num_resumes() > 0


def test_clients_of_a_killed_router_go_on_at_another():
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        other = serving.Router(system.workers).wait_ready(2)
        try:
            asked = [request_number(number, max_new_tokens=300) for number in range(16)]
            asked[1].num_choices = 3
            asked[1].sampling.temperature = 0.7
            asked[1].sampling.seed = 5
            expected = [Stream(other.client, one) for one in asked]
            expected = results(expected)
            streams = [Stream(system.client, one) for one in asked]
            serving.wait_until(lambda: all(stream.num_ids() > 20 for stream in streams), "all run")
            system.router.kill()
            for stream in streams:
                stream.join(60 * serving.SLOWNESS)
                assert stream.error is None or stream.error.code() == grpc.StatusCode.UNAVAILABLE
            assert sum(stream.error is not None for stream in streams) > 8
            for one, stream, whole in zip(asked, streams, expected):
                if stream.error is None:
                    continue
                resume(one, stream)
                rest = Stream(other.client, one).result()
                for number, (ids, text) in whole.items():
                    had = stream.choices[number]
                    ids_after, text_after = rest.get(number, ([], ""))
                    assert had.ids + ids_after == ids
                    assert had.text + text_after == text
        finally:
            other.close()


def test_streams_never_cross_fingerprints():
    first = serving.Worker(serving.DEMO, "--dtype", "float32").wait_ready()
    second = serving.Worker(serving.DEMO, "--dtype", "bfloat16").wait_ready()
    router = serving.Router([first, second], "--resume-timeout", "500ms")
    try:
        router.wait_ready(2)
        streams = start_all(router.client, 8, max_new_tokens=400)
        serving.wait_until(lambda: all(stream.num_ids() > 5 for stream in streams), "all run")
        first.kill()
        fingerprints = set()
        for stream in streams:
            stream.join(120 * serving.SLOWNESS)
            assert not stream.is_alive()
            fingerprints.add(stream.choices[0].started.fingerprint)
            if stream.error is None:
                assert stream.num_resumes() == 0
                continue
            assert stream.error.code() == grpc.StatusCode.UNAVAILABLE
            interrupted = api.details(stream.error, api.Interrupted)
            assert interrupted.num_tokens == stream.num_ids()
        assert sum(stream.error is not None for stream in streams) > 0
        assert len(fingerprints) == 2
    finally:
        for process in (router, first, second):
            process.close()


def test_draining_moves_streams_and_undraining_takes_work_again():
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        expected = results(start_all(system.client, 12, max_new_tokens=400))
        streams = start_all(system.client, 12, max_new_tokens=400)
        serving.wait_until(lambda: all(stream.num_ids() > 20 for stream in streams), "all run")
        left = system.client.replicas()[0]
        assert system.client.drain(left.replica_id, move=True).state == DRAINING

        def emptied():
            first = system.client.replicas()[0]
            return first.state == DRAINING and first.num_running + first.num_waiting == 0

        serving.wait_until(emptied, "the drained replica is empty")
        assert any(stream.is_alive() for stream in streams), "it emptied because all had ended"
        assert results(streams) == expected
        assert sum(stream.num_resumes() for stream in streams) > 0
        assert system.client.undrain(left.replica_id).state != DRAINING
        serving.wait_until(lambda: system.router.num_ready() == 2, "both ready again")
        with pytest.raises(grpc.RpcError) as caught:
            system.client.drain("nobody")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_worker_out_of_drain_time_hands_its_streams_over():
    with serving.System(serving.DEMO, *FLAGS, "--drain-timeout", "1s", workers=2) as system:
        expected = results(start_all(system.client, 12, max_new_tokens=400))
        streams = start_all(system.client, 12, max_new_tokens=400)
        serving.wait_until(lambda: all(stream.num_ids() > 20 for stream in streams), "all run")
        system.workers[0].signal(signal.SIGTERM)
        assert results(streams) == expected
        assert system.workers[0].wait() == 0, system.workers[0].log()


def test_a_rolling_restart_loses_nothing(tmp_path):
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        expected = results(start_all(system.client, 16, max_new_tokens=300))
        lives = {replica.replica_id for replica in system.client.replicas()}
        streams = []
        with restarts.RollingRestart(system.router, tmp_path) as restart:
            while restart.running():
                if sum(stream.is_alive() for stream in streams) < 16:
                    number = len(streams) % 16
                    streams.append(Stream(system.client, request_number(number, max_new_tokens=300)))
                for address in restart.orders():
                    (number,) = [n for n, worker in enumerate(system.workers) if worker.address == address]
                    worker = system.workers[number]
                    worker.stop()
                    system.workers[number] = serving.Worker(serving.DEMO, *FLAGS, port=worker.port)
                    restart.done(address)
                time.sleep(0.01)
            restart.expect_success()
        for number, stream in enumerate(streams):
            assert stream.result() == expected[number % 16]
        print(f"{len(streams)} streams, {sum(stream.num_resumes() > 0 for stream in streams)} moved")
        assert any(stream.num_resumes() > 0 for stream in streams)
        assert not lives & {replica.replica_id for replica in system.client.replicas()}


def test_a_rolling_restart_leaves_a_replica_that_keeps_its_streams(tmp_path):
    with serving.System(serving.DEMO, *FLAGS, "--max-num-seqs", 1) as system:
        streams = start_all(system.client, 32, max_new_tokens=400)
        with restarts.RollingRestart(system.router, tmp_path, timeout=1) as restart:
            assert "is empty" in restart.failure() and restart.orders() == []
        assert [replica.state for replica in system.client.replicas()] == [READY]
        results(streams)


def test_a_rolling_restart_of_no_replica_fails(tmp_path):
    with restarts.RollingRestart(types.SimpleNamespace(address="127.0.0.1:1"), tmp_path) as restart:
        assert "UNAVAILABLE" in restart.failure()

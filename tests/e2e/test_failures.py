"""Workers that die, processes that are told to end, and what clients see of it."""

import signal
import threading
import time

import grpc
import pytest

import api
import serving

PROMPT = "The history of the city"
FLAGS = ["--dtype", "float32"]


def long_request(**fields):
    fields.setdefault("sampling", {"temperature": 0.8, "seed": 11})
    stopping = {"ignore_eos": True, "max_new_tokens": 300}
    return api.request(text=PROMPT, stopping=stopping, **fields)


def read_until(call, num_tokens):
    choice = api.Choice()
    for event in call:
        choice.add(event)
        if len(choice.ids) >= num_tokens:
            return choice
    raise AssertionError("the stream ended early")


def drain_call(call, choice):
    """Reads what is left; the error that ends the call."""
    with pytest.raises(grpc.RpcError) as caught:
        for event in call:
            choice.add(event)
    return caught.value


def test_killed_worker_interrupts_and_resume_goes_on_exactly():
    worker = serving.Worker(serving.DEMO, *FLAGS).wait_ready()
    router = serving.Router([worker], "--resume-timeout", "200ms").wait_ready()
    successor = None
    try:
        whole = router.client.generate(long_request())[0]
        assert len(whole.ids) == 300
        call = router.client.stream(long_request())
        part = read_until(call, 20)
        worker.kill()
        error = drain_call(call, part)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        interrupted = api.details(error, api.Interrupted)
        assert interrupted is not None and interrupted.num_tokens == len(part.ids)
        assert part.ids == whole.ids[: len(part.ids)] and len(part.ids) < 300

        successor = serving.Worker(serving.DEMO, *FLAGS, port=worker.port).wait_ready()
        router.wait_ready()
        asked = long_request()
        asked.resume.fingerprint = part.started.fingerprint
        asked.resume.choices.add(
            choice=0, ids=part.ids, num_text_bytes=len(part.text.encode())
        )
        rest = router.client.generate(asked)[0]
        assert rest.first_position == len(part.ids)
        assert part.ids + rest.ids == whole.ids
        assert part.text + rest.text == whole.text
        assert rest.finished.usage.num_generated_tokens == 300
    finally:
        for process in (router, worker, successor):
            if process is not None:
                process.close()


def test_the_other_replica_serves_on():
    with serving.System(serving.DEMO, *FLAGS, workers=2) as system:
        system.workers[0].kill()
        serving.wait_until(lambda: system.router.num_ready() == 1, "one replica is seen lost")
        for _ in range(4):
            asked = api.request(text=PROMPT, stopping={"max_new_tokens": 2, "ignore_eos": True})
            assert len(system.client.generate(asked)[0].ids) == 2


def test_resume_with_another_fingerprint_is_refused(demo):
    asked = long_request()
    asked.resume.fingerprint = "of something else"
    asked.resume.choices.add(choice=0, ids=[5])
    with pytest.raises(grpc.RpcError) as caught:
        demo.client.generate(asked)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_worker_told_to_end_finishes_its_streams():
    with serving.System(serving.DEMO, *FLAGS) as system:
        call = system.client.stream(long_request())
        choice = read_until(call, 5)
        system.workers[0].signal(signal.SIGTERM)
        for event in call:
            choice.add(event)
        assert choice.finished.reason == api.REASONS["MAX_NEW_TOKENS"] and len(choice.ids) == 300
        assert system.workers[0].wait() == 0, system.workers[0].log()


def test_router_told_to_end_finishes_its_streams():
    with serving.System(serving.DEMO, *FLAGS) as system:
        call = system.client.stream(long_request())
        choice = read_until(call, 5)
        system.router.signal(signal.SIGTERM)
        for event in call:
            choice.add(event)
        assert len(choice.ids) == 300
        assert system.router.wait() == 0, system.router.log()


def test_router_out_of_grace_interrupts_its_streams():
    flags = ["--shutdown-grace", "100ms"]
    with serving.System(serving.DEMO, *FLAGS, router_flags=flags) as system:
        call = system.client.stream(long_request(num_choices=32))
        while next(iter(call)).WhichOneof("event") != "tokens":
            pass
        system.router.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert api.details(caught.value, api.Interrupted).num_tokens > 0
        assert system.router.wait() == 0


def test_idle_processes_end_at_once():
    with serving.System(serving.DEMO, *FLAGS) as system:
        begin = time.monotonic()
        assert system.router.stop() == 0
        assert system.workers[0].stop() == 0
        assert time.monotonic() - begin < 15 * serving.SLOWNESS


def test_router_without_a_worker_says_so():
    router = serving.Router(["127.0.0.1:1"], "--max-ready-wait", "200ms")
    try:
        health = api.Client(router.health_address)
        assert health.health("liveness") == api.SERVING and health.health("readiness") == api.NOT_SERVING
        health.close()
        with pytest.raises(grpc.RpcError) as caught:
            router.client.generate(api.request([1], stopping={"max_new_tokens": 1}))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert api.details(caught.value, api.RetryInfo) is not None
        assert any(key == "grpc-retry-pushback-ms" for key, _ in caught.value.trailing_metadata())
    finally:
        router.close()


def test_deadline_and_cancellation_free_the_blocks(demo):
    def free():
        return [
            serving.metric(worker.metrics_address, "lckv_kv_blocks", state="free")
            for worker in demo.workers
        ]

    serving.wait_until(lambda: free()[0] == free()[1], "both idle")
    before = free()
    call = demo.client.stream(long_request(num_choices=8))
    next(iter(call))
    call.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        demo.client.generate(long_request(num_choices=64), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    serving.wait_until(lambda: free() == before, "all blocks free again")


def test_choices_are_whole_and_apart(demo):
    results = {}

    def ask(priority):
        results[priority] = demo.client.generate(long_request(num_choices=4, priority=priority))

    threads = [threading.Thread(target=ask, args=(priority,)) for priority in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(api.DEADLINE)
    for choices in results.values():
        assert sorted(choices) == [0, 1, 2, 3]
        assert {number: c.ids for number, c in choices.items()} == {
            number: c.ids for number, c in results[0].items()
        }
    assert len({tuple(choice.ids) for choice in results[0].values()}) == 4
    assert len(results) == 3

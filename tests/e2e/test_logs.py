"""What an operator follows one request by: a JSON line per ended request at every process, and its trace."""

import json
import os
import re

import grpc
import pytest

import api
import serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def logged():
    flags = ["--dtype", "float32", "--tensor-parallel-size", 2, "--log-format", "json", "--log-level", "debug"]
    with serving.System(serving.DEMO, *flags, router_flags=["--log-format", "json"]) as system:
        yield system


def lines(process, message, request_id):
    """The JSON lines of a request; every line of the log is JSON."""
    found = []
    for line in process.log().splitlines():
        made = json.loads(line)
        if made["message"] == message and made.get("request_id") == request_id:
            found.append(made)
    return found


def wait_for(process, message, request_id, count=1):
    serving.wait_until(
        lambda: len(lines(process, message, request_id)) >= count, f"{count} lines {message} of {request_id}"
    )
    return lines(process, message, request_id)


def call(system, metadata=(), **fields):
    made = api.request(text="Once upon a time", **fields)
    system.client.headers = list(metadata)
    try:
        return system.client.generate(made)
    finally:
        system.client.headers = []


def test_one_request_is_followed_through_all_processes(logged):
    header = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    call(
        logged, [header], request_id='a "request"\n', num_choices=2, tenant="t",
        stopping={"max_new_tokens": 7, "ignore_eos": True}, sampling={"temperature": 1, "seed": "4"},
    )  # fmt: skip
    (ended,) = wait_for(logged.router, "generate", 'a "request"\n')
    assert ended["code"] == "OK" and ended["model"] == "demo" and ended["tenant"] == "t"
    assert ended["generated_tokens"] == 14 and ended["choices"] == 2 and ended["resumes"] == 0
    assert 0 < ended["first_token_ms"] <= ended["total_ms"]
    assert ended["replica"] == logged.workers[0].address
    assert ended["trace_id"] == TRACE and ended["parent_span_id"] == SPAN
    assert re.fullmatch("[0-9a-f]{16}", ended["span_id"]) and ended["span_id"] != SPAN

    sequences = wait_for(logged.workers[0], "sequence", 'a "request"\n', 2)
    assert sorted(sequence["choice"] for sequence in sequences) == [0, 1]
    for sequence in sequences:
        assert sequence["reason"] == "length" and sequence["generated_tokens"] == 7
        assert sequence["trace_id"] == TRACE and sequence["parent_span_id"] == ended["span_id"]
    # The follower, which has one log with its launcher and leader.
    seated = wait_for(logged.workers[0], "seated", 'a "request"\n', 2)
    assert all(seat["traceparent"].split("-")[1:3] == [TRACE, ended["span_id"]] for seat in seated)


@pytest.mark.parametrize("given", [None, "00-nonsense", f"00-{TRACE}-{'0' * 16}-01"])
def test_without_a_trace_none_is_made_up(logged, given):
    request_id = f"untraced {given}"
    call(logged, [("traceparent", given)] if given else [], request_id=request_id)
    (ended,) = wait_for(logged.router, "generate", request_id)
    assert not {"trace_id", "span_id", "parent_span_id"} & ended.keys()


def test_requests_that_fail_have_a_line_too(logged):
    with pytest.raises(grpc.RpcError):
        call(logged, request_id="bad", sampling={"top_p": 2})
    (ended,) = wait_for(logged.router, "generate", "bad")
    assert ended["code"] == "INVALID_ARGUMENT" and "sampling.top_p" in ended["error"]

    asked = api.request(text="On", request_id="left", stopping={"max_new_tokens": 500, "ignore_eos": True})
    stream = logged.client.stream(asked)
    next(stream), next(stream)
    stream.cancel()
    (ended,) = wait_for(logged.router, "generate", "left")
    assert ended["code"] == "CANCELLED"
    (sequence,) = wait_for(logged.workers[0], "sequence", "left")
    assert sequence["reason"] == "cancelled"


@pytest.mark.parametrize("which", ["router", "worker"])
def test_check_health_asks_the_one_that_runs(logged, which):
    process = logged.router if which == "router" else logged.workers[0]
    port = process.health_address.rpartition(":")[2]
    result = serving.run(process.name, "--check-health", "--health-port", port)
    assert result.returncode == 0 and result.stdout.startswith("ready: "), result.stderr
    free = serving.run(process.name, "--check-health", "--health-port", 1)
    assert free.returncode == 1 and free.stderr.startswith("not ready: 127.0.0.1:1: ")
    assert len(free.stderr.splitlines()) == 1


def test_every_process_tells_of_itself(logged):
    for address, pid in (
        (logged.router.metrics_address, logged.router.popen.pid),
        (logged.workers[0].metrics_address, None),
    ):
        assert serving.metric(address, "process_resident_memory_bytes") > 1e6
        assert serving.metric(address, "process_open_fds") < serving.metric(address, "process_max_fds")
        assert serving.metric(address, "process_threads") > 1
        started = serving.metric(address, "process_start_time_seconds")
        if pid is not None:
            assert abs(started - os.stat(f"/proc/{pid}").st_ctime) < 5

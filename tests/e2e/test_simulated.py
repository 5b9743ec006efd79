"""Simulated replicas: many in one process, behind a real router, as real ones from the outside."""

import concurrent.futures
import json

import pytest

import api
import serving
import tcp_ports

NUM_REPLICAS = 5
FLAGS = ["--device", "sim", "--sim-device", "l4"]


def ports_of(worker):
    """Of the routers' ports, by the log."""
    return [line.split("routers=")[1].split()[0] for line in worker.log().splitlines() if "routers=" in line]


def running(worker):
    addresses = [line.split("metrics=")[1].split()[0] for line in worker.log().splitlines() if "metrics=" in line]
    return sum(serving.metric(address, "vllm:num_requests_running") for address in addresses)


@pytest.fixture(scope="module")
def fleet():
    worker = serving.Process(
        "lckv-worker",
        ["--model", serving.DEMO, *FLAGS, "--sim-replicas", NUM_REPLICAS, "--port", 0, "--metrics-port", 0,
         "--health-port", 0],
    )
    try:
        worker.find(r"ready: 5 simulated replicas on NVIDIA L4")
        router = serving.Router(ports_of(worker))
        try:
            router.wait_ready(NUM_REPLICAS)
            yield worker, router
        finally:
            router.close()
    finally:
        assert worker.stop() == 0, worker.log()


def test_replicas_serve_as_one(fleet):
    _, router = fleet
    replicas = router.client.replicas()
    assert len({replica.replica_id for replica in replicas}) == NUM_REPLICAS
    assert len({replica.fingerprint for replica in replicas}) == 1

    def run(i):
        made = api.request(ids=[3 + i, 4, 5], stopping={"max_new_tokens": 64}, sampling={"temperature": 0})
        return api.collect(router.client.stream(made))[0].ids

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        first = list(pool.map(run, range(40)))
        again = list(pool.map(run, range(40)))
    assert first == again
    assert all(len(ids) == 64 for ids in first)
    assert len({tuple(ids) for ids in first}) == 40


def test_text_and_logprobs_come_as_of_a_real_one(fleet):
    _, router = fleet
    made = api.request(text="Once upon a time", stopping={"max_new_tokens": 8}, output={"num_logprobs": 2})
    choice = api.collect(router.client.stream(made))[0]
    assert choice.text and len(choice.ids) == len(choice.logprobs) == 8


def test_memory_is_what_the_device_has_left():
    worker = serving.Process(
        "lckv-worker",
        ["--model", serving.DEMO, "--device", "sim", "--sim-device", "h200", "--port", 0, "--metrics-port", 0,
         "--health-port", 0],
    )
    try:
        worker.find('KV memory.*budget="?118')  # of 0.9 * 141 GB, in GiB
        worker.find("ready: 1 simulated")
    finally:
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--device", "sim", "--sim-device", "b9000"], 1, "b9000: no such device; known: a100, h100, h200, l4, l40s"),
        (["--device", "sim", "--rank", 0], 2, "no --rank"),
        (["--sim-replicas", 2], 2, "--sim-replicas needs --device sim"),
        (["--allow-shared-device"], 2, "--allow-shared-device needs --device cuda:N"),
        (["--device", "cuda:0", "--allow-shared-device"], 2, "--allow-shared-device needs --kv-cache-memory"),
        (["--device", "tpu"], 2, "tpu is no device; valid: cpu, cuda, cuda:N, sim"),
        (["--device", "cuda:x"], 2, "cuda:x is no device"),
        (["--device", "sim", "--port", 65535, "--sim-replicas", 2], 2, "goes beyond 65535"),
        (["--device", "sim", "--gpu-memory-utilization", 0.0001], 2, "--gpu-memory-utilization"),
        (["--cpu-offload-gb", 0.5], 2, "--cpu-offload-gb 0.5 needs --device cuda: on the CPU weights are in host memory"),
        (["--device", "sim", "--cpu-offload-gb", 4], 2, "--cpu-offload-gb 4 needs --device cuda"),
        (["--device", "cuda", "--cpu-offload-gb", -1], 2, "--cpu-offload-gb"),
    ],
)
def test_wrong_flags(flags, code, text):
    result = serving.run("lckv-worker", "--model", serving.DEMO, *flags)
    assert result.returncode == code and text in result.stderr, result.stderr


def test_bench_goes_on_when_its_router_is_killed(fleet, tmp_path):
    worker, _ = fleet
    port = tcp_ports.free_port()

    def start():
        router = serving.Process(
            "lckv-router",
            ["--workers", ",".join(ports_of(worker)), "--port", port, "--metrics-port", 0, "--health-port", 0],
        )
        router.find("gRPC")
        return router

    router = start()
    output = tmp_path / "run.json"
    bench = serving.Process(
        "lckv",
        ["bench", "--router", f"127.0.0.1:{port}", "--num-requests", 300, "--request-rate", 150, "--arrivals", "constant",
         "--prompt-tokens", 8, "--output-tokens", 400, "--max-resumes", 8, "--output", output],
    )

    def many_run():
        assert bench.alive(), bench.log()
        return running(worker) >= 10

    try:
        serving.wait_until(many_run, "sequences run")
        router.kill()
        router.close()
        router = start()
        assert bench.wait() == 0, bench.log()
    finally:
        bench.close()
        router.close()
    result = json.loads(output.read_text())
    assert result["completed"] == 300 and result["failed"] == 0
    assert result["total_output_tokens"] == 300 * 400
    assert result["resumed"] >= 5

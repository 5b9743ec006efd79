"""What takes more streams than real devices here can serve: fleets of simulated ones under load."""

import json

import restarts
import serving
import tcp_ports

NUM_STREAMS = 10_000
# 100 tokens per second and stream, whatever the batch; fewer where routers and clients are slower too.
DEVICE = {
    "name": "test",
    "memory_bytes": 1e11,
    "memory_bytes_per_second": 1e15,
    "bfloat16_flops_per_second": 1e18,
    "float32_flops_per_second": 1e18,
    "host_bytes_per_second": 1e12,
    "peer_bytes_per_second": 1e12,
    "memory_share": 1,
    "flops_share": 1,
    "step_overhead_us": 10_000 * serving.SLOWNESS,
    "layer_overhead_us": 0.1,
    "peer_latency_us": 1,
}


class SimulatedWorker(serving.Process):
    def __init__(self, device, port):
        self.port = port
        self.address = f"127.0.0.1:{port}"
        super().__init__(
            "lckv-worker",
            ["--model", serving.DEMO, "--device", "sim", "--sim-device", device, "--port", port, "--metrics-port", 0,
             "--health-port", 0, "--max-num-seqs", 256],
        )
        self.find("ready: 1 simulated replicas")


def test_a_rolling_restart_under_load_fails_no_stream(tmp_path):
    device = tmp_path / "device.json"
    device.write_text(json.dumps(DEVICE))
    folder = tmp_path / "orders"
    folder.mkdir()
    workers = {}
    for _ in range(3):
        worker = SimulatedWorker(device, tcp_ports.free_port())
        workers[worker.address] = worker
    router = serving.Router(list(workers.values()))
    output = tmp_path / "run.json"
    bench = None
    try:
        router.wait_ready(3)
        bench = serving.Process(
            "lckv",
            ["bench", "--router", router.address, "--num-requests", NUM_STREAMS, "--concurrency", 330,
             "--prompt-tokens", "4-40", "--output-tokens", 64, "--max-resumes", 0, "--output", output],
        )

        def load():
            return {replica.address: replica for replica in router.client.replicas()}

        serving.wait_until(lambda: all(one.num_running >= 64 for one in load().values()), "64 streams on each")
        live = {}
        with restarts.RollingRestart(router, folder) as restart:
            while restart.running():
                for address, replica in load().items():
                    if replica.state == 3:  # ready: not drained yet
                        live[address] = replica.num_running
                for address in restart.orders():
                    assert live[address] >= 64, "nothing to move"
                    print(f"{address} is stopped with {live[address]} live streams")
                    assert workers[address].stop() == 0, workers[address].log()
                    workers[address].close()
                    workers[address] = SimulatedWorker(device, workers[address].port)
                    restart.done(address)
            restart.expect_success()
        assert bench.popen.wait(300 * serving.SLOWNESS) == 0, bench.log()
    finally:
        for process in (bench, router, *workers.values()):
            if process is not None:
                process.close()
    result = json.loads(output.read_text())
    assert result["completed"] == NUM_STREAMS and result["failed"] == 0
    assert result["total_output_tokens"] == NUM_STREAMS * 64

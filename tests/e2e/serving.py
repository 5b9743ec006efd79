"""Real workers and routers: started on free ports, waited for, stopped or killed, always with a deadline."""

import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.request

import api
import tcp_ports

ROOT = api.ROOT
BIN = pathlib.Path(os.environ.get("LCKV_BIN", ROOT / "build/release/bin"))
PRESET, SLOWNESS = api.PRESET, api.SLOWNESS
DEMO = ROOT / "deploy/models/demo"
READY_SECONDS = 30 * SLOWNESS
STOP_SECONDS = 30 * SLOWNESS


def wait_until(condition, what, seconds=READY_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Process:
    """A program with its log in a file. `stop` and `kill` may be called again."""

    def __init__(self, name, arguments):
        prefix = f"{pathlib.Path(name).name}-"  # an absolute path is a program that is not ours
        self.log_path = pathlib.Path(tempfile.mkstemp(prefix=prefix, suffix=".log")[1])
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                [str(BIN / name), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.name = name

    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive(self):
        return self.popen.poll() is None

    def find(self, pattern):
        """The first match in the log, once it is there; the process must live until then."""
        found = []

        def look():
            match = re.search(pattern, self.log())
            assert match or self.alive(), f"{self.name} ended:\n{self.log()}"
            found[:] = [match] if match else []
            return match

        wait_until(look, f"{pattern} in the log of {self.name}:\n{self.log()}")
        return found[0]

    def signal(self, number):
        self.popen.send_signal(number)

    def stop(self):
        """SIGTERM; the exit code."""
        if self.alive():
            self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end:\n{self.log()}") from None

    def kill(self):
        if self.alive():
            self.popen.kill()
        return self.popen.wait(STOP_SECONDS)

    def close(self):
        self.kill()
        self.log_path.unlink(missing_ok=True)

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


class Worker(Process):
    DEFAULTS = {"--kv-cache-memory": "64MiB", "--swap-space": "16MiB", "--threads": 1}

    def __init__(self, model, *flags, port=None):
        # One that nobody gets between it and a successor.
        port = port or tcp_ports.free_port()
        arguments = ["--model", model, "--port", port, "--metrics-port", 0, "--health-port", 0, *flags]
        for flag, value in self.DEFAULTS.items():
            if flag not in flags:
                arguments += [flag, value]
        super().__init__("lckv-worker", arguments)
        # As text or as JSON.
        address = r'"?[=:]"?([\d.:]+)[",\s}]+'
        ports = self.find(rf"routers{address}metrics{address}health{address}")
        self.address, self.metrics_address, self.health_address = ports.groups()
        self.port = int(self.address.rpartition(":")[2])

    def wait_ready(self):
        self.find(r'\bready[", ]+seconds\b')
        return self


class Router(Process):
    """`connect` makes the client of its address; without workers the flags say where they are."""

    def __init__(self, workers, *flags, connect=api.Client):
        addresses = ",".join(worker if isinstance(worker, str) else worker.address for worker in workers)
        given = ["--workers", addresses] if workers else []
        super().__init__(
            "lckv-router",
            [*given, "--port", 0, "--metrics-port", 0, "--health-port", 0, *flags],
        )
        ports = self.find(r"gRPC ([\d.:]+), health ([\d.:]+), metrics http://([\d.:]+)/metrics")
        self.address, self.health_address, self.metrics_address = ports.groups()
        self.client = connect(self.address)

    def num_ready(self):
        return sum(replica.state == 3 for replica in self.client.replicas())

    def wait_ready(self, count=1):
        def ready():
            assert self.alive(), self.log()
            return self.num_ready() >= count

        wait_until(ready, f"{count} ready replicas")
        return self

    def close(self):
        self.client.close()
        super().close()


class System:
    """One router over workers of one model; everything ends with it."""

    def __init__(self, model, *worker_flags, workers=1, router_flags=()):
        self.workers = []
        self.router = None
        try:
            for _ in range(workers):
                self.workers.append(Worker(model, *worker_flags))
            self.router = Router(self.workers, *router_flags)
            self.router.wait_ready(workers)
        except BaseException:
            self.close()
            raise
        self.client = self.router.client

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for process in [self.router, *self.workers]:
            if process is not None:
                process.close()


def scrape(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return answer.read().decode()


def metric(address, name, **labels):
    """The value of one series; labels that are not asked for do not matter."""
    for line in scrape(address).splitlines():
        match = re.match(r"([\w:]+)(?:\{(.*)\})? (\S+)$", line)
        if not match or match.group(1) != name:
            continue
        found = dict(re.findall(r'(\w+)="([^"]*)"', match.group(2) or ""))
        if all(found.get(key) == value for key, value in labels.items()):
            return float(match.group(3))
    raise AssertionError(f"no series {name} {labels}")


def run(program, *arguments, timeout=120):
    """A program of ours to its end. What a sanitizer finds is shown whole, whatever was expected of the program."""
    result = subprocess.run(
        [str(BIN / program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout * SLOWNESS,
    )
    assert "Sanitizer:" not in result.stderr, result.stderr
    return result

"""What brings alerts about: programs of its own, and callers of them."""

import json
import threading

import grpc

import api
import serving
import tcp_ports

PAUSE = 0.2  # seconds between the calls of one caller


def write(path, text):
    """At once: it may be read at any moment."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


class Replica:
    """A worker that can be started again at the same ports."""

    def __init__(self, model, *flags, device=None):
        self.model = model
        self.ports = [tcp_ports.free_port() for _ in range(3)]
        self.address, self.metrics_address = (f"127.0.0.1:{port}" for port in self.ports[:2])
        self.flags = [*flags, "--device", "sim", "--sim-device", device] if device else flags
        self.process = None

    def start(self):
        if self.process is not None:
            self.process.close()
        names = ["--port", "--metrics-port", "--health-port"]
        ports = [part for pair in zip(names, self.ports) for part in pair]
        self.process = serving.Process(
            "lckv-worker",
            ["--model", serving.DEMO, "--served-model-name", self.model, *ports, "--threads", 1, *self.flags],
        )
        return self

    def wait_ready(self):
        self.process.find(r"ready seconds=|ready: 1 simulated")

    def close(self):
        if self.process is not None:
            self.process.close()


class Callers:
    """Threads that call again and again until they are stopped; what becomes of a call is its own business."""

    def __init__(self, client, count, made):
        self.client, self.made = client, made
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.calls = set()
        self.codes = []
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self):
        while not self.stopping.is_set():
            call = self.client.stream(self.made, timeout=600)
            with self.lock:
                self.calls.add(call)
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass
            with self.lock:
                self.calls.discard(call)
                self.codes.append(call.code())
            self.stopping.wait(PAUSE)

    def stop(self):
        self.stopping.set()
        with self.lock:
            calls = set(self.calls)
        for call in calls:
            call.cancel()
        for thread in self.threads:
            thread.join(serving.STOP_SECONDS)


class Cause:
    """begin() brings alerts() about, {name: labels}, at once or later; end() takes the cause away, stop() only what goes on
    here."""

    router_flags = ()
    silent = ()  # what must not fire for the labels of any of alerts()

    def __init__(self, folder):
        self.folder = folder
        self.model = type(self).__name__.lower()
        self.replicas = self.make_replicas()
        self.router = None
        self.callers = None
        self.ended = threading.Event()
        self.thread = None

    def start(self):
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            replica.wait_ready()
        self.write_models()
        self.router = serving.Router([], "--models", self.models_path(), *self.router_flags)
        self.router.wait_ready(len(self.replicas))

    def models_path(self):
        return self.folder / f"{self.model}-models.json"

    def write_models(self):
        workers = [replica.address for replica in self.replicas]
        write(self.models_path(), json.dumps({"models": [{"name": self.model, "workers": workers}]}))

    def call(self, count, max_new_tokens):
        """Begins to call, with prompts of a few ids."""
        made = api.request(
            [3, 4, 5], model=self.model, stopping={"max_new_tokens": max_new_tokens, "ignore_eos": True}
        )
        self.callers = Callers(self.router.client, count, made)

    def go_on(self, act):
        """Begins to do it again and again."""

        def run():
            while not self.ended.is_set():
                act()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def stop(self):
        self.ended.set()
        if self.thread is not None:
            self.thread.join(serving.STOP_SECONDS)
        if self.callers is not None:
            self.callers.stop()

    def end(self):
        self.stop()

    def close(self):
        self.stop()
        for process in [self.router, *self.replicas]:
            if process is not None:
                process.close()

"""What alerts are for, brought about: each cause has programs of its own, goes on until it is ended, and then puts
everything right."""

import os
import signal
import subprocess

import ranks
import serving
import tcp_ports
from cause import Cause, Replica, write
from devices import device


class Lost(Cause):
    """One of two replicas is killed and stays away."""

    def make_replicas(self):
        fast = device(self.folder, "fast", 10_000)
        return [Replica(self.model, device=fast) for _ in range(2)]

    def alerts(self):
        lost = self.replicas[0]
        return {
            "LckvReplicaLost": {"worker": lost.address},
            "LckvTargetDown": {"instance": lost.metrics_address, "job": "lckv-worker"},
        }

    def begin(self):
        self.replicas[0].process.kill()

    def end(self):
        self.replicas[0].start()


class Gone(Cause):
    """The only replica of a model is killed while clients call."""

    def make_replicas(self):
        return [Replica(self.model, device=device(self.folder, "fast", 10_000))]

    def alerts(self):
        labels = {"model_name": self.model}
        return {"LckvModelWithoutReplica": labels, "LckvErrorsHigh": labels}

    def begin(self):
        self.replicas[0].process.kill()
        self.call(2, 4)

    def end(self):
        self.replicas[0].start()  # the callers go on, and are served


class Starting(Cause):
    """The only replica of a model waits for the rank of another host, while calls wait for it."""

    router_flags = ("--max-ready-wait", "10m", "--max-queue-wait", "10m")
    silent = ("LckvModelWithoutReplica", "LckvReplicaLost")

    def make_replicas(self):
        self.size = [*ranks.FLAGS, "--leader", f"127.0.0.1:{tcp_ports.free_port()}", "--kv-cache-memory", "16MiB"]
        self.other = None
        return [Replica(self.model, *self.size, "--rank", 0)]

    def start(self):
        self.replicas[0].start().process.find("listening")
        self.write_models()
        self.router = serving.Router([], "--models", self.models_path(), *self.router_flags)
        asked = {"model_name": self.model, "state": "loading"}
        there = self.router.metrics_address, "lckv_router_replicas"
        serving.wait_until(lambda: serving.metric(*there, **asked) == 1, "the replica loads")

    def alerts(self):
        return {
            "LckvModelWithoutReplicaLong": {"model_name": self.model},
            "LckvReplicaNeverReady": {"worker": self.replicas[0].address},
        }

    def begin(self):
        self.call(2, 4)

    def end(self):
        self.other = Replica(self.model, *self.size, "--rank", 1).start()  # the callers are served

    def close(self):
        super().close()
        if self.other is not None:
            self.other.close()


class Stalled(Cause):
    """A rank stops in the middle of steps, again and again, each time shorter than it is waited for."""

    STOPPED_SECONDS, RUNNING_SECONDS = 3, 1

    def make_replicas(self):
        patient = ["--rank-timeout", "10m", "--kv-cache-memory", "16MiB"]
        return [Replica(self.model, *ranks.FLAGS, *patient)]

    def alerts(self):
        return {"LckvStepsStalled": {"instance": self.replicas[0].metrics_address, "model_name": self.model}}

    def begin(self):
        self.rank = ranks.ranks_of(self.replicas[0].process)[1]
        self.call(2, 400)
        self.go_on(self.stop_and_continue)

    def stop_and_continue(self):
        os.kill(self.rank, signal.SIGSTOP)
        self.ended.wait(self.STOPPED_SECONDS)
        os.kill(self.rank, signal.SIGCONT)
        self.ended.wait(self.RUNNING_SECONDS)


class Slow(Cause):
    """First tokens take longer than the objective says."""

    def make_replicas(self):
        # A prompt takes at least two steps.
        return [Replica(self.model, device=device(self.folder, "slow", 1_000_000))]

    def alerts(self):
        labels = {"model_name": self.model}
        return {"LckvFirstTokensSlow": labels, "LckvFirstTokensSlowLong": labels}

    def begin(self):
        self.call(12, 1)


class Moving(Cause):
    """Streams are sent from one replica to the other and back, without end."""

    def make_replicas(self):
        fast = device(self.folder, "fast", 10_000)
        return [Replica(self.model, device=fast) for _ in range(2)]

    def alerts(self):
        return {"LckvStreamsMoving": {"model_name": self.model}}

    def begin(self):
        self.names = [replica.replica_id for replica in self.router.client.replicas()]
        self.call(4, 500)
        self.go_on(self.move)

    def move(self):
        for leaves, stays in (self.names, self.names[::-1]):
            self.router.client.undrain(stays)
            self.router.client.drain(leaves, move=True)
            self.ended.wait(0.5)


class Poison(Cause):
    """A replica is killed in the step of one call, started again, and killed again."""

    def make_replicas(self):
        return [Replica(self.model, device=device(self.folder, "slow", 1_000_000))]

    def alerts(self):
        [replica] = self.replicas
        return {
            "LckvInternalErrors": {"model_name": self.model},
            "LckvRestarting": {"instance": replica.metrics_address, "job": "lckv-worker"},
        }

    def begin(self):
        self.call(1, 1)
        self.go_on(self.kill)

    def runs(self):
        return serving.metric(self.replicas[0].metrics_address, "vllm:num_requests_running") > 0

    def kill(self):
        serving.wait_until(lambda: self.ended.is_set() or self.runs(), "the call runs")
        self.ended.wait(1)  # Prometheus sees each life
        self.replicas[0].process.kill()
        self.replicas[0].start().wait_ready()


class Full(Cause):
    """Sequences need more blocks than there are."""

    def make_replicas(self):
        memory = ["--kv-cache-memory", "1MiB", "--swap-space", "256KiB"]
        return [Replica(self.model, *memory, device=device(self.folder, "fast", 10_000))]

    def alerts(self):
        return {"LckvKvBlocksExhausted": {"instance": self.replicas[0].metrics_address, "model_name": self.model}}

    def begin(self):
        self.call(16, 400)


class Queue(Cause):
    """More calls than a replica takes and a router keeps."""

    router_flags = ("--max-queue", 4)

    def make_replicas(self):
        few = ["--max-num-seqs", 1, "--max-waiting", 1]
        return [Replica(self.model, *few, device=device(self.folder, "fast", 10_000))]

    def alerts(self):
        labels = {"model_name": self.model}
        filling = {"instance": self.router.metrics_address}
        return {"LckvQueueStanding": labels, "LckvCallsRefused": labels, "LckvQueueFilling": filling}

    def begin(self):
        self.call(12, 200)


class Files(Cause):
    """A router's file of models is broken, and a worker's certificate is about to end."""

    def make_replicas(self):
        fast = device(self.folder, "fast", 10_000)
        self.certificate, self.key = (self.folder / f"{name}.pem" for name in ("certificate", "key"))
        self.make_certificate(days=90)
        self.secret = Replica("secret", "--tls-cert", self.certificate, "--tls-key", self.key, device=fast)
        return [Replica(self.model, device=fast)]

    def make_certificate(self, days):
        """Of one key: both files need not change at one moment."""
        key = ["-key", self.key] if self.key.exists() else ["-newkey", "rsa:2048", "-nodes", "-keyout", self.key]
        new = self.certificate.with_suffix(".new")
        subprocess.run(
            ["openssl", "req", "-x509", *key, "-out", new, "-days", str(days), "-subj", "/CN=localhost"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        new.rename(self.certificate)

    def start(self):
        self.secret.start().wait_ready()
        super().start()

    def alerts(self):
        return {
            "LckvFileStale": {"instance": self.router.metrics_address, "file": "models"},
            "LckvCertificateExpiring": {"instance": self.secret.metrics_address, "certificate": "tls"},
        }

    def begin(self):
        write(self.models_path(), "{")
        self.make_certificate(days=3)

    def end(self):
        self.write_models()
        self.make_certificate(days=90)

    def close(self):
        super().close()
        self.secret.close()


ALL = [Lost, Gone, Starting, Stalled, Slow, Moving, Poison, Full, Queue, Files]

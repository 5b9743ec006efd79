"""The chart's Deployments as real processes on this machine: what Kubernetes does with their pods, in its order and at
its times, which are divided by FACTOR.

So is what the chart lets choose, before it is rendered (`shortened`). Grace periods are what it renders then: what it adds
to the flags' times is there for times of the programs that no flag has. The rules are those of
kubernetes.io/docs/concepts/workloads/controllers/deployment ("Rolling Update Deployment") and
kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle ("Termination of Pods")."""

import json
import math
import signal
import socket
import time

import grpc
import yaml

import api
import chart
import expressions
import proxy
import serving

FACTOR = 10
# A record lives for 30 s in a cluster's DNS as it is usually set up, and routers look names up every 12.5 s at least.
# Here a file stands for the name, at which they look every second.
NAME_SECONDS = 42.5 / FACTOR - 1
# What has another place on this machine, and is given by tests/e2e/serving.py.
PLACES = {"--host", "--port", "--metrics-port", "--health-port", "--model"}


def shortened(model):
    """Values of the chart, of one model, with its own times divided."""
    own = yaml.safe_load((chart.CHART / "values.yaml").read_text())

    def divided(values, *keys):
        assert all(values[key] % FACTOR == 0 for key in keys)
        return {key: values[key] // FACTOR for key in keys}

    return chart.values_of(
        chart.SMALL,
        {"modelDefaults": divided(own["modelDefaults"], "drainTimeoutSeconds"), "models": {"demo": model}},
        {"router": divided(own["router"], "shutdownDelaySeconds", "shutdownGraceSeconds")},
    )


def seconds(duration):
    return expressions.milliseconds(duration) / 1000


class Pod:
    """A container's program, and its kubelet. `begin` makes a process of its flags; `local` are others of these."""

    def __init__(self, spec, begin, local, version):
        [container] = spec["containers"]
        # Without a preStop, SIGTERM comes at once.
        assert "lifecycle" not in container
        self.grace = spec["terminationGracePeriodSeconds"]
        self.probe = container["readinessProbe"]
        self.flags = {flag: value for flag, value in chart.flags(container).items() if flag not in PLACES} | local
        self.begin, self.version = begin, version
        self.process = self.health = None
        self.begun_at = self.ready_at = self.terminated_at = self.ended_at = None
        self.asked_at = 0
        self.killed = False

    def start(self, now):
        parts = [part for flag in self.flags.items() for part in flag if part is not None]
        self.process = self.begin(*parts)
        self.health = api.Client(self.process.health_address)
        self.begun_at = now

    def runs(self):
        return self.process is not None and self.ended_at is None

    def is_available(self, now, seconds_ready=0):
        return self.ready_at is not None and now >= self.ready_at + seconds_ready

    def terminate(self, now):
        self.terminated_at = now
        if self.runs():
            self.process.signal(signal.SIGTERM)
        else:
            self.ended_at = now

    def watch(self, now):
        if not self.runs():
            return
        if not self.process.alive():
            assert self.terminated_at is not None, self.process.log()
            self.ended_at = now
        elif self.terminated_at is not None:
            if now > self.terminated_at + self.grace:
                self.killed = True
                self.process.kill()
        elif now >= self.asked_at + self.probe["periodSeconds"] / FACTOR:
            self.asked_at = now
            self.ready_at = (self.ready_at or now) if self.says_ready() else None

    def says_ready(self):
        try:
            return self.health.health(self.probe["grpc"]["service"], self.probe["timeoutSeconds"]) == api.SERVING
        except grpc.RpcError:
            return False

    def close(self):
        if self.process is not None:
            self.health.close()
            self.process.close()


class Deployment:
    """As many pods of one version as its manifest says, from those of another one, by its strategy. Where they need
    devices there are as many as replicas."""

    def __init__(self, documents, name, begin, local):
        [manifest] = [one for one in chart.of_kind(documents, "Deployment") if one["metadata"]["name"].endswith(name)]
        self.template = manifest["spec"]["template"]["spec"]
        self.replicas = manifest["spec"]["replicas"]
        self.seconds_ready = manifest["spec"].get("minReadySeconds", 0) / FACTOR
        rolling = manifest["spec"]["strategy"]["rollingUpdate"]
        self.surge, self.unavailable = rolling["maxSurge"], rolling["maxUnavailable"]
        limits = self.template["containers"][0]["resources"].get("limits", {})
        needs_device = any(resource.startswith("nvidia.com/") for resource in limits)
        self.places = self.replicas if needs_device else math.inf
        self.begin, self.local = begin, local
        self.version = 0
        self.pods = []  # all that there were

    def reconcile(self, now):
        for pod in self.pods:
            pod.watch(now)
        live = [pod for pod in self.pods if pod.terminated_at is None]
        new = [pod for pod in live if pod.version == self.version]
        while len(new) < self.replicas and len(live) < self.replicas + self.surge:
            pod = Pod(self.template, self.begin, self.local, self.version)
            for pods in (self.pods, live, new):
                pods.append(pod)
        old = [pod for pod in live if pod not in new]
        num_unavailable = sum(not pod.is_available(now, self.seconds_ready) for pod in new)
        num_spare = len(live) - (self.replicas - self.unavailable) - num_unavailable
        for pod in old[: max(0, num_spare)]:
            pod.terminate(now)
        for pod in new:
            if pod.process is None and sum(one.runs() for one in self.pods) < self.places:
                pod.start(now)

    def is_settled(self, now):
        """Nothing of another version is left."""
        live = [pod for pod in self.pods if pod.ended_at is None]
        return len(live) == self.replicas and all(
            pod.version == self.version and pod.is_available(now, self.seconds_ready) for pod in live
        )


class Service(proxy.Proxy):
    """Leads each new connection to one of its endpoints, and leaves standing ones alone."""

    def __init__(self, dice):
        super().__init__(None)
        self.dice = dice
        self.endpoints = []  # (address, until when)

    def connect(self):
        # Whoever sets them may be late: a program is being started.
        endpoints = [address for address, until in self.endpoints if time.monotonic() < until]
        if not endpoints:
            raise ConnectionRefusedError
        host, _, port = self.dice.choice(endpoints).rpartition(":")
        return socket.create_connection((host, int(port)))


class Cluster:
    """Routers and the workers of one model as the chart has them. `local`: other flags of workers."""

    def __init__(self, folder, model, dice, local):
        documents = chart.render(folder, shortened(model))
        self.models_file = folder / "models.json"
        [config] = [one for one in chart.of_kind(documents, "ConfigMap") if "models.json" in one["data"]]
        self.models = json.loads(config["data"]["models.json"])
        self.names = None
        self.workers = Deployment(documents, "-worker-demo", self.begin_worker, local)
        self.routers = Deployment(documents, "-router", self.begin_router, {"--models": self.models_file})
        flags = chart.flags(self.routers.template["containers"][0])
        self.grace = seconds(flags["--shutdown-grace"])
        # Half of what load balancers are given to forget an endpoint.
        self.forget_seconds = seconds(flags["--shutdown-delay"]) / 2
        self.service = Service(dice)
        try:
            self.publish(0)
            self.settle()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def begin_worker(*flags):
        return serving.Worker(serving.DEMO, *flags)

    @staticmethod
    def begin_router(*flags):
        return serving.Router([], *flags)

    def publish(self, now):
        """The leaders' name has whoever runs, ready or not, as it was a while ago; the Service those that are ready."""
        begun = [pod for pod in self.workers.pods if pod.begun_at is not None and now >= pod.begun_at + NAME_SECONDS]
        names = [
            pod.process.address for pod in begun if pod.ended_at is None or now < pod.ended_at + NAME_SECONDS
        ]
        if names != self.names:
            self.names = names
            [model] = self.models["models"]
            new = self.models_file.with_suffix(".new")
            new.write_text(json.dumps({"models": [model | {"workers": names}]}))
            new.rename(self.models_file)
        self.service.endpoints = [
            (pod.process.address, math.inf if pod.terminated_at is None else pod.terminated_at + self.forget_seconds)
            for pod in self.routers.pods
            if pod.runs() and pod.ready_at is not None
        ]

    def go_on_until(self, condition, what, seconds=2 * serving.READY_SECONDS):
        deadline = time.monotonic() + seconds
        while not condition(now := time.monotonic()):
            assert now < deadline, f"not within {seconds} s: {what}"
            for deployment in (self.workers, self.routers):
                deployment.reconcile(now)
            self.publish(now)
            time.sleep(0.02)

    def settle(self):
        """Goes on until all pods are what they are to be, and routers know all workers."""

        def is_settled(now):
            routers = [pod.process for pod in self.routers.pods if pod.runs()]
            return (
                self.workers.is_settled(now)
                and self.routers.is_settled(now)
                and all(router.num_ready() == self.workers.replicas for router in routers)
            )

        graces = sum(pod.grace for deployment in (self.workers, self.routers) for pod in deployment.pods)
        self.go_on_until(is_settled, "all is settled", graces + 2 * serving.READY_SECONDS)

    def upgrade(self, deployment):
        """All pods anew; those of before, which have ended."""
        before = [pod for pod in deployment.pods if pod.ended_at is None]
        deployment.version += 1
        self.settle()
        return before

    def close(self):
        self.service.close()
        for pod in (*self.routers.pods, *self.workers.pods):
            pod.close()

"""Running programs under a Prometheus: a router, a replica of two ranks, one of one rank and a simulated one, and a load
whose size its client counts itself."""

import collections
import concurrent.futures
import itertools
import json
import re
import threading
import time

import grpc
import pytest

import api
import devices
import monitoring
import ranks
import serving
import tcp_ports

CALLERS, CALLS = 14, 84
EARLIER_CALLS = CALLS // 2
CALL_SECONDS = 300
HELD = 5  # calls that run at the slow replicas at one moment; one of these has seats for most of them
BEHIND = 6  # seconds after a load in which rates fall to nothing
# What autoscalers are to ask: of HorizontalPodAutoscalers by way of an adapter, and of KEDA.
DEMAND = (
    'sum by (model_name) ({__name__=~"lckv_router_queue_depth|vllm:num_requests_waiting|vllm:num_requests_running",'
    'model_name!=""})'
)


def parse(text):
    """{family: type}, {series name and labels: value}."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[:1] != "#"}
    return kinds, values


class Count(collections.Counter):
    """What the clients saw. Under a lock of its callers' where there are several."""

    def add(self, choices, num_prompt_tokens):
        self["calls"] += 1
        self["choices"] += len(choices)
        self["prompt_tokens"] += num_prompt_tokens
        self["sequence_prompt_tokens"] += num_prompt_tokens * len(choices)
        self["tokens"] += sum(len(choice.ids) for choice in choices.values())


def by_model(found):
    return {labels["model_name"]: value for labels, value in found}


class Served:
    """The programs, their Prometheus, and the load once it was run."""

    def __init__(self, folder):
        self.processes = []
        self.held = []
        try:
            self.start(folder)
        except BaseException:
            self.close()
            raise

    def keep(self, process):
        self.processes.append(process)
        return process

    def start(self, folder):
        self.prometheus = self.keep(monitoring.Prometheus())
        rank_port = tcp_ports.free_port()
        # Little memory, so that blocks are seen to fill: of a rank, and of the replica without ranks, as many tokens.
        pair = self.keep(
            serving.Worker(
                serving.DEMO, *ranks.FLAGS, "--rank-metrics-port", rank_port - 1, "--kv-cache-memory", "1MiB",
                "--swap-space", "256KiB", "--rank-timeout", "1m",
            )
        )  # fmt: skip
        small = ["--kv-cache-memory", "2MiB", "--swap-space", "512KiB"]
        single = self.keep(serving.Worker(serving.DEMO, "--dtype", "float32", *small))
        slow = self.keep(
            serving.Process(
                "lckv-worker",
                ["--model", serving.DEMO, "--served-model-name", "slow", "--device", "sim", "--sim-replicas", 2,
                 "--sim-device", devices.device(folder, "slow", 1_000_000), "--max-num-seqs", 4, "--kv-cache-memory", "2MiB",
                 "--swap-space", "512KiB", "--port", 0, "--metrics-port", 0, "--health-port", 0],
            )
        )  # fmt: skip
        pair.wait_ready()
        single.wait_ready()
        slow.find("ready: 2 simulated")
        slow_addresses, slow_metrics = zip(*re.findall(r"routers=([\d.:]+) metrics=([\d.:]+)", slow.log()))
        models, tenants = folder / "models.json", folder / "tenants.json"
        tenants.write_text(json.dumps({"tenants": {"capped": {"tokens_per_minute": 1}}}))
        workers = {"demo": [pair.address, single.address], "slow": slow_addresses, "idle": []}
        models.write_text(json.dumps({"models": [{"name": name, "workers": at} for name, at in workers.items()]}))
        # However busy the machine is, nothing is lost.
        patient = ["--unresponsive-after", "1m", "--lost-after", "2m", "--standstill-after", "2m"]
        self.router = self.keep(serving.Router([], "--models", models, "--tenants", tenants, *patient)).wait_ready(4)
        self.client = self.router.client
        self.worker_addresses = [pair.metrics_address, single.metrics_address, *slow_metrics]
        self.rank_addresses = [f"127.0.0.1:{rank_port}"]
        self.prometheus.watch("lckv-router", [self.router.metrics_address])
        self.prometheus.watch("lckv-worker", self.worker_addresses + self.rank_addresses)
        self.prometheus.wait_for_scrapes(len(self.addresses()))

    def addresses(self):
        return [self.router.metrics_address, *self.worker_addresses, *self.rank_addresses]

    def exported(self):
        """{metric: labels} of all programs after the load."""
        found = {}
        for text in self.after.values():
            for series in parse(text)[1]:
                name, _, labels = series.partition("{")
                found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
        return found

    def scrape_all(self):
        return {address: serving.scrape(address) for address in self.addresses()}

    def close(self):
        for process in reversed(self.processes):
            process.close()

    def run_load(self):
        self.fresh = self.scrape_all()
        self.count = Count()
        self.lock = threading.Lock()
        # rate() takes a counter to have grown before its first sample too, by up to a quarter of what it sees of five
        # samples, but by no more than the counter's value: what is added up later begins where that is enough.
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(self.call, range(CALLS, CALLS + EARLIER_CALLS)))
        self.earlier = Count(self.count)
        self.prometheus.wait_for_scrapes(len(self.addresses()))
        time.sleep(BEHIND)
        self.begin = time.time()
        with concurrent.futures.ThreadPoolExecutor(CALLERS + 1) as pool:
            held = pool.submit(self.hold_calls)
            numbers = itertools.count()
            list(pool.map(lambda _: self.call_on(numbers, held), range(CALLERS)))
            held.result()
        self.call_in_vain()
        self.prometheus.wait_for_scrapes(len(self.addresses()))
        time.sleep(BEHIND)
        self.end = time.time()
        self.after = self.scrape_all()

    def call_on(self, numbers, held):
        # Demand is asked for beside them, however fast they are.
        while (i := next(numbers)) < CALLS or (len(self.held) < 2 and not held.done()):
            self.call(i)

    def call(self, i):
        # Every third prompt begins as others do.
        ids = [5 + i % 3] * 32 + [3 + i % 50] * (8 + i % 24) if i % 3 == 0 else list(range(9 + i, 57 + i))
        made = api.request(
            ids, model="demo", tenant="" if i else "capped", num_choices=2 if i % 16 == 0 else 1, sampling={"temperature": 1, "seed": i},
            stopping={"max_new_tokens": 24 + i % 40, "ignore_eos": True},
        )  # fmt: skip
        choices = self.client.generate(made, CALL_SECONDS)
        with self.lock:
            self.count.add(choices, len(ids))

    def hold_calls(self):
        """Calls that do not end, until Prometheus was asked how many there are; then their clients leave."""
        made = api.request([3, 4, 5], model="slow", stopping={"max_new_tokens": 400})
        calls = [self.client.stream(made, timeout=CALL_SECONDS) for _ in range(HELD)]
        try:
            serving.wait_until(
                lambda: self.prometheus.value('sum(lckv_router_inflight{model_name="slow"})') == HELD,
                "calls are held",
                monitoring.SCRAPED_SECONDS,
            )
            for expr in (DEMAND, "model_name:lckv_demand:sum"):
                # What runs and waits is shown once a step is done.
                serving.wait_until(
                    lambda: by_model(self.prometheus.query(expr)).get("slow") == HELD,
                    f"{expr}: {HELD}",
                    monitoring.SCRAPED_SECONDS,
                )
                self.held.append(by_model(self.prometheus.query(expr)))
            self.move_some()
        finally:
            for call in calls:
                call.cancel()

    def move_some(self):
        """One of the two slow replicas hands its streams to the other."""

        def wait_for(expr):
            serving.wait_until(lambda: (self.prometheus.value(expr) or 0) > 0, expr, monitoring.SCRAPED_SECONDS)

        wait_for('min(vllm:generation_tokens_total{model_name="slow"})')
        slow = [replica for replica in self.client.replicas() if replica.model == "slow"]
        # The other has seats for some of the streams of the one that has more.
        leaves = max(slow, key=lambda replica: replica.num_running).replica_id
        self.client.drain(leaves, move=True)
        wait_for('lckv_router_resume_gap_seconds_count{model_name="slow"}')
        self.client.undrain(leaves)

    def call_in_vain(self):
        def expect(code, made, timeout=api.DEADLINE):
            with pytest.raises(grpc.RpcError) as error:
                self.client.generate(made, timeout)
            assert error.value.code() == code

        for _ in range(4):
            expect(
                grpc.StatusCode.INVALID_ARGUMENT, api.request([3], model="demo", sampling={"temperature": -1})
            )
            self.count["invalid"] += 1
        for _ in range(2):
            expect(grpc.StatusCode.NOT_FOUND, api.request([3], model="nowhere"))
            self.count["unknown"] += 1
        expect(grpc.StatusCode.UNAVAILABLE, api.request([3], model="idle"))
        # It owes the tokens of its call.
        expect(grpc.StatusCode.RESOURCE_EXHAUSTED, api.request([3], model="demo", tenant="capped"))
        expect(grpc.StatusCode.DEADLINE_EXCEEDED, api.request([3], model="slow", stopping={"max_new_tokens": 400}), 2)
        self.client.tokenize("the city", model="demo")


def has_value(points):
    return any(value == value for _, value in points)

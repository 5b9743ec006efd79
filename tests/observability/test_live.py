"""Dashboards and rules against running programs: a router, a replica of two ranks, one of one rank and a simulated one,
all under a load whose size its client counts itself."""

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
import draw
import expressions
import monitoring
import ranks
import serving

CALLERS, CALLS = 14, 84
EARLIER_CALLS = 8
CALL_SECONDS = 300
HELD = 5  # calls that run at the slow replicas at one moment; one of these has seats for most of them
TOLERANCE = 0.05
BEHIND = 6  # seconds after a load in which rates fall to nothing
PICTURES = serving.ROOT / "build/observability"
# Not of the programs, but of Prometheus or of the library that serves /metrics.
FOREIGN = re.compile(r"^(up|ALERTS|exposer_\w+)$")
FOREIGN_LABELS = {"job", "instance", "alertname", "alertstate", "severity"}
# Those that count time or messages, with and without a load.
NEVER_STILL = re.compile(r"lckv_rank_wait_seconds_total|lckv_router_frames_total|process_cpu_|exposer_")
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


def counting(text):
    """Series of counters and histograms."""
    kinds, values = parse(text)
    return {
        series: value
        for series, value in values.items()
        if kinds.get(re.sub(r"_(bucket|sum|count)$", "", series.partition("{")[0]), "") == "histogram"
        or kinds.get(series.partition("{")[0]) == "counter"
    }


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
        rank_port = ranks.free_port()
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
        models = folder / "models.json"
        workers = {"demo": [pair.address, single.address], "slow": slow_addresses, "idle": []}
        models.write_text(json.dumps({"models": [{"name": name, "workers": at} for name, at in workers.items()]}))
        # However busy the machine is, nothing is lost.
        patient = ["--unresponsive-after", "1m", "--lost-after", "2m", "--standstill-after", "2m"]
        self.router = self.keep(serving.Router([], "--models", models, *patient)).wait_ready(4)
        self.client = self.router.client
        self.worker_addresses = [pair.metrics_address, single.metrics_address, *slow_metrics]
        self.rank_addresses = [f"127.0.0.1:{rank_port}"]
        self.prometheus.watch("lckv-router", [self.router.metrics_address])
        self.prometheus.watch("lckv-worker", self.worker_addresses + self.rank_addresses)
        self.prometheus.wait_for_scrapes(len(self.addresses()))

    def addresses(self):
        return [self.router.metrics_address, *self.worker_addresses, *self.rank_addresses]

    def scrape_all(self):
        return {address: serving.scrape(address) for address in self.addresses()}

    def close(self):
        for process in reversed(self.processes):
            process.close()

    def run_load(self):
        self.fresh = self.scrape_all()
        self.count = Count()
        self.lock = threading.Lock()
        # rate() takes little for granted of a counter that was 0 a moment ago: what is added up later begins later.
        for i in range(EARLIER_CALLS):
            self.call(CALLS + i)
        self.earlier = Count(self.count)
        self.prometheus.wait_for_scrapes(len(self.addresses()))
        time.sleep(BEHIND)
        self.begin = time.time()
        with concurrent.futures.ThreadPoolExecutor(CALLERS + 1) as pool:
            held = pool.submit(self.hold_calls)
            numbers = itertools.count()
            list(pool.map(lambda _: self.call_on(numbers), range(CALLERS)))
            held.result()
        self.call_in_vain()
        self.prometheus.wait_for_scrapes(len(self.addresses()))
        time.sleep(BEHIND)
        self.end = time.time()
        self.after = self.scrape_all()

    def call_on(self, numbers):
        while (i := next(numbers)) < CALLS:
            self.call(i)

    def call(self, i):
        # Every third prompt begins as others do.
        ids = [5 + i % 3] * 32 + [3 + i % 50] * (8 + i % 24) if i % 3 == 0 else list(range(9 + i, 57 + i))
        made = api.request(
            ids, model="demo", num_choices=2 if i % 16 == 0 else 1, sampling={"temperature": 1, "seed": i},
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
        leaves = next(replica.replica_id for replica in self.client.replicas() if replica.model == "slow")
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
        expect(grpc.StatusCode.DEADLINE_EXCEEDED, api.request([3], model="slow", stopping={"max_new_tokens": 400}), 2)
        self.client.tokenize("the city", model="demo")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    system = Served(tmp_path_factory.mktemp("served"))
    try:
        system.run_load()
        yield system
    finally:
        system.close()


def has_value(points):
    return any(value == value for _, value in points)


def test_rules_are_evaluated(served):
    groups = served.prometheus.ask("rules")["groups"]
    ours = [rule for group in groups for rule in group["rules"]]
    assert len(ours) == len(expressions.rules("recording")) + len(expressions.rules("alerts"))
    assert [rule["name"] for rule in ours if rule["health"] != "ok"] == []


def test_counters_are_there_from_the_start(served):
    for address in served.addresses():
        before, after = counting(served.fresh[address]), counting(served.after[address])
        assert sorted(set(after) - set(before)) == []
        moved = {series for series, value in before.items() if value != 0 and not NEVER_STILL.match(series)}
        assert moved == set(), address


def exported(served):
    """{metric: labels} of all programs."""
    found = {}
    for text in served.after.values():
        for series in parse(text)[1]:
            name, _, labels = series.partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_what_is_asked_for_is_exported(served):
    there = exported(served)
    recorded = {rule["record"] for rule in expressions.rules("recording")}
    queries = [
        (variable["name"], re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]))
        for board in expressions.boards().values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
    for where, expr in [*expressions.all_expressions(), *queries, ("autoscalers", DEMAND)]:
        asked, grouped = expressions.series_asked_for(expr)
        assert asked, where
        for metric, labels in asked:
            if metric in recorded:
                assert labels <= {"model_name"}, where
            elif metric == "lckv_tls_not_after_seconds":
                continue  # there is no certificate here; tests/observability/test_alerts.py has one
            elif not FOREIGN.match(metric):
                assert metric in there, f"{where}: {metric}"
                assert labels <= there[metric] | FOREIGN_LABELS, f"{where}: {metric} {labels - there[metric]}"
        assert grouped <= set().union(*there.values()) | FOREIGN_LABELS, where


@pytest.mark.parametrize(
    ("board", "panel"),
    expressions.all_panels(),
    ids=lambda value: value if isinstance(value, str) else f"{value['id']}-{value['title']}",
)
def test_a_panel_has_data(served, board, panel):
    for target in panel["targets"]:
        expr = expressions.filled_in(target["expr"], monitoring.RATE_INTERVAL)
        found = served.prometheus.history(expr, served.begin, served.end)
        assert any(has_value(points) for _, points in found), expr
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert all(label in labels for labels, _ in found), (label, expr)


@pytest.mark.parametrize("rule", expressions.rules("recording"), ids=lambda rule: rule["record"])
def test_a_recording_rule_has_data(served, rule):
    found = served.prometheus.history(rule["record"], served.begin, served.end)
    assert any(has_value(points) for _, points in found)


def test_demand_is_what_clients_asked_for(served):
    assert len(served.held) == 2
    for demand in served.held:
        assert demand["slow"] == HELD
        assert demand["idle"] == 0  # no replica, and a value
        assert 0 < demand["demo"] <= 2 * CALLERS  # choices count singly


def expectations(count):
    """Expressions, and what they are to give after the load."""
    demo = 'model_name="demo"'
    generate = 'lckv_router_requests_total{method="Generate"'
    return {
        f'sum({generate},{demo},code="OK"}})': count["calls"],
        f'sum({generate},code="INVALID_ARGUMENT"}})': count["invalid"],
        f'sum({generate},code="NOT_FOUND"}})': count["unknown"],
        f'sum({generate},code="UNAVAILABLE"}})': 1,
        # Held, and the one whose deadline came: which of both ends comes first is chance.
        f'sum({generate},code=~"CANCELLED|DEADLINE_EXCEEDED",model_name="slow"}})': HELD + 1,
        'sum(lckv_router_cancelled_total) + sum(lckv_router_rejected_total{reason="deadline_exceeded"})': HELD + 1,
        'sum(lckv_router_rejected_total{reason="invalid_argument"})': count["invalid"],
        f"sum(lckv_router_ttft_seconds_count{{{demo}}})": count["choices"],
        f'sum(lckv_router_tokens_total{{kind="prompt",{demo}}})': count["prompt_tokens"],
        f'sum(lckv_router_tokens_total{{kind="completion",{demo}}})': count["tokens"],
        f"sum(vllm:time_to_first_token_seconds_count{{{demo}}})": count["choices"],
        f"sum(vllm:request_success_total{{{demo}}})": count["choices"],
        f"sum(vllm:prompt_tokens_total{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:prompt_tokens_by_source_total{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:request_prompt_tokens_sum{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:generation_tokens_total{{{demo}}})": count["tokens"],
        f"sum(vllm:request_generation_tokens_sum{{{demo}}})": count["tokens"],
        f"sum(vllm:inter_token_latency_seconds_count{{{demo}}})": count["tokens"] - count["choices"],
        f"sum(vllm:e2e_request_latency_seconds_count{{{demo}}})": count["choices"],
    }


def test_counters_are_what_clients_counted(served):
    wrong = {
        expr: (served.prometheus.value(expr), expected)
        for expr, expected in expectations(served.count).items()
        if served.prometheus.value(expr) != pytest.approx(expected, rel=TOLERANCE)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("title", "legend", "counted"),
    [
        ("Calls per second", None, "calls"),
        ("Tokens per second", None, "tokens"),
        ("Tokens", "prompt", "sequence_prompt_tokens"),
        ("Tokens", "generated", "tokens"),
        ("Rows by what they are for", "generated", "tokens"),
    ],
)
def test_a_panel_over_the_load_adds_up_to_it(served, title, legend, counted):
    """A rate summed over the seconds of the load is what was counted."""
    [panel] = [panel for _, panel in expressions.all_panels() if panel["title"] == title]
    [expr] = [target["expr"] for target in panel["targets"] if legend in (None, target["legendFormat"])]
    expr = expressions.filled_in(expr, monitoring.RATE_INTERVAL, model_name="demo")
    [(_, points)] = served.prometheus.history(expr, served.begin, served.end)
    assert sum(value for _, value in points if value == value) == pytest.approx(
        served.count[counted] - served.earlier[counted], rel=TOLERANCE
    )


# The boards of vLLM's own examples, by what they ask for. {name: labels beside model_name and engine}.
VLLM_GAUGES = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
VLLM_COUNTERS = {
    "vllm:prompt_tokens_total": "",
    "vllm:generation_tokens_total": "",
    "vllm:request_success_total": "finished_reason",
    "vllm:num_preemptions_total": "",
    "vllm:prefix_cache_queries_total": "",
    "vllm:prefix_cache_hits_total": "",
    "vllm:prompt_tokens_by_source_total": "source",
}
VLLM_HISTOGRAMS = [
    "vllm:e2e_request_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:iteration_tokens_total",
]
# What those boards also ask for and we cannot give, and why.
VLLM_ABSENT = {
    "vllm:time_per_output_token_seconds": "older name of vllm:inter_token_latency_seconds",
    "vllm:gpu_cache_usage_perc": "older name of vllm:kv_cache_usage_perc",
    "vllm:cpu_cache_usage_perc": "the host tier holds preempted sequences only: lckv_host_blocks",
    "vllm:num_requests_swapped": "a preempted sequence waits: vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason": "nothing is deferred here: all wait for room",
    "vllm:request_params_n": "a worker sees sequences; how many a request had is the router's to know",
    "vllm:request_prefill_kv_computed_tokens": "vllm:prompt_tokens_by_source_total tells the same",
    "vllm:prompt_tokens_cached_total": "vllm:prompt_tokens_by_source_total tells the same",
    "vllm:external_prefix_cache_queries_total": "no cache outside the replica",
    "vllm:external_prefix_cache_hits_total": "no cache outside the replica",
    "vllm:spec_decode_num_draft_tokens_total": "no speculative decoding",
    "vllm:spec_decode_num_accepted_tokens_total": "no speculative decoding",
    "vllm:lora_requests_info": "no adapters",
    "vllm:mm_cache_queries_total": "text only",
    "vllm:mm_cache_hits_total": "text only",
    "vllm:engine_sleep_state": "a replica does not sleep: it drains and ends",
    "vllm:corrupted_requests_total": "a result that is not a number ends the replica",
}


def vllm_expressions():
    of = '{model_name="demo",engine="0"}'
    window = f"[{monitoring.RATE_INTERVAL}]"
    for name in VLLM_GAUGES:
        yield name + of
    for name, label in VLLM_COUNTERS.items():
        yield f"sum by (model_name{',' * bool(label)}{label}) (rate({name}{of}{window}))"
    for name in VLLM_HISTOGRAMS:
        yield f"histogram_quantile(0.95, sum by (le) (rate({name}_bucket{of}{window})))"
        yield f"sum by (le) (increase({name}_bucket{of}{window}))"
        yield f"rate({name}_sum{of}{window}) / rate({name}_count{of}{window})"
    yield 'vllm:cache_config_info{model_name="demo",block_size!="",num_gpu_blocks!=""}'


@pytest.mark.parametrize("expr", vllm_expressions())
def test_a_board_made_for_vllm_has_data(served, expr):
    found = served.prometheus.history(expr, served.begin, served.end)
    assert any(has_value(points) for _, points in found)
    if "finished_reason" in expr:
        assert {labels["finished_reason"] for labels, _ in found} >= {"stop", "length", "abort"}


def test_what_vllm_has_and_we_do_not_is_documented(served):
    operations = (expressions.ROOT / "deploy/OPERATIONS.md").read_text()
    there = exported(served)
    for name, reason in VLLM_ABSENT.items():
        assert name not in there and f"{name}_bucket" not in there, name
        assert re.search(rf"^\|.*`{name}`.*\| {re.escape(reason)} \|$", operations, re.M), f"{name}: {reason}"


@pytest.mark.parametrize("name", expressions.boards())
def test_panels_are_drawn(served, name):
    board = expressions.boards()[name]
    begin = served.begin - 2
    for old in PICTURES.glob(f"{name}-*.png"):
        old.unlink()
    drawn = draw.draw_board(board, served.prometheus, begin, served.end, PICTURES, name)
    assert len(drawn) == len(expressions.panels(board))
    assert [title for title, num_points in drawn.items() if num_points == 0] == []
    assert len(list(PICTURES.glob(f"{name}-*.png"))) == sum(panel["type"] == "row" for panel in board["panels"])

"""30 minutes of load, simulated, through the shipped demand rule in a real Prometheus and through what the chart tells
HorizontalPodAutoscalers and KEDA."""

import contextlib
import copy
import http.server
import os
import random
import threading

import pytest

import autoscalers
import chart
import expressions
import fleets
import monitoring
import serving

SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
MINUTES = 30
STEPS = MINUTES * 60 // autoscalers.SYNC_SECONDS
# Sequences per second at some minutes; between them in a straight line. Nothing, up, down to nothing, and up again.
LOAD = [(0, 0), (1, 0), (4, 6), (10, 6), (11, 0), (27, 0), (28, 3), (30, 3)]
AGAIN = 27  # the minute when the load comes back
NOISE = 0.5  # of the load, anew for each step; arrivals vary besides
MOST_TURNS = 2
PEAK_REPLICAS = 3  # 6 sequences a second for 20 s each, 32 of them for one replica, and noise
DEMAND = "model_name:lckv_demand:sum"
WAITS = ("--max-ready-wait", "--max-queue-wait")  # the second bounds the first

KEDA = {"by": "keda", "minReplicas": 0, "maxReplicas": 8}
HPA = {"by": "hpa", "minReplicas": 1, "maxReplicas": 8}
VALUES = {
    "models": {
        "demo": {"servedName": "from-zero", "autoscaling": KEDA},
        "kept": {"servedName": "from-one", "source": {"pvc": {"claimName": "checkpoints"}}, "autoscaling": HPA},
    },
    "autoscaling": {"prometheusUrl": "http://prometheus:9090"},
}


class Exporter:
    """Serves `text` as /metrics."""

    def __init__(self):
        self.text = ""
        exporter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(exporter.text.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def arrivals(dice, second, noise):
    """By chance, of as many as LOAD says, times the noise."""
    minute = second / 60
    [rate] = [
        before + (after - before) * (minute - begin) / (end - begin)
        for (begin, before), (end, after) in zip(LOAD, LOAD[1:])
        if begin <= minute < end
    ]
    return sum(dice.random() < rate * noise / 20 for _ in range(20))


class Scene:
    """A model under load, and who scales it by `query`."""

    def __init__(self, name, scaler, query, ready_wait, replicas, seed=SEED):
        self.scaler, self.query = scaler, query
        self.dice = random.Random(seed)
        self.fleet = fleets.Fleet(name, self.dice, ready_wait, replicas)
        self.demands, self.replicas = [], [replicas]

    def pass_step(self, step):
        noise = self.dice.uniform(1 - NOISE, 1 + NOISE)
        for second in range(step * autoscalers.SYNC_SECONDS, (step + 1) * autoscalers.SYNC_SECONDS):
            self.fleet.pass_second(second, arrivals(self.dice, second, noise))

    def decide(self, step, demand):
        now = (step + 1) * autoscalers.SYNC_SECONDS
        self.demands.append(demand)
        self.replicas.append(self.scaler.decide(now, self.replicas[-1], demand))
        self.fleet.scale(now, self.replicas[-1])

    def turns(self):
        """How often the number of replicas changes its direction."""
        steps = [b - a for a, b in zip(self.replicas, self.replicas[1:]) if a != b]
        return sum((a > 0) != (b > 0) for a, b in zip(steps, steps[1:]))

    def of_minutes(self, begin, end):
        first, last = (int(minute * 60) // autoscalers.SYNC_SECONDS for minute in (begin, end))
        return self.replicas[first:last]


def make_scenes(folder):
    documents = chart.render(folder, chart.values_of(chart.SMALL, VALUES))
    [scaled_object] = chart.of_kind(documents, "ScaledObject")
    [pod_autoscaler] = chart.of_kind(documents, "HorizontalPodAutoscaler")
    zero_query, one_query = chart.metric_queries(documents)
    [router] = [spec for name, _, spec in chart.pods(documents) if name.endswith("-router")]
    given = chart.flags(router["containers"][0])
    ready_wait = min(expressions.milliseconds(given[flag]) / 1000 for flag in WAITS)
    hasty = copy.deepcopy(pod_autoscaler)
    hasty["spec"]["behavior"]["scaleDown"] = {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    }
    scenes = [
        Scene("from-zero", autoscalers.Keda(scaled_object), zero_query, ready_wait, 0),
        Scene("from-one", autoscalers.PodAutoscaler.of(pod_autoscaler), one_query, ready_wait, 1),
        # What the replay is to find; of the first, by a load that is known to do it.
        Scene("hasty", autoscalers.PodAutoscaler.of(hasty), one_query.replace("from-one", "hasty"), ready_wait, 1, 1),
        Scene("unseen", autoscalers.Keda(scaled_object), zero_query.replace("from-zero", "unseen"), 0, 0),
    ]
    assert all(f'model_name="{scene.fleet.model}"' in scene.query for scene in scenes)
    return {scene.fleet.model: scene for scene in scenes}


def play(scenes, prometheus, exporter):
    def recorded(step):
        return prometheus.value(f'{DEMAND}{{model_name="clock"}}') == step

    for step in range(STEPS):
        for scene in scenes:
            scene.pass_step(step)
        # The clock tells that what the rule gives is of this step.
        lines = [f'{fleets.RUNNING}{{model_name="clock"}} {step}']
        lines += [line for scene in scenes for line in scene.fleet.metrics()]
        exporter.text = "\n".join(lines) + "\n"
        serving.wait_until(lambda step=step: recorded(step), f"step {step} recorded", monitoring.SCRAPED_SECONDS)
        for scene in scenes:
            scene.decide(step, prometheus.value(scene.query))


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    print(f"seed {SEED}")
    scenes = make_scenes(tmp_path_factory.mktemp("chart"))
    with contextlib.ExitStack() as stack:
        exporter = stack.enter_context(contextlib.closing(Exporter()))
        prometheus = stack.enter_context(contextlib.closing(monitoring.Prometheus(interval="100ms")))
        prometheus.watch("lckv-router", [exporter.address])
        play(list(scenes.values()), prometheus, exporter)
    for name, scene in scenes.items():
        print(f"{name}: {scene.fleet.ended} ended, {scene.fleet.failed} failed; replicas {scene.replicas}")
    return scenes


def test_from_zero_and_back_and_again(replayed):
    scene = replayed["from-zero"]
    assert scene.demands[0] == 0  # no replica, and a value
    assert scene.turns() <= MOST_TURNS
    first = next(step for step, demand in enumerate(scene.demands) if demand > 0)
    assert set(scene.replicas[: first + 1]) == {0} and scene.replicas[first + 1] == 1
    assert max(scene.of_minutes(2, 10)) >= PEAK_REPLICAS
    assert scene.of_minutes(AGAIN - 0.5, AGAIN) == [0, 0]
    assert scene.of_minutes(AGAIN, MINUTES)[-1] >= 1
    assert scene.fleet.failed == 0 and scene.fleet.ended > 0
    # The replicas have caught up with what waited for the first one.
    assert scene.demands[-1] < fleets.SEATS * scene.replicas[-1]


def test_from_one_and_back(replayed):
    scene = replayed["from-one"]
    assert scene.turns() <= MOST_TURNS
    assert max(scene.of_minutes(2, 10)) >= PEAK_REPLICAS
    assert min(scene.replicas) >= 1 and scene.of_minutes(0, AGAIN)[-1] < max(scene.replicas)
    assert scene.fleet.failed == 0 and scene.fleet.ended > 0


def test_without_stabilization_it_turns_too_often(replayed):
    assert replayed["hasty"].turns() > MOST_TURNS


def test_calls_that_do_not_wait_bring_no_replica(replayed):
    """As with the routers' own default, --max-ready-wait 0."""
    scene = replayed["unseen"]
    assert set(scene.replicas) == {0} and scene.fleet.failed > 0

"""Each alert fires when its cause is there, and resolves when it is gone: read from a real Prometheus."""

import concurrent.futures
import time

import pytest

import causes
import expressions
import monitoring
import serving

# Of ranges and `for`s divided by monitoring.FACTOR the longest together take three quarters of a minute.
ALERT_SECONDS = 150
# No alert is seen for so long: more than a turn of the causes that come and go, between two of which it may be silent.
QUIET_SECONDS = 6


class Scene:
    """All causes at once, each with its own model, under one Prometheus."""

    def __init__(self, folder):
        self.prometheus = None
        self.causes = [kind(folder) for kind in causes.ALL]
        try:
            self.prometheus = monitoring.Prometheus()
            with concurrent.futures.ThreadPoolExecutor(len(self.causes)) as pool:
                list(pool.map(lambda cause: cause.start(), self.causes))
            replicas = [replica.metrics_address for cause in self.causes for replica in cause.replicas]
            replicas += [cause.secret.metrics_address for cause in self.causes if isinstance(cause, causes.Files)]
            self.routers = [cause.router.metrics_address for cause in self.causes]
            self.prometheus.watch("lckv-worker", replicas)
            self.prometheus.watch("lckv-router", self.routers)
            self.prometheus.wait_for_scrapes(len(replicas) + len(self.routers), at_least=4)
            self.at_first = self.firing()
            for cause in self.causes:
                cause.begin()
        except BaseException:
            self.close()
            raise

    def firing(self):
        return [alert for alert in self.prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"]

    def fires(self, name, labels):
        return [
            alert
            for alert in self.firing()
            if alert["labels"]["alertname"] == name and labels.items() <= alert["labels"].items()
        ]

    def has_fired(self, name, labels, seconds=3600):
        """Within so many seconds until now."""
        matchers = ",".join(f'{label}="{value}"' for label, value in {"alertname": name, **labels}.items())
        return self.prometheus.query(f'count_over_time(ALERTS{{alertstate="firing",{matchers}}}[{seconds}s])') != []

    def wait_until_resolved(self, name, labels):
        """Since its cause ended, which is now."""
        ended = time.monotonic()
        serving.wait_until(
            lambda: time.monotonic() > ended + QUIET_SECONDS and not self.has_fired(name, labels, QUIET_SECONDS),
            f"{name} resolves",
            ALERT_SECONDS,
        )

    def close(self):
        with concurrent.futures.ThreadPoolExecutor(len(self.causes)) as pool:
            list(pool.map(lambda cause: cause.close(), self.causes))
        if self.prometheus is not None:
            self.prometheus.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = Scene(tmp_path_factory.mktemp("causes"))
    try:
        yield made
    finally:
        made.close()


def test_nothing_fires_without_a_cause(scene):
    # The first scrapes of what has just started may find some of it not up yet.
    assert [alert["labels"] for alert in scene.at_first if alert["labels"]["alertname"] != "LckvNoRouter"] == []


@pytest.mark.parametrize("kind", causes.ALL, ids=lambda kind: kind.__name__.lower())
def test_an_alert_fires_and_resolves(scene, kind):
    [cause] = [cause for cause in scene.causes if isinstance(cause, kind)]
    for name, labels in cause.alerts().items():
        serving.wait_until(lambda: scene.has_fired(name, labels), f"{name} fires", ALERT_SECONDS)
        for alert in scene.fires(name, labels):
            for text in alert["annotations"].values():
                assert "<no value>" not in text and "<error" not in text, text
    for labels in cause.alerts().values():
        for name in cause.silent:
            assert not scene.has_fired(name, labels), name
    cause.end()
    for name, labels in cause.alerts().items():
        scene.wait_until_resolved(name, labels)


def test_no_router_fires_and_resolves(scene):
    """Comes last: the other alerts need their routers."""
    for cause in scene.causes:
        cause.router.kill()
    serving.wait_until(lambda: scene.fires("LckvNoRouter", {}), "LckvNoRouter fires", ALERT_SECONDS)
    router = serving.Router(["127.0.0.1:1"])
    try:
        scene.prometheus.watch("lckv-router", [router.metrics_address])
        scene.wait_until_resolved("LckvNoRouter", {})
    finally:
        router.close()


def test_every_alert_has_a_cause(scene):
    caused = {name for cause in scene.causes for name in cause.alerts()} | {"LckvNoRouter"}
    assert caused == {rule["alert"] for rule in expressions.rules("alerts")}

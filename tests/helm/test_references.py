"""Whatever a manifest names is there."""

import copy

import pytest
import yaml

import chart
import references
import switches


def test_every_reference_resolves(rendered):
    faults = {
        name: found
        for name, documents in rendered.items()
        if (found := references.find_faults(documents, switches.GIVEN))
    }
    assert not faults


# As long as they may be.
NAME, KEY = "n" * 22, "k" * 20
LONG = {
    "a-deployment": {},
    "groups": {"device": "cuda", "tensorParallelSize": 2, "hosts": 2, "replicas": 10},
    "keda": {"autoscaling": {"by": "keda"}},
    "hpa": {"autoscaling": {"by": "hpa"}},
}


@pytest.mark.parametrize("model", LONG)
def test_the_longest_names_fit(tmp_path, model):
    own = {"models": {KEY: {"source": switches.PVC, **LONG[model]}}, "fullnameOverride": NAME}
    tls = {"tls": switches.MANAGED_TLS, "autoscaling": {"prometheusUrl": "http://prometheus:9090"}}
    documents = chart.render(tmp_path, chart.values_of(own, tls, switches.SWITCHES["monitoring"]))
    assert {d["metadata"]["name"] for d in documents} >= {f"{NAME}-router", f"{NAME}-worker-{KEY}-leaders"}
    assert references.find_faults(documents, switches.GIVEN) == []


def is_no_other_models(error, *keys):
    return all(f"models.{key}" in error for key in keys) and "give one of them another key" in error


@pytest.mark.parametrize("suffix", ["0", "7", "07", "0-1", "leaders", "ranks", "ranks-0", "ranks-7", "router", "worker"])
@pytest.mark.parametrize("hosts", [(1, 1), (1, 2), (2, 1), (2, 2)], ids=str)
def test_keys_whose_names_would_meet_are_refused(tmp_path, suffix, hosts):
    keys = ("a", f"a-{suffix}")
    models = {
        key: {"source": switches.PVC, "device": "cuda", "tensorParallelSize": 2, "hosts": number, "replicas": 8}
        for key, number in zip(keys, hosts)
    }
    status, text, error = chart.template(tmp_path, {"models": models})
    meets = {"leaders": hosts[1] == 2, "ranks-0": hosts[0] == 2, "ranks-7": hosts[0] == 2}
    meets |= dict.fromkeys(("0", "7"), hosts == (2, 2))
    if meets.get(suffix):
        assert status != 0 and is_no_other_models(error, *keys), error
    else:
        assert status == 0, error
        documents = [document for document in yaml.safe_load_all(text) if document]
        assert references.find_faults(documents, switches.GIVEN) == []


def change(documents, kind, edit):
    """A copy in which the first document of a kind is edited."""
    changed = copy.deepcopy(documents)
    # Of ConfigMaps the file of models, not a dashboard.
    edit(next(d for d in chart.of_kind(changed, kind) if kind != "ConfigMap" or "models.json" in d["data"]))
    return changed


def drop(path, *keys):
    def edit(document):
        for key in path:
            document = document[key]
        for key in keys:
            document.pop(key)

    return edit


def put(path, value):
    def edit(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


def pod(path):
    return ["spec", "template", "spec", *path]


PLANTED = [
    ("ci-one-host-8-gpus", "Deployment", put(["spec", "selector", "matchLabels", "lckv/model"], "x"), "its own pods"),
    ("ci-one-host-8-gpus", "Service", put(["spec", "selector", "lckv/model"], "x"), "selects no pod"),
    ("ci-one-host-8-gpus", "Service", put(["spec", "ports", 0, "targetPort"], "http"), "has no port http"),
    ("ci-one-host-8-gpus", "PodDisruptionBudget", put(["spec", "selector", "matchLabels", "a"], "x"), "selects no pod"),
    ("ci-one-host-8-gpus", "NetworkPolicy", put(["spec", "ingress", 0, "ports", 0, "port"], "http"), "has the port http"),
    ("ci-one-host-8-gpus", "ServiceMonitor", put(["spec", "endpoints", 0, "port"], "http"), "has the port http"),
    ("ci-one-host-8-gpus", "PodMonitor", put(["spec", "podMetricsEndpoints", 0, "port"], "http"), "and there is"),
    ("ci-one-host-8-gpus", "Deployment", put(pod(["volumes", 0]), {"name": "x"}), "mounts"),
    ("ci-one-host-8-gpus", "ConfigMap", drop(["data"], "models.json"), "is not in ConfigMap"),
    ("ci-one-host-8-gpus", "ConfigMap", put(["data", "models.json"], '{"models": [{"workers": ["a:1"]}]}'), "this address"),
    ("ci-four-hosts-tp16", "ScaledObject", put(["spec", "scaleTargetRef", "kind"], "Deployment"), "is not there"),
    ("ci-four-hosts-tp16", "LeaderWorkerSet", put(["spec", "replicas"], 1), "its number of replicas"),
    ("ci-four-hosts-tp16", "Certificate", put(["spec", "secretName"], "x"), "Secret lckv-router-tls is not there"),
    ("ci-four-hosts-tp16", "ServiceAccount", put(["metadata", "name"], "x"), "ServiceAccount lckv is not there"),
    ("ci-four-hosts-tp16", "LeaderWorkerSet", put(["metadata", "name"], "lckv-worker-huge-leaders"), "is there twice"),
    ("ci-four-hosts-tp16", "LeaderWorkerSet", put(["metadata", "name"], "1"), "is no name of a Service"),
    ("ci-four-hosts-tp16", "ScaledObject", put(["metadata", "name"], "a" * 55), "is too long"),
    ("ci-laptop", "Deployment", put(["metadata", "labels", "a"], "b" * 64), "a cannot be"),
    ("ci-many-small-models", "HorizontalPodAutoscaler", put(["spec", "scaleTargetRef", "name"], "x"), "is not there"),
]  # fmt: skip


@pytest.mark.parametrize("name, kind, edit, fault", PLANTED)
def test_a_planted_fault_is_found(rendered, name, kind, edit, fault):
    # Given secrets would hide one that is missing.
    given = {**switches.GIVEN, "Secret": switches.GIVEN["Secret"] - {"lckv-router-tls"}}
    found = references.find_faults(change(rendered[name], kind, edit), given)
    assert any(fault in line for line in found), found

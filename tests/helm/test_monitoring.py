"""What Prometheus makes of the chart's monitors, and which rules there are."""

import json
import re
import subprocess

import pytest
import yaml

import chart
import switches

ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((chart.ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def targets(folder, endpoint, pods):
    """The labels that remain of each of the pods, as Prometheus itself relabels them; nothing of those it drops."""
    snake = [
        {re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), key): value for key, value in step.items()}
        for step in endpoint["relabelings"]
    ]
    found = [{"targets": [address], "labels": labels} for address, labels in pods.items()]
    (folder / "pods.yaml").write_text(yaml.safe_dump(found))
    config = {
        "scrape_configs": [
            {"job_name": "pods", "file_sd_configs": [{"files": ["pods.yaml"]}], "relabel_configs": snake}
        ]
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [chart.tool("promtool"), "check", "service-discovery", "--timeout=5s", "prometheus.yml", "pods"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    every = json.loads(done.stdout[done.stdout.index("[") :])
    return {one["discoveredLabels"]["__address__"]: one["labels"] for one in every if one["labels"]}


def test_a_pod_made_anew_is_the_same_target_and_one_that_fetches_its_model_is_none(rendered, tmp_path):
    [monitor] = chart.of_kind(rendered["ranks-monitored"], "PodMonitor")
    own = {
        "__meta_kubernetes_pod_name": "lckv-worker-demo-0",
        "__meta_kubernetes_pod_container_port_number": "9091",
        "__meta_kubernetes_pod_label_leaderworkerset_sigs_k8s_io_worker_index": "0",
    }
    phases = {"10.0.0.1:9091": "Running", "10.0.0.2:9091": "Running", "10.0.0.3:9091": "Pending"}
    pods = {address: {**own, "__meta_kubernetes_pod_phase": phase} for address, phase in phases.items()}
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        if endpoint["port"] == "rank-4":  # and those after it, which the other host has
            for labels in pods.values():
                labels["__meta_kubernetes_pod_label_leaderworkerset_sigs_k8s_io_worker_index"] = "1"
        kept = targets(tmp_path, endpoint, pods)
        assert sorted(kept) == ["10.0.0.1:9091", "10.0.0.2:9091"], endpoint["port"]
        for labels in kept.values():
            assert (labels["job"], labels["instance"]) == ("lckv-worker", "lckv-worker-demo-0:9091")


def alerts_of(documents):
    (rule,) = chart.of_kind(documents, "PrometheusRule")
    assert all(group["rules"] for group in rule["spec"]["groups"])
    return [one["alert"] for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one]


def test_alerts_can_be_left_out(rendered, tmp_path):
    assert sorted(alerts_of(rendered["monitoring"])) == sorted(ALERTS)
    # Among them all of one group.
    disabled = ["LckvFileStale", "LckvCertificateExpiring", "LckvQueueStanding"]
    left_out = {"monitoring": {"rules": {"disabled": disabled}}}
    documents = chart.render(tmp_path, chart.values_of(chart.SMALL, switches.SWITCHES["monitoring"], left_out))
    assert sorted(alerts_of(documents)) == sorted(set(ALERTS) - set(disabled))
    assert "model_name:lckv_demand:sum" in yaml.safe_dump_all(chart.of_kind(documents, "PrometheusRule"))


def test_the_schema_knows_every_alert():
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    rules = schema["properties"]["monitoring"]["properties"]["rules"]["properties"]
    assert rules["disabled"]["items"]["enum"] == ALERTS


@pytest.mark.parametrize(
    "names", [["LckvNoSuchAlert"], ["model_name:lckv_demand:sum"], ["LckvFileStale"] * 2, "LckvFileStale"]
)
def test_what_is_no_list_of_alerts_is_refused(tmp_path, names):
    values = chart.values_of(chart.SMALL, {"monitoring": {"rules": {"disabled": names}}})
    status, _, error = chart.template(tmp_path, values)
    assert status != 0 and "/monitoring/rules/disabled" in error

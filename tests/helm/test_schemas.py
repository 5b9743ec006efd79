"""Each manifest fits the schemas of Kubernetes and of others' kinds, strictly."""

import copy
import shutil

import pytest
import yaml

import chart

KINDS = {
    "Certificate", "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "LeaderWorkerSet", "NetworkPolicy", "Pod",
    "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor",
}  # fmt: skip
RULES = """\
groups:
  - name: lckv
    rules:
      - record: model_name:lckv_demand:sum
        expr: sum by (model_name) (lckv_router_queue_depth)
      - alert: NoReplica
        expr: absent(lckv_router_worker_state)
        for: 1m
        annotations: {summary: "{{ $labels.model_name }} has no replica"}
"""


@pytest.fixture(scope="session")
def with_files(tmp_path_factory):
    """What a chart with a file of rules and a dashboard gives."""
    folder = tmp_path_factory.mktemp("chart")
    copied = folder / "lckv"
    shutil.copytree(chart.CHART, copied)
    for kind in ("prometheus", "grafana"):
        shutil.rmtree(copied / "files" / kind, ignore_errors=True)
        (copied / "files" / kind).mkdir(parents=True)
    (copied / "files/prometheus/rules.yaml").write_text(RULES)
    (copied / "files/grafana/fleet.json").write_text('{"title": "{{model_name}}"}\n')
    values = chart.values_of(chart.CI[0], {"monitoring": {k: {"enabled": True} for k in ("rules", "dashboards")}})
    return chart.render(folder, values, chart=copied)


@pytest.fixture(scope="session")
def all_rendered(rendered, with_files):
    return {**rendered, "with-files": with_files}


def test_lint():
    for file in [None, *chart.CI]:
        status, out, error = chart.helm("lint", "--strict", chart.CHART, "--kube-version", chart.NEWEST, *(["--values", file] if file else []))
        assert status == 0, out + error


def test_files_become_rules_and_dashboards(with_files):
    (rule,) = chart.of_kind(with_files, "PrometheusRule")
    assert rule["spec"]["groups"] == yaml.safe_load(RULES)["groups"]
    (dashboard,) = [d for d in chart.of_kind(with_files, "ConfigMap") if "fleet.json" in d["data"]]
    assert dashboard["data"]["fleet.json"] == '{"title": "{{model_name}}"}\n'
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(
    "case, page", [("monitoring", None), ("ci-one-host-8-gpus", None), ("runbook", "https://wiki.example.com/serving")]
)
def test_alerts_link_to_the_runbook_where_it_is_told(rendered, case, page):
    """Without a page, what an alert names is no link: the runbook's place in the source."""
    (rule,) = chart.of_kind(rendered[case], "PrometheusRule")
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one]
    assert len(alerts) > 10
    for alert in alerts:
        anchor = alert["alert"].lower()
        assert alert["annotations"]["runbook"] == f"deploy/OPERATIONS.md#{anchor}"
        assert alert["annotations"].get("runbook_url") == (page and f"{page}#{anchor}")


def test_monitors_give_the_jobs_that_rules_name(all_rendered):
    endpoints = [
        (kind, endpoint)
        for documents in all_rendered.values()
        for kind, field in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints"))
        for monitor in chart.of_kind(documents, kind)
        for endpoint in monitor["spec"][field]
    ]
    assert endpoints
    for kind, endpoint in endpoints:
        job = "lckv-router" if kind == "ServiceMonitor" else "lckv-worker"
        assert {"targetLabel": "job", "replacement": job} in endpoint["relabelings"]


def test_every_kind_is_rendered(all_rendered):
    assert {document["kind"] for documents in all_rendered.values() for document in documents} == KINDS


@pytest.mark.parametrize("kubernetes", chart.KUBERNETES)
def test_every_manifest_is_valid(all_rendered, tmp_path, kubernetes):
    for name, documents in all_rendered.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))
    if kubernetes == chart.NEWEST:
        assert all(chart.is_known_to_newest(d) for documents in all_rendered.values() for d in documents)
    assert {name: found for name, found in chart.validate(tmp_path, kubernetes).items() if found} == {}


def planted(document):
    """A copy with a field that its kind does not have, as deep as there is one to hold it."""
    wrong = copy.deepcopy(document)
    inner = wrong.get("spec", wrong)
    for key in ("template", "leaderWorkerTemplate", "leaderTemplate", "spec", "scaleTargetRef", "issuerRef", "selector"):
        if isinstance(inner.get(key), dict) and not (document["kind"] == "Service"):
            inner = inner[key]
    inner["notAField"] = "x"
    return wrong


@pytest.mark.parametrize("kubernetes", [chart.KUBERNETES[0], chart.NEWEST])
def test_a_planted_field_is_found_in_each_kind(all_rendered, tmp_path, kubernetes):
    examples = {document["kind"]: document for documents in all_rendered.values() for document in documents}
    for kind, document in examples.items():
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(planted(document)))
    found = chart.validate(tmp_path, kubernetes)
    assert {name for name, text in found.items() if "notAField" not in text} == set(), found


def test_a_kind_without_a_schema_is_a_fault(tmp_path):
    unknown = {"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "a"}}
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump(unknown))
    assert chart.validate(tmp_path)["unknown.yaml"]


def test_an_older_kubernetes_is_refused(tmp_path):
    status, _, error = chart.template(tmp_path, chart.SMALL, kubernetes="1.26")
    assert status != 0 and "kubeVersion: >=1.27" in error

"""The chart at the API server that cluster.sh has started: installed, upgraded, and its pods admitted."""

import json
import os
import shutil
import ssl
import urllib.error
import urllib.request

import pytest
import yaml

import chart
import test_upgrades

RESTRICTED = "restricted"


def ask(method, path, body=None):
    """(status, answer) of the API server."""
    request = urllib.request.Request(
        os.environ["LCKV_CLUSTER"] + path,
        method=method,
        data=body and json.dumps(body).encode(),
        headers={"Authorization": "Bearer token", "Content-Type": "application/json"},
    )
    trusting = ssl._create_unverified_context()  # a certificate that the server made for itself
    try:
        with urllib.request.urlopen(request, context=trusting, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def helm(*arguments):
    status, out, error = chart.helm(*arguments)
    assert status == 0, error
    return out


@pytest.fixture(scope="module", autouse=True)
def custom_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(chart.schemas() / "crds", folder / "crds")
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: kinds, version: 0.1.0}")
    helm("install", "kinds", folder)
    namespace = {"metadata": {"name": RESTRICTED, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    assert ask("POST", "/api/v1/namespaces", namespace)[0] == 201


@pytest.mark.parametrize("file", chart.CI, ids=lambda file: file.stem)
def test_install_and_upgrade(tmp_path, file):
    place = ["--namespace", file.stem, "--create-namespace", "--values", file]
    helm("install", "lckv", chart.CHART, *place, "--dry-run=server")
    out = helm("install", "lckv", chart.CHART, *place)
    assert "helm -n" in out and "ImagePullBackOff" in out
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(test_upgrades.LATER))
    later = ["--values", tmp_path / "later.yaml"]
    helm("upgrade", "lckv", test_upgrades.next_version(tmp_path), *place, *later)
    (release,) = json.loads(helm("list", "--namespace", file.stem, "--output", "json"))
    assert (release["chart"], release["revision"], release["status"]) == ("lckv-0.2.0", "2", "deployed")
    helm("rollback", "lckv", "--namespace", file.stem)


def test_turning_an_autoscaler_on_begins_with_one_replica(tmp_path):
    """As deploy/OPERATIONS.md warns."""
    place = ["--namespace", "scaled", "--create-namespace", "--values", tmp_path / "values.yaml"]

    def replicas_after(action, **model):
        values = chart.values_of(chart.SMALL, {"models": {"demo": model}})
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        helm(action, "lckv", chart.CHART, *place)
        status, found = ask("GET", "/apis/apps/v1/namespaces/scaled/deployments/lckv-worker-demo")
        assert status == 200, found
        return found["spec"]["replicas"]

    assert replicas_after("install", replicas=3) == 3
    assert replicas_after("upgrade", autoscaling={"by": "hpa", "minReplicas": 2}) == 1


def test_pods_are_admitted_as_restricted(rendered):
    refused = {}
    for case, documents in rendered.items():
        for name, labels, spec in chart.pods(documents):
            pod = {"metadata": {"generateName": "pod-", "labels": labels}, "spec": {**spec, "restartPolicy": "Always"}}
            status, answer = ask("POST", f"/api/v1/namespaces/{RESTRICTED}/pods?dryRun=All", pod)
            # Neither classes of priority nor of run time are there.
            if status != 201 and "no PriorityClass" not in answer["message"] and "RuntimeClass" not in answer["message"]:
                refused[f"{case}: {name}"] = answer["message"]
    on_hosts = {name for name in refused if name.startswith(("ci-laptop: Deployment/lckv-worker", "host-path: Deployment"))}
    assert all("hostPath" in refused.pop(name) for name in on_hosts)
    assert len(on_hosts) == 2 and not refused

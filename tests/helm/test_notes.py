"""What NOTES.txt tells: commands that wait long enough and have the flags that are needed, and what is missing."""

import re
import shutil

import pytest

import chart
import programs
import switches

OPERATIONS = (chart.ROOT / "deploy/OPERATIONS.md").read_text()
# `helm template` leaves the notes out.
AS_OBJECT = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data:
  notes: {{ tpl (.Files.Get "notes.txt") . | quote }}
"""


# Those of the switches that change what is told.
CASES = ["defaults", "second-model", "tls-given", "client-certificates", "tokens", "init", "slow-init", "no-test"]
CASES += ["one-gpu", "placement", "no-replicas", "two-hosts", "eight-hosts", "hosts-hpa", "hpa", "keda", "keda-init"]
CASES += ["monitoring", "ranks-monitored", "runbook"]


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """{name: (manifests, notes)} of every file in ci and of these switches."""
    folder = tmp_path_factory.mktemp("notes")
    copied = folder / "lckv"
    shutil.copytree(chart.CHART, copied)
    (copied / "templates" / "NOTES.txt").rename(copied / "notes.txt")
    (copied / "templates" / "notes.yaml").write_text(AS_OBJECT)
    found = {}
    for name, values in switches.everything().items():
        if name not in CASES and not name.startswith("ci-"):
            continue
        documents = chart.render(folder, values, chart=copied)
        [said] = [d for d in documents if d["metadata"]["name"] == "notes"]
        documents.remove(said)
        found[name] = documents, said["data"]["notes"]
    return found


def of_component(documents, wanted):
    return [spec for _, labels, spec in chart.pods(documents) if labels["app.kubernetes.io/component"] == wanted]


def test_pods_are_waited_for_as_long_as_they_may_take(notes):
    for case, (documents, said) in notes.items():
        probes = [
            (spec, probe)
            for spec in of_component(documents, "worker")
            if (probe := spec["containers"][0].get("startupProbe"))
        ]
        budget = max(probe["periodSeconds"] * probe["failureThreshold"] for _, probe in probes)
        [given] = re.findall(r"wait pod .* --timeout=(\d+)s", said)
        fetched = any("initContainers" in spec for spec, _ in probes)
        assert int(given) >= budget + 300 + (1800 if fetched else 0), case
    assert "--timeout=8130s" in notes["slow-init"][1]


def test_generations_are_waited_for_longer_than_they_wait(notes):
    for case, (documents, said) in notes.items():
        tests = of_component(documents, "test")
        limits = [int(chart.flags(spec["containers"][0])["--timeout"].removesuffix("s")) for spec in tests]
        found = re.findall(r"helm .* test .* --timeout (\d+)s", said)
        assert [int(limit) > max(limits) + 120 for limit in found] == ([True] if tests else []), case


def test_the_generation_that_is_proposed_has_what_the_routers_ask_for(notes):
    known, _ = programs.read_help("lckv", "generate")
    seen = set()
    for case, (documents, said) in notes.items():
        [flags] = re.findall(r"# then: lckv generate (.*) TEXT$", said, re.M)
        given = set(re.findall(r"--[a-z-]+", flags))
        assert given <= set(known), case
        [router] = of_component(documents, "router")
        asked = chart.flags(router["containers"][0])
        assert ("--tls-ca" in given) == ("--tls-server-name" in given) == ("--tls-cert" in asked), case
        assert ("--tls-cert" in given) == ("--tls-client-ca" in asked), case
        assert ("--token-file" in given) == ("--tokens" in asked), case
        [models] = [d["data"]["models.json"] for d in chart.of_kind(documents, "ConfigMap") if "models.json" in d["data"]]
        assert ("--model" in given) == (models.count('"name"') > 1), case
        seen |= given
    assert seen >= {"--model", "--tls-ca", "--tls-cert", "--token-file"}


def test_the_readme_waits_as_long_as_the_notes(notes):
    [given] = re.findall(r"wait pod .* --timeout=(\d+)s", notes["defaults"][1])
    [minutes] = re.findall(r"kubectl wait pod .* --timeout=(\d+)m$", (chart.ROOT / "README.md").read_text(), re.M)
    assert int(given) <= int(minutes) * 60


def test_logs_are_read_past_a_pod_that_has_none(notes):
    for case, (_, said) in notes.items():
        assert len(re.findall(r"logs -l \S+ .*--ignore-errors$", said, re.M)) == 1, case
    assert "logs -l app.kubernetes.io/instance=lckv --tail=2 --prefix --ignore-errors" in OPERATIONS


def test_groups_that_are_made_anew_are_told_where_there_are_some(notes):
    """Their pods, whose last line it is, go before anybody can ask them."""
    seen = set()
    for case, (documents, said) in notes.items():
        groups = {d["metadata"]["name"] for d in chart.of_kind(documents, "LeaderWorkerSet")}
        templates = [d["spec"]["leaderWorkerTemplate"] for d in chart.of_kind(documents, "LeaderWorkerSet")]
        policies = {template["restartPolicy"] for template in templates}
        events = re.findall(r"get events --field-selector reason=(\w+)$", said, re.M)
        assert policies == set(events), case
        assert set(re.findall(r"logs -f (\S+)-0 ", said)) <= groups, case
        assert ("LeaderWorkerSet 0.6 or later" in said) == bool(groups), case
        seen |= policies
    assert seen == {"RecreateGroupOnPodRestart"} and "RecreateGroupOnPodRestart" in OPERATIONS


def has_no_room_for_another(workload):
    spec = workload["spec"]
    if workload["kind"] == "Deployment":
        return spec["strategy"]["rollingUpdate"]["maxSurge"] == 0
    return spec["rolloutStrategy"]["rollingUpdateConfiguration"]["maxSurge"] == 0


def test_the_gap_of_a_single_replica_is_told_with_the_wait_of_new_calls(notes):
    seen = set()
    for case, (documents, said) in notes.items():
        least = {}
        for kind, field in (("HorizontalPodAutoscaler", "minReplicas"), ("ScaledObject", "minReplicaCount")):
            least |= {d["spec"]["scaleTargetRef"]["name"]: d["spec"][field] for d in chart.of_kind(documents, kind)}
        expected = {
            workload["metadata"]["labels"]["lckv/model"]
            for kind in ("Deployment", "LeaderWorkerSet")
            for workload in chart.of_kind(documents, kind)
            if has_no_room_for_another(workload)
            and (workload["metadata"]["name"] in least or workload["spec"]["replicas"] == 1)
            and least.get(workload["metadata"]["name"], 1) <= 1
        }
        found = dict(re.findall(r"^(\S+): while it has one replica.*\n.*--max-ready-wait \((.*)\)", said, re.M))
        assert set(found) == expected, case
        [router] = of_component(documents, "router")
        assert set(found.values()) <= {chart.flags(router["containers"][0])["--max-ready-wait"]}, case
        seen |= {(bool(chart.of_kind(documents, "LeaderWorkerSet")), bool(expected))}
    assert seen == {(groups, told) for groups in (True, False) for told in (True, False)}


LACKING = ("nothing here records", "nothing scales", "LckvNoRouter never ends", "adds them up")


def test_what_autoscalers_and_rules_lack_is_told(notes):
    seen = set()
    for case, (documents, said) in notes.items():
        scaled, rules, monitors = (
            any(chart.of_kind(documents, kind) for kind in kinds)
            for kinds in (("HorizontalPodAutoscaler", "ScaledObject"), ["PrometheusRule"], ["ServiceMonitor"])
        )
        boards = any("-dashboard-" in d["metadata"]["name"] for d in chart.of_kind(documents, "ConfigMap"))
        told = {text for text in LACKING if text in said}
        expected = {"nothing here records"} if scaled and not rules else set()
        expected |= {"nothing scales"} if scaled and not monitors else set()
        expected |= {"LckvNoRouter never ends"} if rules and not monitors else set()
        expected |= {"adds them up"} if scaled or rules or boards else set()
        assert told == expected, case
        # What is shipped as an example works.
        assert told <= {"adds them up"} or not case.startswith("ci-"), case
        seen |= told
    assert len(seen) == 4


def test_an_init_container_that_reaches_nothing_is_pointed_out(notes):
    warned = {case for case, (_, said) in notes.items() if "reaches name servers alone" in said}
    assert warned == {"init", "slow-init", "keda-init"}  # ci-many-small-models lets it through

"""What NOTES.txt tells: commands that wait long enough and have the flags that are needed, and what is missing."""

import re
import shutil

import pytest

import chart
import programs
import switches

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


def test_an_init_container_that_reaches_nothing_is_pointed_out(notes):
    warned = {case for case, (_, said) in notes.items() if "reaches name servers alone" in said}
    assert warned == {"init", "slow-init"}  # ci-many-small-models lets it through

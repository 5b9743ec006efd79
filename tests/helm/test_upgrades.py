"""An upgrade changes no field that Kubernetes keeps as it was.

What those fields are in each file of ci is kept in immutable.yaml, so that a chart can be held to the one before it.
`test_upgrades.py --write` writes it anew: for objects that are new, or where a release says that there is no upgrade to
it."""

import copy
import pathlib
import shutil
import sys
import tempfile

import yaml

import chart

KEPT = pathlib.Path(__file__).with_name("immutable.yaml")

# By kind, what the API refuses to change, or what would lose its pods.
IMMUTABLE = {
    "Deployment": [["spec", "selector"]],
    "LeaderWorkerSet": [["spec", "leaderWorkerTemplate", "size"], ["spec", "networkConfig"]],
    "StatefulSet": [["spec", "selector"], ["spec", "serviceName"], ["spec", "volumeClaimTemplates"]],
    "Service": [["spec", "clusterIP"], ["spec", "selector"], ["spec", "type"]],
    "PodDisruptionBudget": [["spec", "selector"]],
}


def fields(documents):
    """{API version, kind and name: {path: value}} of the kinds above."""
    found = {}
    for document in documents:
        if document["kind"] not in IMMUTABLE:
            continue
        values = found["/".join((document["apiVersion"], document["kind"], document["metadata"]["name"]))] = {}
        for path in IMMUTABLE[document["kind"]]:
            value = document
            for key in path:
                value = value.get(key, {})
            values[".".join(path)] = value
    return found


def fields_of_ci(folder):
    return {file.stem: fields(chart.render(folder, chart.values_of(file))) for file in chart.CI}


def changed(before, after):
    """What of `before` is another in `after`, or is not there."""
    return {
        f"{case}: {name}": (values, after.get(case, {}).get(name))
        for case, objects in before.items()
        for name, values in objects.items()
        if after.get(case, {}).get(name) != values
    }


def next_version(folder):
    """A copy of the chart as its next version."""
    copied = folder / "next"
    shutil.copytree(chart.CHART, copied)
    text = (copied / "Chart.yaml").read_text()
    (copied / "Chart.yaml").write_text(text.replace("0.1.0", "0.2.0"))
    return copied


LATER = {
    "images": {"router": {"tag": "later"}, "workerCpu": {"tag": "later"}, "workerCuda": {"tag": "later"}},
    "modelDefaults": {"flags": {"max-num-seqs": 32}, "drainTimeoutSeconds": 45, "podLabels": {"team": "b"}},
    "router": {"replicas": 4, "flags": {"routing-policy": "least-loaded"}, "podLabels": {"team": "b"}},
    "log": {"level": "debug"},
}


def test_two_versions_differ_in_no_immutable_field(tmp_path):
    later_chart = next_version(tmp_path)
    for file in chart.CI:
        before = chart.render(tmp_path, chart.values_of(file))
        after = chart.render(tmp_path, chart.values_of(file, LATER), chart=later_chart)
        assert before != after
        assert fields(before) == fields(after), file.name


def test_immutable_fields_are_those_of_the_chart_before(tmp_path):
    kept, now = yaml.safe_load(KEPT.read_text()), fields_of_ci(tmp_path)
    assert changed(kept, now) == {}, "these objects could not be upgraded, or would lose their pods"
    assert changed(now, kept) == {}, "test_upgrades.py --write, for what is new"


def test_a_field_that_differs_is_found():
    kept = yaml.safe_load(KEPT.read_text())
    seen = set()
    for case, objects in kept.items():
        for name, values in objects.items():
            for path in values:
                other = copy.deepcopy(kept)
                other[case][name][path] = {"other": "x"}
                assert list(changed(kept, other)) == [f"{case}: {name}"]
                seen.add((name.split("/")[-2], path))
        other = copy.deepcopy(kept)
        other[case].pop(next(iter(objects)))
        assert len(changed(kept, other)) == 1 and changed(other, kept) == {}
    # The chart has no StatefulSet.
    assert seen == {(k, ".".join(path)) for k, paths in IMMUTABLE.items() for path in paths if k != "StatefulSet"}


def test_a_selector_with_a_version_is_found(tmp_path):
    later_chart = next_version(tmp_path)
    names = later_chart / "templates" / "_names.tpl"
    line = "app.kubernetes.io/instance: {{ .root.Release.Name }}\n"
    names.write_text(names.read_text().replace(line, line + "version: {{ .root.Chart.AppVersion }}\n"))
    before = chart.render(tmp_path, chart.SMALL)
    after = chart.render(tmp_path, chart.SMALL, chart=later_chart)
    assert fields(before) != fields(after)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], "valid: --write"
    with tempfile.TemporaryDirectory() as place:
        KEPT.write_text(yaml.safe_dump(fields_of_ci(pathlib.Path(place)), width=120))

"""Values that cannot work are refused, with a message that says where and what."""

import json

import pytest
import yaml

import chart


def of_model(**fields):
    return {"models": {"demo": fields}}


def long_groups(**fields):
    """With names as long as they may be."""
    model = {"source": {"pvc": {"claimName": "c"}}, "device": "cuda", "tensorParallelSize": 2, "hosts": 2, **fields}
    return {"fullnameOverride": "n" * 22, "models": {"k" * 20: model}}


# (values laid over a chart that works, where, what) that values.schema.json alone refuses.
REFUSED_BY_SCHEMA = [
    ({"replicaCount": 2}, "at ''", "'replicaCount' not allowed"),
    (of_model(replica=2), "/models/demo", "'replica' not allowed"),
    (of_model(replicas=-1), "/models/demo/replicas", "minimum: got -1, want 0"),
    (of_model(replicas="two"), "/models/demo/replicas", "got string, want integer"),
    (of_model(device="gpu"), "/models/demo/device", "must be one of 'cpu', 'sim', 'cuda'"),
    (of_model(tensorParallelSize=0), "/models/demo/tensorParallelSize", "minimum: got 0, want 1"),
    (of_model(hosts=1.5), "/models/demo/hosts", "got number, want integer"),
    (of_model(flags={"max-num-sequences": 4}), "/models/demo/flags", "'max-num-sequences' not allowed"),
    (of_model(flags={"model": "/x"}), "/models/demo/flags", "'model' not allowed"),
    (of_model(flags={"kv-cache-memory": "4Gi"}), "/models/demo/flags/kv-cache-memory", "does not match pattern"),
    (of_model(flags={"block-size": 24}), "/models/demo/flags/block-size", "must be one of 1, 2, 4"),
    (of_model(flags={"gpu-memory-utilization": 90}), "/gpu-memory-utilization", "maximum: got 90, want 1"),
    (of_model(flags={"cpu-offload-gb": "8GiB"}), "/models/demo/flags/cpu-offload-gb", "got string, want number"),
    (of_model(flags={"step-timeout": 60}), "/models/demo/flags/step-timeout", "got number, want string"),
    (of_model(drainTimeoutSeconds="2m"), "/models/demo/drainTimeoutSeconds", "got string, want integer"),
    (of_model(source={"hostPath": {"path": "/x"}}), "/models/demo/source", "maxProperties: got 2, want 1"),
    (of_model(source={"pvc": {"folder": "/x"}}), "/models/demo/source/pvc/folder", "does not match pattern"),
    (of_model(autoscaling={"by": "both"}), "/models/demo/autoscaling/by", "must be one of 'none', 'hpa', 'keda'"),
    (of_model(resources={"limits": {"memory": "much"}}), "/resources/limits/memory", "does not match pattern"),
    (of_model(env={"A B": "1"}), "", "'A B' does not match pattern"),
    (of_model(env={"A": 1}), "/models/demo/env/A", "got number, want string"),
    (of_model(fsGroup=0), "/models/demo/fsGroup", "minimum: got 0, want 1"),
    (of_model(gpuResource="gpu"), "/models/demo/gpuResource", "does not match pattern"),
    ({"models": {"Demo_2": {}}}, "at ''", "'Demo_2' does not match pattern"),
    ({"router": {"replicas": 0}}, "/router/replicas", "minimum: got 0, want 1"),
    ({"router": {"flags": {"routing-policy": "random"}}}, "/routing-policy", "must be one of 'prefix-affinity'"),
    ({"router": {"flags": {"shutdown-grace": "9s"}}}, "/router/flags", "'shutdown-grace' not allowed"),
    ({"router": {"service": {"port": 70000}}}, "/router/service/port", "maximum: got 70,000, want 65,535"),
    ({"images": {"router": {"digest": "latest"}}}, "/images/router/digest", "does not match pattern"),
    ({"log": {"format": "xml"}}, "/log/format", "must be one of 'text', 'json'"),
    ({"listenAddress": "127.0.0.1"}, "/listenAddress", "must be one of '0.0.0.0', '::'"),
    ({"tls": {"clients": {"by": "secret"}}}, "/tls/clients/secret", "minLength: got 0, want 1"),
    ({"tls": {"workers": {"by": "certManager"}}}, "/tls/workers/issuer", "missing properties 'name', 'kind'"),
    ({"tls": {"ranks": True}}, "/tls/workers/by", "must be one of 'secret', 'certManager'"),
    ({"tls": {"clients": {"clientCertificates": True}}, "test": {"clientSecret": "c"}}, "/tls/clients/clientCertificates", "must be false"),
    ({"tokens": {"secret": "t"}}, "/test/tokenSecret", "minLength: got 0, want 1"),
    ({"tenants": {"default": {"requests": 1}}}, "/tenants/default", "'requests' not allowed"),
    ({"fullnameOverride": "a" * 23}, "/fullnameOverride", "does not match pattern"),
    ({"models": {"b": {"source": {"init": {"image": "a", "timeoutSeconds": "1h"}}}}}, "/init/timeoutSeconds", "want integer"),
    ({"networkPolicy": {"dnsAddresses": ["10.0.0.0/8"]}}, "/networkPolicy/dnsAddresses/0", "does not match pattern"),
    ({"networkPolicy": {"dnsPorts": []}}, "/networkPolicy/dnsPorts", "minItems: got 0, want 1"),
    ({"networkPolicy": {"dnsPorts": [70000]}}, "/networkPolicy/dnsPorts/0", "maximum: got 70,000, want 65,535"),
    ({"monitoring": {"rules": {"runbookUrl": "deploy/OPERATIONS.md"}}}, "/rules/runbookUrl", "does not match pattern"),
    ({"monitoring": {"rules": {"runbookUrl": "https://a.example/b#c"}}}, "/rules/runbookUrl", "does not match pattern"),
]
# That only templates can tell.
REFUSED_BY_TEMPLATES = [
    ({"models": None}, "models is empty: name at least one"),
    ({"models": {"other": {}}}, "models.other.source: give exactly one of pvc, hostPath and init, not 0"),
    (of_model(tensorParallelSize=6, hosts=4), "tensorParallelSize 6 cannot be shared out to 4 hosts"),
    (of_model(device="sim", tensorParallelSize=2, hosts=2), "hosts must be 1"),
    (
        of_model(device="cuda", tensorParallelSize=2, gpuResource="nvidia.com/mig-1g.18gb"),
        "nvidia.com/mig-1g.18gb cannot exchange with another one",
    ),
    (
        of_model(device="cuda", tensorParallelSize=4, resources={"requests": {"nvidia.com/gpu": 1}}),
        "models.demo.resources.requests: nvidia.com/gpu is 1, but a pod has 4 rank(s), each with one",
    ),
    (of_model(device="cuda", resources={"requests": {"nvidia.com/gpu": 0}}), "nvidia.com/gpu is 0, but a pod has 1"),
    (
        of_model(device="cuda", tensorParallelSize=4, hosts=2, resources={"limits": {"nvidia.com/gpu": "4"}}),
        "models.demo.resources.limits: nvidia.com/gpu is 4, but a pod has 2 rank(s), each with one",
    ),
    (of_model(env={"LCKV_MODEL": "/x"}), "models.demo.env: LCKV_MODEL would be read as a flag: give it in flags"),
    (of_model(exclusiveTopology="rack"), "exclusiveTopology is for replicas of several hosts: hosts is 1"),
    (of_model(autoscaling={"by": "hpa", "minReplicas": 5, "maxReplicas": 2}), "minReplicas 5 exceeds maxReplicas 2"),
    (of_model(autoscaling={"by": "hpa", "minReplicas": 0}), "minReplicas 0 needs keda"),
    (of_model(podLabels={"lckv/model": "x"}), "models.demo.podLabels: pods are selected by lckv/model"),
    ({"router": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "router.podLabels: pods are selected by app."),
    (of_model(autoscaling={"by": "hpa"}, servedName="acme/demo"), "cannot be a label's value"),
    (of_model(autoscaling={"by": "hpa"}, servedName="a" * 64), "cannot be a label's value"),
    (of_model(autoscaling={"by": "keda"}), "give autoscaling.prometheusUrl too"),
    ({"models": {"b": {"source": {"pvc": {"claimName": "c"}}, "servedName": "demo"}}}, "have one servedName"),
    ({"networkPolicy": {"dns": [], "dnsAddresses": []}}, "networkPolicy: dns and dnsAddresses are both empty"),
    (long_groups(replicas=11), f'"{"n" * 22}-worker-{"k" * 20}-10" has more than 52 characters'),
    (long_groups(autoscaling={"by": "hpa", "maxReplicas": 101}), f'"{"n" * 22}-worker-{"k" * 20}-100" has more than 52'),
]


@pytest.mark.parametrize("values, where, what", REFUSED_BY_SCHEMA)
def test_schema_refuses(tmp_path, values, where, what):
    status, _, error = chart.template(tmp_path, chart.values_of(chart.SMALL, values))
    assert status != 0
    assert "don't meet the specifications of the schema" in error
    # Conditions and names are announced by a line of their own.
    said = [line for line in error.splitlines() if "- at '" in line]
    said = [line for line in said if "'allOf' failed" not in line and "invalid propertyName" not in line]
    assert len(said) == 1 and where in said[0] and what in said[0], error


@pytest.mark.parametrize("values, what", REFUSED_BY_TEMPLATES)
def test_templates_refuse(tmp_path, values, what):
    status, _, error = chart.template(tmp_path, chart.values_of(chart.SMALL, values))
    assert status != 0
    assert what in error
    assert len(error.strip().splitlines()) <= 3, error


@pytest.mark.parametrize(
    "release, what",
    [
        ("a" * 53, "give a shorter fullnameOverride"),
        ("1st", '"1st-lckv" cannot name a Service: give a fullnameOverride of a-z'),
        ("a.b", '"a.b-lckv" cannot name a Service: give a fullnameOverride'),
    ],
)
def test_a_release_name_that_cannot_be_part_of_names_is_refused(tmp_path, release, what):
    (tmp_path / "values.yaml").write_text("models: {a: {source: {pvc: {claimName: c}}}}")
    status, _, error = chart.helm(
        "template", release, chart.CHART, "--kube-version", chart.NEWEST, "--values", tmp_path / "values.yaml"
    )
    assert status != 0 and what in error and len(error.strip().splitlines()) <= 3, error


def open_objects(schema, path):
    """Where the schema lets through keys that it does not know. Conditions only narrow what is known."""
    if isinstance(schema, list):
        schema = dict(enumerate(schema))
    if not isinstance(schema, dict):
        return
    if "properties" in schema and schema.get("additionalProperties") is not False:
        yield path
    for key, inner in schema.items():
        if key not in ("if", "then", "allOf"):
            yield from open_objects(inner, f"{path}/{key}")


def test_the_schema_knows_every_key():
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    assert list(open_objects(schema, "")) == []


def test_defaults_are_what_the_schema_lists():
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    assert set(values["modelDefaults"]) == set(schema["definitions"]["model"]["properties"])
    assert set(values["router"]) == set(schema["properties"]["router"]["properties"])

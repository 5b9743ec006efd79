"""Values that turn each switch of the chart, to be laid over a chart that works."""

import chart

PVC = {"pvc": {"claimName": "checkpoints", "folder": "a/b"}}
GIVEN_TLS = {
    "clients": {"by": "secret", "secret": "clients-tls"},
    "workers": {"by": "secret", "routerSecret": "router-tls", "workerSecret": "worker-tls", "serverName": "worker"},
}
MANAGED_TLS = {
    "clients": {"by": "certManager", "issuer": {"name": "public", "kind": "ClusterIssuer"}, "dnsNames": ["a.example"]},
    "workers": {"by": "certManager", "issuer": {"name": "internal", "kind": "Issuer"}},
}
ON_SMALL_NODES = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "size", "operator": "In", "values": ["small"]}]}]
    }
}
# What users are said to have made themselves, by kind.
GIVEN = {
    "Secret": {
        "clients-tls", "router-tls", "worker-tls", "tokens", "test-token", "test-client", "bucket",
        "lckv-clients-tls", "lckv-router-tls", "lckv-worker-tls", "lckv-tokens", "lckv-test-token",
    },
    "PersistentVolumeClaim": {"checkpoints"},
    "ServiceAccount": {"serving"},
}  # fmt: skip


def model(**fields):
    return {"models": {"demo": fields}}


def spread_over(hosts, **fields):
    return model(device="cuda", tensorParallelSize=8, hosts=hosts, **fields)


SWITCHES = {
    "defaults": {},
    "another-name": {"fullnameOverride": "serve"},
    "images": {
        "images": {
            "prefix": "images.example.net:5000/our_serving",
            "pullPolicy": "Always",
            "pullSecrets": ["bucket"],
            "router": {"digest": "sha256:" + "0" * 64},
            "workerCpu": {"tag": "1.2"},
        }
    },
    "several-replicas": {"router": {"replicas": 5}, **model(replicas=3)},
    "served-name": model(servedName="acme/model-8b"),
    "no-folder": {"models": {"demo": {"source": {"pvc": {"claimName": "checkpoints", "folder": ""}}}}},
    "no-replicas": {"models": {"other": {"source": PVC, "replicas": 0}}},
    "second-model": {"models": {"other": {"source": PVC, "servedName": "acme/other"}}},
    "simulated": model(device="sim", tensorParallelSize=8, flags={"sim-device": "h100"}),
    "cpu-ranks": model(tensorParallelSize=4, resources={"limits": {"cpu": "6500m"}}),
    "one-gpu": model(device="cuda"),
    "eight-gpus": model(device="cuda", tensorParallelSize=8, shmSize="8Gi", resources={"limits": {"memory": "64Gi"}}),
    "gpus-said-twice": model(
        device="cuda",
        tensorParallelSize=2,
        resources={"requests": {"nvidia.com/gpu": 2}, "limits": {"nvidia.com/gpu": "2"}},
    ),
    "volume-group": model(fsGroup=2000),
    "library-variables": model(env={"NCCL_DEBUG": "INFO", "OMP_PROC_BIND": "true"}),
    "fetched-by-two-hosts": {
        "models": {
            "fetched": {
                "source": {"init": {"image": "fetch:1", "timeoutSeconds": 900}},
                "device": "cuda", "tensorParallelSize": 8, "hosts": 2,
            }
        }
    },
    "racks": spread_over(2, exclusiveTopology="topology.kubernetes.io/rack"),
    "mig": model(device="cuda", gpuResource="nvidia.com/mig-1g.18gb"),
    "two-hosts": spread_over(2, replicas=2),
    "eight-hosts": spread_over(8),
    "hosts-tls": {**spread_over(2), "tls": {**GIVEN_TLS, "ranks": True}},
    "flags": {
        **model(flags={"max-num-batched-tokens": 16777216, "prefill-tolerance": 0.0001, "enable-prefix-caching": False}),
        "router": {"flags": {"max-session-age": "1h30m", "max-queue": 0}},
    },
    "times": {
        "router": {"shutdownDelaySeconds": 0, "shutdownGraceSeconds": 0},
        **model(drainTimeoutSeconds=0, startTimeoutSeconds=7201),
    },
    "placement": {
        "router": {
            "nodeSelector": {"kind": "small"},
            "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"}],
            "affinity": {"podAntiAffinity": {}, "nodeAffinity": ON_SMALL_NODES},
            "priorityClassName": "high",
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
        },
        **model(
            device="cuda",
            nodeSelector={"nvidia.com/gpu.product": "NVIDIA-H200"},
            tolerations=[{"operator": "Exists"}],
            affinity={"nodeAffinity": {}},
            priorityClassName="high",
            runtimeClassName="nvidia",
            podLabels={"team": "a"},
            podAnnotations={"note": "b"},
        ),
    },
    "hpa": model(autoscaling={"by": "hpa", "minReplicas": 2}),
    "keda": {
        **model(autoscaling={"by": "keda", "minReplicas": 0}, servedName='acme/a'),
        "autoscaling": {"prometheusUrl": "http://prometheus:9090"},
    },
    "keda-init": {
        "models": {
            "fetched": {"source": {"init": {"image": "fetch:1"}}, "autoscaling": {"by": "keda", "minReplicas": 0}}
        },
        "autoscaling": {"prometheusUrl": "http://prometheus:9090"},
    },
    "hosts-hpa": spread_over(2, autoscaling={"by": "hpa"}),
    "log": {"log": {"level": "debug", "format": "text"}, "listenAddress": "::"},
    "service": {"router": {"service": {"type": "LoadBalancer", "port": 443, "annotations": {"internal": "true"}}}},
    "account": {"serviceAccount": {"name": "serving"}},
    "account-annotations": {"serviceAccount": {"annotations": {"role": "reader"}}},
    "tls-given": {"tls": GIVEN_TLS},
    "tls-managed": {"tls": MANAGED_TLS},
    "tls-clients-alone": {"tls": {"clients": GIVEN_TLS["clients"]}},
    "tls-workers-alone": {"tls": {"workers": MANAGED_TLS["workers"]}},
    "client-certificates": {
        "tls": {"clients": {**GIVEN_TLS["clients"], "clientCertificates": True}},
        "test": {"clientSecret": "test-client"},
    },
    "tokens": {"tokens": {"secret": "tokens", "key": "all.json"}, "test": {"tokenSecret": "test-token"}},
    "tenants": {"tenants": {"default": {"concurrent_requests": 8}, "tenants": {"a b": {"tokens_per_minute": 123456789}}}},
    "no-policy": {"networkPolicy": {"enabled": False}},
    "policy": {
        "networkPolicy": {
            "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "prometheus": [],
            "workerEgress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}],
        }
    },
    "dns-addresses": {"networkPolicy": {"dnsAddresses": ["10.96.0.10", "fd00:10:96::a"]}},
    "dns-ports": {"networkPolicy": {"dnsPorts": [53, 5353]}},
    "no-dns-addresses": {"networkPolicy": {"dnsAddresses": []}},
    "monitoring": {
        "monitoring": {
            "monitors": {"enabled": True, "labels": {"release": "p"}},
            "rules": {"enabled": True, "labels": {"release": "p"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "LCKV"}},
        }
    },
    "ranks-monitored": {**spread_over(2), "monitoring": {"monitors": {"enabled": True}}},
    "runbook": {"monitoring": {"rules": {"enabled": True, "runbookUrl": "https://wiki.example.com/serving"}}},
    "no-test": {"test": {"enabled": False}},
}
# A null takes away what lies below.
SOURCES = {
    "host-path": {"hostPath": {"path": "/var/models"}},
    "init": {
        "init": {
            "image": "fetch:1",
            "command": ["fetch"],
            "args": ["--to", "/model"],
            "env": [{"name": "A", "value": "b"}],
            "envFrom": [{"secretRef": {"name": "bucket"}}],
            "resources": {"limits": {"cpu": 1}},
            "sizeLimit": "20Gi",
        }
    },
    "slow-init": {"init": {"image": "fetch:1", "timeoutSeconds": 7200}},
}


def everything():
    """{name: values} of each file in ci, and of each switch alone."""
    all_values = {f"ci-{file.stem}": chart.values_of(file) for file in chart.CI}
    for name, values in SWITCHES.items():
        all_values[name] = chart.values_of(chart.SMALL, values)
    for name, source in SOURCES.items():
        all_values[name] = {"models": {"demo": {"source": source}}}
    return all_values

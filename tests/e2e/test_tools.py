"""Tools that are not ours: grpcurl, promtool, and Prometheus' text format."""

import json
import shutil
import subprocess
import xml.etree.ElementTree

import pytest

import api
import serving


def grpcurl(address, *arguments, data=None):
    ran = subprocess.run(
        ["grpcurl", "-plaintext", "-max-time", "20"]
        + (["-d", json.dumps(data)] if data is not None else [])
        + [address, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_reflection_lists_and_describes(demo):
    listed = grpcurl(demo.router.address, "list").split()
    assert {"lckv.v1.Inference", "lckv.v1.Models", "lckv.v1.Admin"} <= set(listed)
    described = grpcurl(demo.router.address, "describe", "lckv.v1.GenerateRequest")
    assert "PrefillMode prefill_mode = 14" in described


def test_generate_through_reflection(demo):
    data = {"text": "Once", "stopping": {"max_new_tokens": 3, "ignore_eos": True}}
    printed = grpcurl(demo.router.address, "lckv.v1.Inference/Generate", data=data)
    assert '"started"' in printed and '"REASON_MAX_NEW_TOKENS"' in printed


def test_health_of_each_service(demo):
    services = ["", "liveness", "readiness", "lckv.v1.Inference", "lckv.v1.Models", "lckv.v1.Admin"]
    for service in services:
        printed = grpcurl(
            demo.router.health_address, "grpc.health.v1.Health/Check", data={"service": service}
        )
        assert json.loads(printed)["status"] == "SERVING", service
    for service in ("", "liveness", "readiness"):
        printed = grpcurl(
            demo.workers[0].health_address, "grpc.health.v1.Health/Check", data={"service": service}
        )
        assert json.loads(printed)["status"] == "SERVING", service


def findings(text):
    ran = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    return [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def warm(demo):
    """Every series has seen a request."""
    for _ in range(4):
        demo.client.generate(api.request(text="Once", stopping={"max_new_tokens": 4}))
    return demo


def test_router_metrics_are_clean(warm):
    assert findings(serving.scrape(warm.router.metrics_address)) == []


def test_worker_metrics_have_only_the_findings_of_their_names(warm):
    for line in findings(serving.scrape(warm.workers[0].metrics_address)):
        is_colon = "vllm:" in line and "should not contain ':'" in line
        assert is_colon or line.startswith("vllm:iteration_tokens_total"), line


def test_client_lists(demo):
    listed = serving.run("lckv", "models", "--json", "--router", demo.router.address)
    (model,) = json.loads(listed.stdout)["models"]
    assert model["num_layers"] == 8 and model["num_cached_layers"] == 3
    assert model["num_ready_replicas"] == 2 and model["has_tokenizer"]
    shown = serving.run("lckv", "replicas", "--router", demo.router.address)
    assert shown.stdout.count(" ready ") == 2


def test_client_generates_what_the_api_generates(demo):
    flags = ["--temperature", "0", "--max-new-tokens", "12", "--router", demo.router.address]
    ran = serving.run("lckv", "generate", "Once upon a time", *flags)
    asked = api.request(
        text="Once upon a time", sampling={"temperature": 0}, stopping={"max_new_tokens": 12}
    )
    assert ran.stdout == demo.client.generate(asked)[0].text + "\n"


def test_client_reports_errors_in_one_line(demo):
    ran = serving.run("lckv", "generate", "x", "--top-p", "2", "--router", demo.router.address)
    assert ran.returncode == 1
    assert ran.stderr.startswith("lckv generate: INVALID_ARGUMENT: sampling.top_p")
    assert ran.stderr.count("\n") == 1
    ran = serving.run("lckv", "generate", "x", "--prefill-mode", "quick")
    assert ran.returncode == 2 and "exact" in ran.stderr and "iterated" in ran.stderr


def test_client_bench_counts_every_token(demo):
    ran = serving.run(
        *("lckv", "bench", "--json", "--num-requests", 6, "--concurrency", 3, "--prompt-tokens"),
        *("4-9", "--output-tokens", 5, "--router", demo.router.address),
    )
    result = json.loads(ran.stdout)
    assert result["completed"] == 6 and result["failed"] == 0
    assert result["total_output_tokens"] == 30
    assert result["ttft_ms"]["p50"] <= result["e2el_ms"]["p99"]


def test_client_bench_writes_a_plot_beside_its_figures(demo, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(
        json.dumps({"timestamp": 20 * i, "input_length": 6, "output_length": 4, "hash_ids": [1]}) + "\n"
        for i in range(5)
    ))
    output = tmp_path / "run.json"
    ran = serving.run("lckv", "bench", "--trace", trace, "--output", output, "--router", demo.router.address)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(output.read_text())["completed"] == 5
    assert xml.etree.ElementTree.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")
    ran = serving.run("lckv", "bench", "--trace", tmp_path / "none", "--router", demo.router.address)
    assert ran.returncode == 1 and "--trace: cannot read" in ran.stderr
    ran = serving.run("lckv", "bench", "--output", tmp_path / "no" / "x.json", "--router", demo.router.address)
    assert ran.returncode == 1 and "--output: cannot write" in ran.stderr and not ran.stdout


def test_tools_are_there():
    assert shutil.which("grpcurl") and shutil.which("promtool"), "run deploy/install-deps.sh"

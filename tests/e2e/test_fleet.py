"""Several models behind one router, found by the file that --models names."""

import json
import os
import signal

import grpc
import pytest

import api
import serving
import tcp_ports

SHORT = {"stopping": {"max_new_tokens": 4, "ignore_eos": True}, "sampling": {"temperature": 0}}


def write(path, **models):
    """Replaces the file in one step, as an operator's tool would."""
    entries = [{"name": name, "workers": workers} for name, workers in models.items()]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"models": entries}))
    os.replace(fresh, path)


def generate(client, model):
    return client.generate(api.request(text="Once", model=model, **SHORT))[0]


def test_models_by_file(tmp_path):
    path = tmp_path / "models.json"
    flags = ["--dtype", "float32"]
    workers, router = [], None
    try:
        first = serving.Worker(serving.DEMO, *flags, "--served-model-name", "first")
        workers.append(first)
        write(path, first=[f"localhost:{first.port}"], second=[])
        router = serving.Router([], "--models", path, "--routing-policy", "prefix-affinity")
        assert router.client.models() is not None
        serving.wait_until(lambda: api.Client(router.health_address).health("readiness") == api.SERVING, "ready")
        first.wait_ready()
        router.wait_ready()
        assert len(generate(router.client, "first").ids) == 4

        with pytest.raises(grpc.RpcError) as caught:
            generate(router.client, "second")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert api.details(caught.value, api.RetryInfo) is not None
        depth = "lckv_router_queue_depth"
        assert serving.metric(router.metrics_address, depth, model_name="second") == 0
        refused = {"model_name": "second", "method": "Generate", "code": "UNAVAILABLE"}
        assert serving.metric(router.metrics_address, "lckv_router_requests_total", **refused) == 1
        with pytest.raises(grpc.RpcError) as caught:
            generate(router.client, "third")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

        second = serving.Worker(serving.DEMO, *flags, "--served-model-name", "second")
        workers.append(second)
        second.wait_ready()
        write(path, first=[f"localhost:{first.port}"], second=[second.address])
        router.wait_ready(2)
        assert {model.name for model in router.client.models()} == {"first", "second"}
        assert generate(router.client, "second").ids == generate(router.client, "first").ids

        stale = "lckv_router_file_stale"
        assert serving.metric(router.metrics_address, stale, file="models") == 0
        path.write_text("{")
        router.find(r"models.json: no JSON: .*; the models known so far stay")
        serving.wait_until(lambda: serving.metric(router.metrics_address, stale, file="models") == 1, "stale")
        assert len(generate(router.client, "second").ids) == 4
        second.kill()
        serving.wait_until(lambda: router.num_ready() == 1, "the second model's replica lost")
        with pytest.raises(grpc.RpcError) as caught:
            generate(router.client, "second")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert router.log().count("no JSON") == 1
    finally:
        for process in (router, *workers):
            if process is not None:
                process.close()


def test_calls_wait_for_the_first_replica_of_their_model(tmp_path):
    path = tmp_path / "models.json"
    write(path, late=[f"127.0.0.1:{tcp_ports.free_port()}"])
    router = serving.Router([], "--models", path, "--max-ready-wait", "120s", "--max-queue", 2, "--shutdown-grace", "100ms")
    worker = None

    def depth():
        return serving.metric(router.metrics_address, "lckv_router_queue_depth", model_name="late")

    def cancelled(by):
        return serving.metric(router.metrics_address, "lckv_router_cancelled_total", by=by)

    try:
        made = api.request(text="Once", model="late", stopping={"max_new_tokens": 4, "ignore_eos": True})
        assert depth() == 0
        waiting = router.client.stream(made, timeout=100 * serving.SLOWNESS)
        leaving = router.client.stream(made)
        serving.wait_until(lambda: depth() == 2, "both wait")
        with pytest.raises(grpc.RpcError) as caught:
            router.client.generate(made)  # no room to wait in
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        leaving.cancel()
        serving.wait_until(lambda: depth() == 1, "one has left")
        with pytest.raises(grpc.RpcError) as caught:
            router.client.generate(made, timeout=0.5)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        serving.wait_until(lambda: depth() == 1, "and so has the second")
        assert [cancelled(by) for by in ("client", "deadline")] == [1, 1]
        serving.wait_until(lambda: router.log().count("code=DEADLINE_EXCEEDED") == 1, "its line")

        worker = serving.Worker(serving.DEMO, "--dtype", "float32", "--served-model-name", "late")
        write(path, late=[worker.address])
        (choice,) = api.collect(waiting).values()
        assert len(choice.ids) == 4
        assert depth() == 0
        # One that still waits when the router ends is told so.
        worker.kill()
        write(path, late=[], later=[])
        made.model = "later"
        serving.wait_until(lambda: "names 2 models" in router.log(), "the new file")
        waiting = router.client.stream(made, timeout=100 * serving.SLOWNESS)
        later = {"model_name": "later"}
        serving.wait_until(
            lambda: serving.metric(router.metrics_address, "lckv_router_queue_depth", **later) == 1, "it waits"
        )
        router.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(waiting)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert router.wait() == 0
    finally:
        for process in (router, worker):
            if process is not None:
                process.close()


def test_tenants_by_file(demo, tmp_path):
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps({"tenants": {"small": {"tokens_per_minute": 10}}}))
    router = serving.Router(demo.workers, "--tenants", path)
    try:
        router.wait_ready(2)
        asked = api.request(text="Once upon a time", tenant="small", stopping={"max_new_tokens": 20})
        router.client.generate(asked)
        with pytest.raises(grpc.RpcError) as caught:
            router.client.generate(asked)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "tokens_per_minute" in caught.value.details()
        assert api.details(caught.value, api.RetryInfo) is not None
        rejected = "lckv_router_tenant_rejected_total"
        assert serving.metric(router.metrics_address, rejected, tenant="small") == 1
        asked.tenant = "large"
        router.client.generate(asked)
    finally:
        router.close()

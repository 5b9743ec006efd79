"""TLS on both hops, tokens, and what is refused: real processes, certificates of deploy/test-certificates.sh."""

import contextlib
import json
import pathlib
import shutil
import time

import grpc
import pytest

import api
import serving
from certificates import credentials, make_certificates, server_flags, worker_flags

GENERATE, ADMIN = "token-that-generates", "token-that-administers"
TOKENS = {
    "tokens": [
        {"token": GENERATE, "tenant": "acme", "rights": ["generate"]},
        {"token": ADMIN, "tenant": "ops", "rights": ["generate", "admin"]},
    ]
}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A router and a worker with TLS, client certificates and tokens; `folder` has the certificates."""
    folder = make_certificates(tmp_path_factory.mktemp("certificates"))
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with contextlib.ExitStack() as stack:
        worker = serving.Worker(serving.DEMO, "--dtype", "float32", *server_flags(folder, "worker"))
        stack.callback(worker.close)
        worker.wait_ready()
        router = serving.Router(
            [worker], *server_flags(folder, "router"), *worker_flags(folder), "--tokens", tokens,
            connect=lambda address: api.Client(address, credentials(folder), ADMIN),
        )  # fmt: skip
        stack.callback(router.close)
        router.wait_ready()
        router.folder, router.worker = folder, worker
        yield router


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def reflect(client):
    call = client.channel.stream_stream(
        REFLECTION, request_serializer=lambda made: made, response_deserializer=lambda got: got
    )
    return list(call(iter([b"\x3a\x00"]), timeout=30, metadata=client.headers))  # list_services


def test_right_certificates_and_token(secure):
    choice = secure.client.generate(api.request(text="Once", stopping={"max_new_tokens": 4}))[0]
    assert len(choice.ids) == 4
    assert b"lckv.v1.Inference" in reflect(secure.client)[0]


def refused_clients(folder, other, expired):
    yield "wrong CA", {"credentials": credentials(folder, ca=other / "ca.crt")}
    yield "wrong name", {"credentials": credentials(folder), "server_name": "elsewhere"}
    yield "no client certificate", {"credentials": credentials(folder, name=None)}
    yield "client certificate of another CA", {"credentials": credentials(other, ca=folder / "ca.crt")}
    yield "expired client certificate", {"credentials": credentials(expired)}
    yield "plaintext", {"credentials": None}


def test_refused_connections(secure, tmp_path):
    other = make_certificates(tmp_path / "other")
    expired = tmp_path / "expired"
    expired.mkdir()
    for name in ("ca.crt", "ca.key"):
        shutil.copy(secure.folder / name, expired)
    make_certificates(expired, days=0)
    for what, how in refused_clients(secure.folder, other, expired):
        client = api.Client(secure.address, token=ADMIN, **how)
        assert code_of(lambda: client.models(timeout=10)) == grpc.StatusCode.UNAVAILABLE, what
        client.close()
    assert secure.client.models()


def test_expired_server_certificate_is_refused(secure, tmp_path):
    for name in ("ca.crt", "ca.key"):
        shutil.copy(secure.folder / name, tmp_path)
    make_certificates(tmp_path, days=0)
    router = serving.Router(
        [secure.worker], "--tls-cert", tmp_path / "router.crt", "--tls-key", tmp_path / "router.key",
        *worker_flags(secure.folder),
        connect=lambda address: api.Client(address, credentials(secure.folder)),
    )  # fmt: skip
    try:
        assert code_of(lambda: router.client.models(timeout=10)) == grpc.StatusCode.UNAVAILABLE
    finally:
        router.close()


@pytest.mark.parametrize("token", [None, "token-nobody-knows", GENERATE[:-1]])
def test_unknown_token(secure, token):
    client = api.Client(secure.address, credentials(secure.folder), token)
    made = api.request(text="Once", stopping={"max_new_tokens": 1})
    assert code_of(lambda: client.generate(made)) == grpc.StatusCode.UNAUTHENTICATED
    assert code_of(client.replicas) == grpc.StatusCode.UNAUTHENTICATED
    assert code_of(lambda: reflect(client)) == grpc.StatusCode.UNAUTHENTICATED
    client.close()


def test_token_without_the_right(secure):
    client = api.Client(secure.address, credentials(secure.folder), GENERATE)
    assert len(client.generate(api.request(text="Once", stopping={"max_new_tokens": 2}))[0].ids) == 2
    assert code_of(client.replicas) == grpc.StatusCode.PERMISSION_DENIED
    assert code_of(lambda: client.drain("x")) == grpc.StatusCode.PERMISSION_DENIED
    assert code_of(lambda: reflect(client)) == grpc.StatusCode.PERMISSION_DENIED
    made = api.request(text="Once", tenant="ops", stopping={"max_new_tokens": 1})
    assert code_of(lambda: client.generate(made)) == grpc.StatusCode.PERMISSION_DENIED
    client.close()


def test_headers_and_messages_have_limits(secure):
    client = api.Client(secure.address, credentials(secure.folder), GENERATE)
    long_text = api.request(text="a" * (17 << 20))
    assert code_of(lambda: client.generate(long_text)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    client.headers.append(("x-long", "a" * 20000))
    assert code_of(client.models) == grpc.StatusCode.RESOURCE_EXHAUSTED
    client.close()
    assert secure.client.models()


def test_the_client_program(secure, tmp_path):
    token = tmp_path / "token"
    token.write_text(ADMIN + "\n")
    flags = [
        "--router", secure.address, "--tls-ca", secure.folder / "ca.crt",
        "--tls-cert", secure.folder / "client.crt", "--tls-key", secure.folder / "client.key",
    ]  # fmt: skip
    listed = serving.run("lckv", "replicas", *flags, "--token-file", token)
    assert listed.returncode == 0, listed.stderr
    assert secure.worker.address in listed.stdout
    without = serving.run("lckv", "replicas", *flags)
    assert without.returncode == 1 and "UNAUTHENTICATED" in without.stderr
    named = serving.run("lckv", "models", *flags, "--token-file", token, "--tls-server-name", "router")
    assert named.returncode == 0, named.stderr
    misnamed = serving.run(
        "lckv", "models", *flags, "--token-file", token, "--tls-server-name", "x", "--timeout", "3s"
    )
    assert misnamed.returncode == 1
    away = serving.run("lckv", "models", "--router", "192.0.2.1:50051")
    assert away.returncode == 1 and "--allow-plaintext" in away.stderr


@pytest.mark.parametrize("how", ["no certificate", "wrong CA", "wrong name", "plaintext"])
def test_router_that_the_worker_or_that_the_worker_refuses(secure, tmp_path, how):
    flags = worker_flags(secure.folder)
    if how == "no certificate":
        flags = [*flags[:2], *flags[6:]]
    elif how == "wrong CA":
        flags[1] = make_certificates(tmp_path) / "ca.crt"
    elif how == "wrong name":
        flags[7] = "another"
    else:
        flags = []
    router = serving.Router([secure.worker], *flags)
    try:
        time.sleep(1.5)
        assert router.num_ready() == 0
        assert router.alive()
    finally:
        router.close()


BAD_STARTS = [
    ("lckv-router", ["--tls-cert", "{good}/router.crt"], 1, "--tls-cert and --tls-key belong together"),
    ("lckv-router", ["--tls-cert", "{good}/router.crt", "--tls-key", "{good}/worker.key"], 1,
     "--tls-key: {good}/worker.key holds no key in PEM that fits the certificate"),
    ("lckv-router", ["--tls-cert", "{good}/none.crt", "--tls-key", "{good}/router.key"], 1,
     "--tls-cert: {good}/none.crt: cannot be opened"),
    ("lckv-router", ["--tls-client-ca", "{good}/ca.crt"], 1, "--tls-client-ca needs --tls-cert"),
    ("lckv-router", ["--worker-tls-cert", "{good}/router.crt", "--worker-tls-key", "{good}/router.key"],
     1, "--worker-tls-cert needs --worker-tls-ca"),
    ("lckv-router", ["--worker-tls-ca", "{good}/router.key"], 1,
     "--worker-tls-ca: {good}/router.key holds no certificate in PEM"),
    ("lckv-router", ["--host", "0.0.0.0"], 2, "--host 0.0.0.0 is seen beyond this machine"),
    ("lckv-router", ["--models", "{good}/ca.crt"], 1, "--models: {good}/ca.crt: no JSON"),
    ("lckv-router", ["--tenants", "{good}/ca.crt"], 1, "--tenants: {good}/ca.crt: no JSON"),
    ("lckv-router", ["--tokens", "{good}/ca.key"], 1, "--tokens: {good}/ca.key: is no JSON"),
    ("lckv-worker", ["--tls-cert", "{good}/ca.key", "--tls-key", "{good}/ca.key"], 1,
     "--tls-cert: {good}/ca.key holds no certificate in PEM"),
    ("lckv-worker", ["--host", "0.0.0.0"], 2, "--host 0.0.0.0 is seen beyond this machine"),
]  # fmt: skip


@pytest.mark.parametrize("program,flags,code,line", BAD_STARTS)
def test_bad_starts_end_with_one_line(secure, program, flags, code, line):
    place = {"good": secure.folder}
    needed = ["--workers", "127.0.0.1:1"] if program == "lckv-router" else ["--model", serving.DEMO]
    ports = ["--port", 0, "--metrics-port", 0, "--health-port", 0]
    ended = serving.run(program, *needed, *ports, *[flag.format(**place) for flag in flags])
    assert ended.returncode == code, ended.stderr
    output = (ended.stdout + ended.stderr).strip()
    assert line.format(**place) in output
    assert len(output.splitlines()) == 1, output
    assert "PRIVATE KEY" not in output


def test_without_tls_tokens_leave_no_reflection(tmp_path):
    tokens = pathlib.Path(tmp_path / "tokens.json")
    tokens.write_text(json.dumps(TOKENS))
    router = serving.Router(["127.0.0.1:1"], "--tokens", tokens)
    try:
        health = api.Client(router.health_address)
        for client in (router.client, health):
            assert code_of(lambda: reflect(client)) == grpc.StatusCode.UNIMPLEMENTED
        health.close()
        assert code_of(router.client.replicas) == grpc.StatusCode.UNAUTHENTICATED
    finally:
        router.close()

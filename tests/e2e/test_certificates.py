"""Certificates, keys and authorities that are replaced under running programs."""

import contextlib
import os
import pathlib
import re
import shutil
import ssl
import threading

import grpc
import pytest

import api
import serving
from certificates import credentials, make_certificates, server_flags, worker_flags


def serial_of(address):
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


class Loader:
    """Streams side by side, each call over a channel of its own, so that it is a handshake too."""

    def __init__(self, address, made_credentials, width=4):
        self.errors, self.num_calls, self.ending = [], 0, False
        self.address, self.credentials = address, made_credentials
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run) for _ in range(width)]
        for thread in self.threads:
            thread.start()

    def run(self):
        while not self.ending:
            client = api.Client(self.address, self.credentials)
            error = None
            try:
                client.generate(api.request(text="Once", stopping={"max_new_tokens": 8}))
            except grpc.RpcError as caught:
                error = caught
            with self.lock:
                self.num_calls += 1
                self.errors += [] if error is None else [error]
            client.close()

    def wait_for_more(self, count):
        reached = self.num_calls + count
        serving.wait_until(lambda: self.num_calls >= reached, f"{count} more calls")

    def end(self):
        self.ending = True
        for thread in self.threads:
            thread.join()
        return self.errors


def is_refused(address, made_credentials):
    client = api.Client(address, made_credentials)
    try:
        client.models(timeout=10)
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        client.close()
    return False


def connections(process, port):
    """The local ports of a process's connections to a port."""
    sockets = set()
    for descriptor in pathlib.Path(f"/proc/{process.popen.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(descriptor))
    tables = [pathlib.Path(f"/proc/{process.popen.pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return {
        int(row[1].partition(":")[2], 16)
        for row in rows
        if int(row[2].partition(":")[2], 16) == port and f"socket:[{row[9]}]" in sockets
    }


def test_exchanged_authority_and_certificates_reach_sessions_within_their_age_and_lose_no_call(tmp_path):
    old = make_certificates(tmp_path / "old")
    new = make_certificates(tmp_path / "new")
    both = (old / "ca.crt").read_text() + (new / "ca.crt").read_text()
    stages = {}
    # First both authorities are trusted, then certificates are exchanged, then the old one is dropped.
    for stage, leaves, trusted in (
        ("1", old, both), ("2", new, both), ("3", new, (new / "ca.crt").read_text()),
    ):  # fmt: skip
        stages[stage] = tmp_path / f"stage-{stage}"
        shutil.copytree(leaves, stages[stage])
        (stages[stage] / "ca.crt").write_text(trusted)
    current = tmp_path / "current"
    current.symlink_to(stages["1"])

    def swap(stage):  # as Kubernetes does with a mounted secret
        link = tmp_path / "next"
        link.symlink_to(stages[stage])
        link.rename(current)

    before_all = credentials(old, ca=stages["1"] / "ca.crt")
    renewed = credentials(new, ca=stages["1"] / "ca.crt")
    with contextlib.ExitStack() as stack:
        worker = serving.Worker(serving.DEMO, "--dtype", "float32", *server_flags(current, "worker"))
        stack.callback(worker.close)
        worker.wait_ready()
        router = serving.Router(
            [worker], *server_flags(current, "router"), *worker_flags(current), "--max-session-age", "2s",
            connect=lambda address: api.Client(address, renewed),
        )  # fmt: skip
        stack.callback(router.close)
        router.wait_ready()
        loader = Loader(router.address, renewed)
        stack.callback(loader.end)
        before = serial_of(router.address), serial_of(worker.address)
        swap("2")
        serving.wait_until(
            lambda: serial_of(router.address) != before[0] and serial_of(worker.address) != before[1],
            "new certificates at both",
        )
        loader.wait_for_more(20)
        assert not is_refused(router.address, before_all)
        swap("3")
        for process in (router, worker):
            serving.wait_until(
                lambda: is_refused(process.address, before_all),
                f"the old client certificate refused by {process.name}",
            )
        # What is connected from now on has shown the new certificates: none but they are accepted.
        sessions = connections(router, worker.port)
        assert sessions
        serving.wait_until(
            lambda: not sessions & connections(router, worker.port),
            "other sessions than before",
            seconds=10 * serving.SLOWNESS,
        )
        loader.wait_for_more(20)
        assert loader.end() == []
        assert router.num_ready() == 1 and worker.alive()
        assert "is lost" not in router.log() and "given up" not in router.log()


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """With TLS and client certificates; `folder` has them."""
    folder = make_certificates(tmp_path_factory.mktemp("certificates"))
    made = serving.Worker(serving.DEMO, "--dtype", "float32", *server_flags(folder, "worker"))
    made.folder = folder
    yield made.wait_ready()
    made.close()


@pytest.mark.parametrize("name,flag", [
    ("router.crt", "--tls-cert"), ("router.key", "--tls-key"), ("ca.crt", "--tls-client-ca"),
])  # fmt: skip
def test_a_spoiled_file_is_told_once_and_what_it_held_stays_in_use(worker, tmp_path, name, flag):
    folder = tmp_path / "certificates"
    shutil.copytree(worker.folder, folder)
    router = serving.Router(
        [worker], *server_flags(folder, "router"), *worker_flags(worker.folder),
        connect=lambda address: api.Client(address, credentials(worker.folder)),
    )  # fmt: skip

    def is_stale():
        return serving.metric(router.metrics_address, "lckv_router_file_stale", file="tls")

    try:
        router.wait_ready()
        assert is_stale() == 0
        good = (folder / name).read_text()
        (folder / name).write_text(good[:200])
        line = f"{flag}: {folder / name} holds no "
        router.find(re.escape(line) + ".*; what it held before stays in use")
        serving.wait_until(lambda: is_stale() == 1, "stale")
        for _ in range(3):  # handshakes
            client = api.Client(router.address, credentials(worker.folder))
            assert len(client.generate(api.request(text="Once", stopping={"max_new_tokens": 2}))[0].ids) == 2
            client.close()
        (folder / name).write_text(good)
        router.find(f"right again and in use: .*{re.escape(str(folder / name))}")
        serving.wait_until(lambda: is_stale() == 0, "right again")
        assert router.log().count(line) == 1
        assert "PRIVATE KEY" not in router.log()
    finally:
        router.close()


def test_a_worker_too_keeps_what_a_spoiled_file_held(worker):
    path = worker.folder / "worker.crt"
    good, shown = path.read_text(), serial_of(worker.address)

    def is_stale():
        return serving.metric(worker.metrics_address, "lckv_file_stale", file="tls")

    assert is_stale() == 0
    path.write_text(good[:200])
    worker.find(re.escape(f"--tls-cert: {path} holds no certificate in PEM; what it held before stays in use"))
    assert serial_of(worker.address) == shown
    serving.wait_until(lambda: is_stale() == 1, "stale")
    path.write_text(good)
    worker.find(re.escape(f"right again and in use: --tls-cert {path}"))
    serving.wait_until(lambda: is_stale() == 0, "right again")

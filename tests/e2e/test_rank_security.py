"""TLS between the ranks of a replica, with certificates of deploy/test-certificates.sh."""

import socket
import ssl

import api
import ranks
import serving
import tcp_ports
from certificates import make_certificates


def rank_flags(folder, name="worker"):
    return [
        "--rank-tls-ca", folder / "ca.crt",
        "--rank-tls-cert", folder / f"{name}.crt",
        "--rank-tls-key", folder / f"{name}.key",
        "--rank-tls-server-name", "worker",
    ]  # fmt: skip


def is_refused_without_certificate(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            with context.wrap_socket(plain) as secure:
                # Under TLS 1.3 a server asks for the certificate behind its own part of the handshake.
                return secure.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_ranks_speak_tls(tmp_path):
    folder = make_certificates(tmp_path / "ours")
    with ranks.Replica(*rank_flags(folder)) as replica:
        router = serving.Router([replica.launcher]).wait_ready()
        try:
            choices = router.client.generate(api.request(text="Once", stopping={"max_new_tokens": 8}))
            assert choices[0].ids
        finally:
            router.close()
        assert is_refused_without_certificate(replica.leader_port)


def test_a_rank_of_another_authority_never_joins(tmp_path):
    ours, others = make_certificates(tmp_path / "ours"), make_certificates(tmp_path / "others")
    port = tcp_ports.free_port()
    processes = []
    try:
        for rank, folder in ((0, ours), (1, others)):
            processes.append(
                serving.Process(
                    "lckv-worker",
                    ["--model", serving.DEMO, "--port", 0, "--metrics-port", 0, "--health-port", 0, "--rank", rank,
                     "--tensor-parallel-size", 2, "--leader", f"127.0.0.1:{port}",
                     "--start-timeout", f"{2 * serving.SLOWNESS}s", *rank_flags(folder)],
                )
            )
        assert [process.wait() for process in processes] == [1, 1]
        assert "rank 1 did not join" in processes[0].log()
        assert "that TLS lets speak" in processes[1].log()
    finally:
        for process in processes:
            process.close()

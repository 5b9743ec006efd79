"""Certificates of deploy/test-certificates.sh, and what takes them."""

import subprocess

import grpc

import serving


def make_certificates(folder, days=30):
    script = serving.ROOT / "deploy/test-certificates.sh"
    subprocess.run([script, folder, str(days)], check=True, timeout=60)
    return folder


def credentials(folder, ca=None, name="client"):
    """Of a client that trusts the folder's CA (or another) and shows the folder's certificate `name`."""
    pair = (None, None)
    if name is not None:
        pair = ((folder / f"{name}.key").read_bytes(), (folder / f"{name}.crt").read_bytes())
    return grpc.ssl_channel_credentials((ca or folder / "ca.crt").read_bytes(), *pair)


def server_flags(folder, name):
    return [
        "--tls-cert", folder / f"{name}.crt",
        "--tls-key", folder / f"{name}.key",
        "--tls-client-ca", folder / "ca.crt",
    ]  # fmt: skip


def worker_flags(folder):
    return [
        "--worker-tls-ca", folder / "ca.crt",
        "--worker-tls-cert", folder / "router.crt",
        "--worker-tls-key", folder / "router.key",
        "--worker-tls-server-name", "worker",
    ]  # fmt: skip

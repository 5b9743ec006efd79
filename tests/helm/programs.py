"""What the built programs say of themselves in --help, and what they answer while they run."""

import os
import pathlib
import re
import socket
import subprocess
import time

import grpc

import chart

BIN = pathlib.Path(os.environ.get("LCKV_BIN", chart.ROOT / "build" / "release" / "bin"))
DEMO = chart.ROOT / "deploy" / "models" / "demo"
FLAG = re.compile(r"^ {2,}(--[a-z-]+)(.*)$")


def read_help(program, *commands):
    """{flag: the rest of its line} and {environment variables}."""
    text = subprocess.run(
        [BIN / program, *commands, "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    found = {}
    for line in text.splitlines():
        match = FLAG.match(line)
        if match:
            found[match.group(1)] = match.group(2)
    return found, set(re.findall(r"Env:(LCKV_[A-Z_]+)", text))


def choices(rest):
    """The values in braces, or None."""
    match = re.search(r":\{([^}]*)\}", rest)
    return match and match.group(1).split(",")


def limits(rest):
    """(least, most) where a line tells them, else None."""
    match = re.search(r" in \[(-?[0-9.]+) ?[-,] ?([0-9.]+)\]", rest)
    return match and (float(match.group(1)), float(match.group(2)))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def health(port, service):
    """What grpc.health.v1 answers: SERVING, NOT_SERVING, or the status of an error."""
    request = bytes([0x0A, len(service)]) + service.encode()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = check(request, timeout=5, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code().name
    return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}[answer]


class Program:
    """A program as a container would run it, on this machine."""

    def __init__(self, program, arguments, folder):
        self.log = folder / f"{program}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([BIN / program, *arguments], stdout=log, stderr=log, cwd=folder)

    def wait_until(self, port, service, answer, seconds=60):
        deadline = time.monotonic() + seconds
        while (said := health(port, service)) != answer:
            assert time.monotonic() < deadline and self.process.poll() is None, (said, self.log.read_text())
            time.sleep(0.1)

    def stop(self):
        """Its exit status after SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

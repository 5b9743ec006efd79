"""deploy/demo.sh, as a user runs it."""

import os
import signal
import socket
import subprocess
import time

import serving
import tcp_ports

DEMO = serving.ROOT / "deploy/demo.sh"
# Each worker's is the first of two.
PORTS = [f"{program}_{name}" for program in ("ROUTER", "WORKER") for name in ("PORT", "METRICS_PORT", "HEALTH_PORT")]
PROMPT = "The history of the city"


def start(*arguments):
    ports = {name: str(tcp_ports.free_port()) for name in PORTS}
    environment = os.environ | ports | {"LCKV_BIN": str(serving.BIN)}
    demo = subprocess.Popen(
        [str(DEMO), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores SIGINT, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return demo, ports


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_once_ends_by_itself_and_leaves_nothing():
    demo, ports = start("--once")
    printed, shown = demo.communicate(timeout=180 * serving.SLOWNESS)
    assert demo.returncode == 0, shown
    prompt, completion = printed.strip()[: len(PROMPT)], printed.strip()[len(PROMPT) :]
    assert prompt == PROMPT and completion.strip(), printed
    for port in ports.values():
        assert not listens(port)


def test_it_serves_until_it_is_interrupted():
    demo, ports = start()
    try:
        serving.wait_until(lambda: listens(ports["ROUTER_PORT"]), "the router listens")
        time.sleep(0.5)
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60 * serving.SLOWNESS)
        assert demo.returncode == 130
        assert not any(listens(port) for port in ports.values())
    finally:
        demo.kill()


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = os.environ | {"LCKV_BIN": str(serving.BIN)}
        environment["ROUTER_HEALTH_PORT"] = str(taken.getsockname()[1])
        ran = subprocess.run(
            [str(DEMO), "--once"], env=environment, capture_output=True, text=True, timeout=60
        )
    assert ran.returncode == 1 and "ROUTER_HEALTH_PORT=" in ran.stderr

"""Ports that are free and stay so."""

import itertools
import random
import socket


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# Below the range that connections take theirs from, which would take one again before its server has it. Every other
# one, because who starts two programs of a kind gives the second the port behind the first's.
_PORTS = itertools.cycle(random.sample(range(20000, 32000, 2), 6000))


def free_port():
    """One that nobody listens at, nor at the next one; others each time."""
    return next(port for port in _PORTS if is_free(port) and is_free(port + 1))

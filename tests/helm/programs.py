"""What the built programs say of themselves in --help, and what they answer while they run."""

import re

import grpc

import api
import serving

FLAG = re.compile(r"^ {2,}(--[a-z-]+)(.*)$")


def read_help(program, *commands):
    """{flag: the rest of its line} and {environment variables}."""
    done = serving.run(program, *commands, "--help")
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        match = FLAG.match(line)
        if match:
            found[match.group(1)] = match.group(2)
    return found, set(re.findall(r"Env:(LCKV_[A-Z_]+)", done.stdout))


def choices(rest):
    """The values in braces, or None."""
    match = re.search(r":\{([^}]*)\}", rest)
    return match and match.group(1).split(",")


def limits(rest):
    """(least, most) where a line tells them, else None."""
    match = re.search(r" in \[(-?[0-9.]+) ?[-,] ?([0-9.]+)\]", rest)
    return match and (float(match.group(1)), float(match.group(2)))


def health(port, service):
    """What grpc.health.v1 answers: a number of it, or the name of an error's status."""
    client = api.Client(f"127.0.0.1:{port}")
    try:
        return client.health(service)
    except grpc.RpcError as error:
        return error.code().name
    finally:
        client.close()


def wait_until_serving(process, port, service):
    def serves():
        assert process.alive(), process.log()
        return health(port, service) == api.SERVING

    serving.wait_until(serves, f"{process.name} serves {service}")

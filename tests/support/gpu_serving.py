#!/usr/bin/env python3
"""Serves the demo model on a device and compares tokens: `gpu_serving.py PROGRAMS MODEL DEVICE`.

One rank and two ranks, as processes that share the device, each with and without recorded graphs, give the tokens of one
rank on the CPU: in float32, greedy, several streams at once. Graphs change no token in bfloat16 either. DEVICE: cuda:N, or
cpu for a look at this script. Every case is tried; exits 1 where anything differs or ends. Needs nothing but Python.
"""

import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

START_SECONDS = 40
CALL_SECONDS = 20
PROMPTS = [[7 * length + 3 * i for i in range(length)] for length in (1, 2, 5, 9, 17, 33, 70, 140)]


class Trouble(Exception):
    """What went wrong in one case."""


@contextlib.contextmanager
def program(arguments, ready):
    """Runs it; gives what `ready` finds in its log, once it is there."""
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (found := re.search(ready, pathlib.Path(log.name).read_text(), re.DOTALL)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Trouble(f"no {ready!r} within {START_SECONDS} s")
                time.sleep(0.05)
            yield process, found
            if process.poll() not in (None, 0):
                raise Trouble("ended")
        except (Trouble, subprocess.TimeoutExpired) as trouble:
            text = pathlib.Path(log.name).read_text()
            raise Trouble(f"{trouble}\n{' '.join(map(str, arguments))}:\n{text}") from None
        finally:
            process.terminate()
            try:
                process.wait(CALL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def tokens_of(programs, model, flags):
    """What each prompt is continued with, all at once."""
    ports = ["--port", "0", "--metrics-port", "0", "--health-port", "0"]
    worker = [f"{programs}/lckv-worker", "--model", model, "--kv-cache-memory", "256MiB", *ports, *flags]
    router = [f"{programs}/lckv-router", *ports]
    with program(worker, r"routers=([\d.:]+).*\bready\b.*\bseconds=") as (process, found):
        with program([*router, "--workers", found[1]], r"gRPC ([\d.:]+).* serves ") as (_, found):
            call = [f"{programs}/lckv", "generate", "--router", found[1], "--temperature", "0", "--omit-text"]
            call += ["--max-new-tokens", "24", "--ignore-eos", "--timeout", f"{CALL_SECONDS}s"]
            calls = [
                subprocess.Popen([*call, "--token-ids", ",".join(map(str, prompt))], stdout=subprocess.PIPE, text=True)
                for prompt in PROMPTS
            ]
            texts = [one.communicate(timeout=2 * CALL_SECONDS)[0] for one in calls]
            if any(one.returncode for one in calls):
                raise Trouble("a call failed")
            process.terminate()  # beside the router
            return texts


def compare(name, expected, got):
    if expected is None:
        raise Trouble("there is nothing to compare with")
    if got != expected:
        wrong = next(i for i, pair in enumerate(zip(got, expected)) if pair[0] != pair[1])
        raise Trouble(f"prompt {wrong}:\n  {got[wrong]}  expected\n  {expected[wrong]}")
    print(f"{name}: {len(got)} streams are equal", flush=True)


def main(programs, model, device):
    on_device = ["--device", device, "--threads", "1"]
    is_cuda = device.startswith("cuda")
    shares = ["--allow-shared-device"] if is_cuda else []
    eager = ["--enforce-eager"]
    ranks = ["--tensor-parallel-size", "2", *shares]
    float32, bfloat16 = ["--dtype", "float32"], ["--dtype", "bfloat16", "--reproducible", "on"]
    # Each beside an earlier one.
    cases = [
        ("the CPU", ["--device", "cpu", *float32], None),
        ("one rank, as on the CPU", [*on_device, *float32], "the CPU"),
        ("two ranks, as on the CPU", [*on_device, *float32, *ranks], "the CPU"),
        ("two ranks without graphs", [*on_device, *float32, *ranks, *eager], "the CPU"),
        ("bfloat16", [*on_device, *bfloat16], None),
        ("bfloat16 without graphs", [*on_device, *bfloat16, *eager], "bfloat16"),
    ]
    texts = {}
    failed = []
    for name, flags, beside in cases:
        try:
            texts[name] = tokens_of(programs, model, flags)
            if beside:
                compare(name, texts.get(beside), texts[name])
        except (Trouble, subprocess.TimeoutExpired) as trouble:
            print(f"{name}: {trouble}", flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    main(*sys.argv[1:])

#!/usr/bin/env python3
"""Runs what needs a GPU: `tests/gpu.sh run`, which says how. Needs nothing but Python."""

import argparse
import datetime
import os
import pathlib
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time

import gpu_report

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOTAL_SECONDS = 535  # of the nine minutes
PROBE_SECONDS = 60
MAX_CRASHES = 10  # of one program of tests
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# By the names under which the programs load them.
LIBRARIES = {"cublaslt": "libcublasLt.so.13", "nccl": "libnccl.so.2"}


def find_programs():
    for folder in (ROOT / "bin", ROOT / "build/lckv-gpu/bin", ROOT / "build/cuda/bin"):
        if os.access(folder / "cuda_test", os.X_OK):
            return folder
    sys.exit(f"gpu: nothing is built in {ROOT}; valid: gpu.sh pack, or cmake --build build/cuda")


def find_toolkit():
    nvcc = shutil.which("nvcc")
    folders = [pathlib.Path(nvcc).resolve().parents[1]] if nvcc else []
    folders += [pathlib.Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda"), ROOT / "build/cuda-toolkit"]
    return next((folder for folder in folders if folder.is_dir()), None)


def find_library(name, toolkit):
    """In the toolkit, or among the packages of this Python, which bring CUDA's libraries along; None: the loader knows."""
    folders = [toolkit / folder for folder in ("lib64", "lib", "targets/x86_64-linux/lib")] if toolkit else []
    for packages in site.getsitepackages():
        folders += sorted(pathlib.Path(packages).glob("nvidia/**/lib"))
    return next((folder for folder in folders if (folder / name).exists()), None)


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def commit():
    kept = [folder / "commit" for folder in (ROOT, ROOT / "build/lckv-gpu")]
    found = next((path.read_text().strip() for path in kept if path.exists()), "")
    return found or output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown"


class Runs:
    """Runs commands one after another and keeps what came of them in a folder, anew after each."""

    def __init__(self, out):
        self.began = time.monotonic()
        self.out = out
        self.logs = pathlib.Path(tempfile.mkdtemp(prefix="lckv-gpu-"))
        self.programs = find_programs()
        self.toolkit = find_toolkit()
        libraries = {key: find_library(name, self.toolkit) for key, name in LIBRARIES.items()}
        paths = [str(folder) for folder in libraries.values() if folder] + [os.environ.get("LD_LIBRARY_PATH", "")]
        self.environment = dict(os.environ, LD_LIBRARY_PATH=":".join(filter(None, dict.fromkeys(paths))))
        tools = f"{self.toolkit}/bin" if self.toolkit else None
        self.sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=tools)
        device = output_of("nvidia-smi", "-i", "0", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
        name, driver, memory = (device.splitlines()[0].split(", ") if device.count(",") >= 2 else ("", "", ""))[:3]
        release = re.search(r"release ([\d.]+)", output_of(f"{self.toolkit}/bin/nvcc", "--version"))
        self.report = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": commit(),
            "device": name,
            "memory": memory,
            "driver": driver,
            "cuda": release[1] if release else "",
            **{key: str(folder or "") for key, folder in libraries.items()},
            "parts": {},
        }

    def left(self):
        return TOTAL_SECONDS - (time.monotonic() - self.began)

    def add(self, part, name, seconds=0, **result):
        run = {"name": name, "seconds": round(seconds), **result}
        self.report["parts"].setdefault(part, {"runs": []})["runs"].append(run)
        gpu_report.write(self.report, self.out, self.logs)
        print("\n".join(gpu_report.lines_of(part, run)), flush=True)

    def command(self, command, log, seconds):
        """Its exit code; None where it was ended at its deadline. What it began ends with it."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()

    def measure(self, part, name, limit, run):
        """`run(log, seconds)` gives what came of it within so many seconds at most, as gpu_report's readers do."""
        seconds = min(limit, self.left())
        if seconds < 5:
            self.add(part, name, limit=0, status="incomplete", reason=f"no time was left of {TOTAL_SECONDS} s")
            return
        print(f"gpu: {name}", file=sys.stderr, flush=True)
        log = self.logs / f"{name}.log"
        log.touch()
        began = time.monotonic()
        result = run(log, seconds)
        self.add(part, name, time.monotonic() - began, limit=round(seconds), **result)

    def bench(self, part, name, limit, command):
        def run(log, seconds):
            return gpu_report.bench_result(self.command(command, log, seconds), log)

        self.measure(part, name, limit, run)

    def tests(self, part, limit, program, chosen):
        def run(log, seconds):
            deadline = time.monotonic() + seconds
            tests = gpu_report.Tests()
            for _ in range(MAX_CRASHES):
                # An error of the device ends the process: the tests after that one run in the next.
                done = ":".join(tests.names)
                command = [self.programs / program, f"--gtest_filter={chosen}{'-' if done else ''}{done}"]
                before = log.stat().st_size
                code = self.command(command, log, max(1, deadline - time.monotonic()))
                with open(log, "rb") as output:
                    output.seek(before)
                    tests.read(output.read().decode(errors="replace"), code)
                if not tests.crashed:
                    break
            return tests.result()

        self.measure(part, part, limit, run)

    def sanitize(self, tool, limit):
        # Our own kernels: cuBLASLt has none of ours.
        command = [self.sanitizer, "--tool", tool, "--error-exitcode", "9", self.programs / "cuda_test"]

        def run(log, seconds):
            code = self.command([*command, "--gtest_filter=*/cuda_reproducible_bfloat16"], log, seconds)
            return gpu_report.sanitizer_result(code, log)

        self.measure("sanitizer", tool, limit, run)

    def obstacle(self, mode):
        """Why tests over the device are skipped in this mode; empty: they run, whatever comes of them."""
        log = self.logs / f"probe-{mode}.log"
        code = self.command([self.programs / "cuda_test", f"--gtest_filter=*SiluMul*/cuda_{mode}_float32"], log, PROBE_SECONDS)
        if code is None:
            return f"the device gave no answer within {PROBE_SECONDS} s"
        tests = gpu_report.Tests()
        tests.read(log.read_text(errors="replace"), code)
        return "; ".join(tests.reasons)


def run_kernels(runs):
    runs.tests("kernels", 65, "cuda_test", "*")


def run_golden(runs):
    runs.tests("golden", 50, "golden_cuda_test", "*")


def run_equalities(runs):
    # Threads are the host's; the walks' own test is no equality.
    chosen = "*/Batch.*:*BlockSizesAreEqual*:*Offloaded*:*HitIsMiss/*:*ChunkedIsWhole*"
    runs.tests("equalities", 90, "equality_cuda_test", chosen)


def run_serving(runs):
    script = [sys.executable, "tests/support/gpu_serving.py", runs.programs, "deploy/models/demo", "cuda:0"]
    runs.bench("serving", "serving", 80, script)


def run_bench(runs):
    if free := runs.obstacle("free"):
        runs.add("bench", "bench", status="skipped", reason=free)
        return
    serving = [runs.programs / "lckv_serving_bench", "--device", "cuda:0"]
    runs.bench("bench", "device-bench", 70, [runs.programs / "lckv_device_bench", "--device", "cuda:0"])
    runs.bench("bench", "serving-decode", 35, [*serving, "decode"])
    runs.bench("bench", "serving-prefill", 35, [*serving, "prefill"])


def run_sanitizer(runs):
    if not runs.sanitizer:
        runs.add("sanitizer", "sanitizer", status="skipped", reason="no compute-sanitizer in PATH or the toolkit")
        return
    for i, tool in enumerate(TOOLS):
        runs.sanitize(tool, runs.left() / (len(TOOLS) - i))


def run_large(runs):
    runs.bench("large", "large-steps", 210, [runs.programs / "lckv_device_bench", "--device", "cuda:0", "large-steps"])
    protocol = [runs.programs / "lckv_protocol_bench", runs.programs / "lckv", "--device", "cuda:0"]
    runs.bench("large", "protocol", 320, [*protocol, "7b"])


def run_offloaded(runs):
    protocol = [runs.programs / "lckv_protocol_bench", runs.programs / "lckv", "--device", "cuda:0"]
    runs.bench("offloaded", "protocol-offloaded", 530, [*protocol, "30b-offloaded"])


# What takes the time that is left comes last.
PARTS = {
    "kernels": run_kernels,
    "golden": run_golden,
    "equalities": run_equalities,
    "serving": run_serving,
    "bench": run_bench,
    "sanitizer": run_sanitizer,
}
NAMED_PARTS = {"large": run_large, "offloaded": run_offloaded}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"gpu: {message}; valid: --only PART, --out FOLDER, --allow-no-device\n")


def main():
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--only", action="append", choices=[*PARTS, *NAMED_PARTS])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/gpu")
    parser.add_argument("--allow-no-device", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu: told to stop"))
    options.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.out)
    try:
        obstacle = runs.obstacle("reproducible")
        for part, run in (PARTS | NAMED_PARTS).items():
            if part not in (options.only or PARTS):
                continue
            if obstacle:
                runs.add(part, part, status="skipped", reason=obstacle)
            else:
                run(runs)
    finally:
        shutil.rmtree(runs.logs)
    print("\n" + gpu_report.summary(runs.report))
    print(f"\n{gpu_report.path_of(runs.report, options.out)}", flush=True)
    if obstacle and not options.allow_no_device:
        sys.exit(f"gpu: no part ran: {obstacle}")
    return 0 if gpu_report.is_good(runs.report) else 1


if __name__ == "__main__":
    sys.exit(main())

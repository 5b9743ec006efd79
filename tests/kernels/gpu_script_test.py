"""tests/gpu.sh without a GPU: what it packs runs elsewhere, and says of every part that and why it was skipped."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
import gpu_report  # noqa: E402

MAX_BYTES = 60_000_000
PARTS = ["kernels", "golden", "equalities", "serving", "bench", "sanitizer"]


def run(script, *arguments):
    # A device that is there stays out of sight.
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    archive = folder / "archive.tar.xz"
    packed = run(ROOT / "tests/gpu.sh", "pack", archive)
    assert packed.returncode == 0, packed.stderr
    assert archive.stat().st_size <= MAX_BYTES
    assert f"{archive.stat().st_size} bytes" in packed.stderr
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder / "lckv-gpu/tests/gpu.sh"


def test_archive_has_its_libraries_and_none_of_cuda(script):
    root = script.parents[1]
    for program in (root / "bin").iterdir():
        linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        others = [line for line in linked.splitlines() if "=>" in line and str(root) not in line]
        assert all(line.split(".so")[0].strip() in ("libc", "libm") for line in others), others
    assert not [path.name for path in (root / "lib").iterdir() if path.name.startswith(("libcu", "libnccl"))]


def test_what_it_serves_with_works_on_the_cpu(script):
    root = script.parents[1]
    command = [root / "tests/support/gpu_serving.py", root / "bin", root / "deploy/models/demo", "cpu"]
    result = subprocess.run(["python3", *command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": 8 streams are equal\n") == 4


def test_without_a_device_every_part_is_skipped(script, tmp_path):
    result = run(script, "run", "--allow-no-device", "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("*.json")
    report = json.loads(path.read_text())
    assert path.name.startswith(report["date"][:10]) and path.stem.endswith(report["commit"])
    assert list(report["parts"]) == PARTS
    for name, part in report["parts"].items():
        assert part["status"] == "skipped"
        assert "CUDA" in part["runs"][0]["reason"]
        assert f"{name:12} {name:18} skipped" in result.stdout


def test_long_parts_run_where_they_are_named(script, tmp_path):
    result = run(script, "run", "--only", "offloaded", "--only", "large", "--allow-no-device", "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("*.json")
    assert list(json.loads(path.read_text())["parts"]) == ["large", "offloaded"]


def test_without_a_device_it_fails_unless_told_otherwise(script, tmp_path):
    result = run(script, "run", "--only", "golden", "--only", "bench", "--out", tmp_path)
    assert result.returncode == 1
    assert "no part ran: " in result.stderr.splitlines()[-1]
    (path,) = tmp_path.glob("*.json")
    assert list(json.loads(path.read_text())["parts"]) == ["golden", "bench"]


@pytest.mark.parametrize("arguments", [[], ["try"], ["run", "--only"], ["run", "--only", "all"], ["run", "--fast"]])
def test_wrong_arguments_name_the_right_ones(arguments):
    result = run(ROOT / "tests/gpu.sh", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "; valid: " in result.stderr


BENCH_LOG = """
Attention alone, decode, bfloat16, free
  head size 64, 8 per KV head, 256 x 4096                       3600.00 GB/s      =  0.837 of copy bandwidth (4300.00)  goal >= 0.9: missed
  batch 8: a step                                                 inf us
    share of it outside operations                               2.50 %          goal <= 3: met
"""


def test_measurements_are_read_from_the_log(tmp_path):
    (tmp_path / "log").write_text(BENCH_LOG)
    result = gpu_report.bench_result(0, tmp_path / "log")
    assert result["status"] == "passed"
    attention, step, share = result["measurements"]
    assert attention["heading"] == "Attention alone, decode, bfloat16, free"
    assert attention["what"] == "head size 64, 8 per KV head, 256 x 4096"
    assert (attention["value"], attention["unit"], attention["ratio"]) == (3600.0, "GB/s", 0.837)
    assert (attention["limit_name"], attention["verdict"]) == ("copy bandwidth", "missed")
    assert step["value"] == "inf" and "of" not in step
    assert (share["of"], share["what"]) == ("batch 8: a step", "share of it outside operations")
    assert (share["value"], share["verdict"]) == (2.5, "met")
    assert gpu_report.bench_result(3, tmp_path / "log")["status"] == "failed"
    cut_off = gpu_report.bench_result(None, tmp_path / "log")
    assert cut_off["status"] == "incomplete" and len(cut_off["measurements"]) == 3


# GoogleTest's own words.
TESTS_BEGIN = """Running main()
[==========] Running 5 tests from 2 test suites.
[ RUN      ] All/A.Good/cuda
[       OK ] All/A.Good/cuda (12 ms)
[ RUN      ] All/A.Bad/cuda
a.cc:7: Failure
Expected equality of these values:
  1
  2
[  FAILED  ] All/A.Bad/cuda, where GetParam() = 24-byte object <01-00> (3 ms)
[ RUN      ] All/A.Left/cuda
a.cc:9: Skipped
libcublasLt.so.13 cannot be loaded

[  SKIPPED ] All/A.Left/cuda (0 ms)
[ RUN      ] All/B.Ends/cuda
"""
TESTS_END = """[==========] Running 1 test from 1 test suite.
[ RUN      ] All/B.Last/cuda
[       OK ] All/B.Last/cuda (1 ms)
[==========] 1 test from 1 test suite ran. (1 ms total)
"""


def test_tests_are_read_from_the_log_also_where_a_process_ended_within_one():
    tests = gpu_report.Tests()
    tests.read(TESTS_BEGIN + "an illegal memory access was encountered\n", 1)
    assert tests.crashed
    assert tests.names == ["All/A.Good/cuda", "All/A.Bad/cuda", "All/A.Left/cuda", "All/B.Ends/cuda"]
    tests.read(TESTS_END, 0)
    assert not tests.crashed
    result = tests.result()
    assert result["status"] == "failed"
    assert {key: result["tests"][key] for key in ("planned", "passed", "skipped")} == {
        "planned": 5,
        "passed": 2,
        "skipped": 1,
    }
    assert result["tests"]["reasons"] == ["libcublasLt.so.13 cannot be loaded"]
    bad, ended = result["tests"]["failed"]
    assert bad["name"] == "All/A.Bad/cuda" and "a.cc:7: Failure" in bad["message"]
    assert ended["name"] == "All/B.Ends/cuda"
    assert "illegal memory access" in ended["message"] and "exit code 1" in ended["message"]


@pytest.mark.parametrize(
    "log, code, status, reason",
    [
        (TESTS_END, 0, "passed", ""),
        (TESTS_END.replace("Running 1 test", "Running 2 tests"), None, "incomplete", "ran past its limit"),
        (TESTS_END.partition("[       OK ]")[0], None, "incomplete", "ran past its limit in All/B.Last/cuda"),
        ("[==========] Running 0 tests from 0 test suites.\n", 0, "failed", "no test was chosen"),
        ("libx.so: cannot open\n", 127, "failed", "exit code 127: libx.so: cannot open"),
        (TESTS_END, -11, "failed", "exit code -11: [==========] 1 test from 1 test suite ran. (1 ms total)"),
    ],
)
def test_tests_that_end_otherwise(log, code, status, reason):
    tests = gpu_report.Tests()
    tests.read(log, code)
    result = tests.result()
    assert (result["status"], result.get("reason", "")) == (status, reason)


@pytest.mark.parametrize(
    "log, code, status",
    [
        ("========= COMPUTE-SANITIZER\n[  PASSED  ] 9 tests.\n========= ERROR SUMMARY: 0 errors\n", 0, "passed"),
        ("========= COMPUTE-SANITIZER\n", None, "incomplete"),
        ("========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n", None, "failed"),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 2 errors\n", 9, "failed"),
        ("========= COMPUTE-SANITIZER\n========= Error: Race reported between\n", 0, "failed"),
    ],
)
def test_what_a_sanitizer_said(tmp_path, log, code, status):
    (tmp_path / "log").write_text(log)
    assert gpu_report.sanitizer_result(code, tmp_path / "log")["status"] == status


# Stands for each program: the last of golden_cuda_test's tests ends the process, lckv_device_bench waits for ever.
PROGRAM = """#!/usr/bin/env python3
import os, pathlib, sys, time
name = pathlib.Path(sys.argv[0]).name
left_out = "".join(sys.argv).partition("-A.")[2]
tests = [test for test in ("b", "c", "d") if test not in left_out] if name == "golden_cuda_test" else ["b"]
print(f"[==========] Running {len(tests)} tests from 1 test suite.")
for test in tests:
    print(f"[ RUN      ] A.{test}", flush=True)
    if test == "c":
        os._exit(1)
    print(f"[       OK ] A.{test} (0 ms)")
print("  what       1.00 GB/s", flush=True)
if name == "lckv_device_bench":
    time.sleep(1000)
"""


def write_program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_a_part_that_fails_keeps_none_from_running(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for name in ("tests/gpu.sh", "tests/support/gpu_run.py", "tests/support/gpu_report.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    text = (tree / "tests/support/gpu_run.py").read_text()
    assert '"device-bench", 70' in text
    (tree / "tests/support/gpu_run.py").write_text(text.replace('"device-bench", 70', '"device-bench", 6'))
    for name in ("cuda_test", "golden_cuda_test", "equality_cuda_test", "lckv_device_bench", "lckv_serving_bench"):
        write_program(tree / "bin" / name, PROGRAM)
    write_program(tree / "tests/support/gpu_serving.py", PROGRAM)
    write_program(tmp_path / "path/compute-sanitizer", '#!/bin/sh\nshift 4\nexec "$@"\n')
    monkeypatch.setenv("PATH", f'{tmp_path}/path:{os.environ["PATH"]}')
    (tree / "commit").write_text("abc\n")
    result = run(tree / "tests/gpu.sh", "run")
    assert result.returncode == 1
    folder = tree / "build/gpu"
    (path,) = folder.glob("*-abc.json")
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {name: "passed" for name in PARTS} | {
        "golden": "failed",
        "bench": "incomplete",
    }
    # The test after the one that ended the process ran too.
    (golden,) = parts["golden"]["runs"]
    assert golden["tests"]["passed"] == 2 and [test["name"] for test in golden["tests"]["failed"]] == ["A.c"]
    assert [entry["name"] for entry in parts["sanitizer"]["runs"]] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert all(entry["measurements"][0]["value"] == 1.0 for entry in parts["bench"]["runs"])
    assert "A.c" in (folder / "table.txt").read_text()
    with tarfile.open(folder / "logs.tar.gz") as logs:
        assert {"logs/golden.log", "logs/racecheck.log"} <= set(logs.getnames())
    assert sorted(path.suffix for path in folder.iterdir()) == [".gz", ".json", ".txt"]


def test_a_run_that_is_stopped_leaves_what_there_was(tmp_path):
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    shutil.copytree(ROOT / "tests/support", tree / "tests/support")
    for name in ("cuda_test", "golden_cuda_test"):
        write_program(tree / "bin" / name, PROGRAM)
    write_program(tree / "tests/support/gpu_serving.py", "import time\nprint('waits', flush=True)\ntime.sleep(1000)\n")
    command = [tree / "tests/support/gpu_run.py", "--only", "kernels", "--only", "serving", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "kernels      kernels" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 1
    (path,) = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text())["parts"]["kernels"]["status"] == "passed"

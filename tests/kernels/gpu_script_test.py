"""tests/gpu.sh without a GPU: what it packs runs elsewhere, and says of every part that and why it was skipped."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
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
        assert f"{name:12} {name:16} skipped" in result.stdout


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
  share of a step outside operations                               2.50 %          goal <= 3: met
"""


@pytest.fixture
def folder(tmp_path):
    """What a run leaves: tests of which one fails, a measurement, a sanitizer that ran out of time."""
    facts = {"date": "2026-01-02T03:04:05Z", "commit": "abc", "device": "NVIDIA X1", "driver": "1.2", "cuda": "13.0"}
    (tmp_path / "facts.tsv").write_text("".join(f"{key}\t{value}\n" for key, value in facts.items()))
    runs = [
        ["kernels", "kernels", 4, 70, 1, ""],
        ["bench", "device-bench", 9, 60, 0, ""],
        ["sanitizer", "racecheck", 35, 35, 124, ""],
        ["golden", "golden", 0, 0, 0, "a reason"],
    ]
    (tmp_path / "runs.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in runs))
    case = {"classname": "A", "result": "COMPLETED"}
    cases = [
        case | {"name": "good"},
        case | {"name": "bad", "failures": [{"failure": "x"}]},
        case | {"name": "left", "result": "SKIPPED", "skipped": [{"message": "a.cc:1\nno cuBLASLt\n"}]},
    ]
    (tmp_path / "kernels.json").write_text(json.dumps({"testsuites": [{"testsuite": cases}]}))
    (tmp_path / "kernels.log").write_text("1 FAILED TEST\n")
    (tmp_path / "device-bench.log").write_text(BENCH_LOG)
    (tmp_path / "racecheck.log").write_text("")
    return tmp_path


def test_report_says_what_came_of_each_run(folder, capsys):
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "tests/support/gpu_report.py")
    gpu_report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_report)
    assert gpu_report.main(folder) == 1
    report = json.loads((folder / "2026-01-02-nvidia-x1-abc.json").read_text())
    runs = {name: part["runs"][0] for name, part in report["parts"].items()}
    assert runs["kernels"]["status"] == "failed"
    expected = {"passed": 1, "failed": ["A.bad"], "skipped": 1, "reasons": ["no cuBLASLt"]}
    assert runs["kernels"]["tests"] == expected
    assert runs["bench"]["status"] == "passed"
    attention, share = runs["bench"]["measurements"]
    assert attention["heading"] == "Attention alone, decode, bfloat16, free"
    assert attention["what"] == "head size 64, 8 per KV head, 256 x 4096"
    assert (attention["value"], attention["unit"], attention["ratio"]) == (3600.0, "GB/s", 0.837)
    assert (attention["limit_name"], attention["verdict"]) == ("copy bandwidth", "missed")
    assert (share["what"], share["value"], share["verdict"]) == ("share of a step outside operations", 2.5, "met")
    assert runs["sanitizer"]["reason"] == "ran past its 35 s"
    assert runs["golden"] | {"status": "skipped", "reason": "a reason"} == runs["golden"]
    assert "1 goals met, 1 missed" in capsys.readouterr().out


# Stands for each program: one case that passes, or in golden_cuda_test fails, and a line of measurement.
PROGRAM = """#!/usr/bin/env python3
import json, pathlib, sys
failed = pathlib.Path(sys.argv[0]).name == "golden_cuda_test"
for argument in sys.argv:
    if argument.startswith("--gtest_output=json:"):
        case = {"classname": "A", "name": "b", "result": "COMPLETED"}
        if failed:
            case["failures"] = [{"failure": "x"}]
        pathlib.Path(argument.split(":", 1)[1]).write_text(json.dumps({"testsuites": [{"testsuite": [case]}]}))
print("  what       1.00 GB/s")
sys.exit(failed)
"""


def write_program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_a_part_that_fails_keeps_none_from_running(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for name in ("tests/gpu.sh", "tests/support/gpu_report.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in ("cuda_test", "golden_cuda_test", "equality_cuda_test", "lckv_device_bench", "lckv_serving_bench"):
        write_program(tree / "bin" / name, PROGRAM)
    write_program(tree / "tests/support/gpu_serving.py", PROGRAM)
    write_program(tmp_path / "path/compute-sanitizer", '#!/bin/sh\nshift 4\nexec "$@"\n')
    monkeypatch.setenv("PATH", f'{tmp_path}/path:{os.environ["PATH"]}')
    (tree / "commit").write_text("abc\n")
    result = run(tree / "tests/gpu.sh", "run")
    assert result.returncode == 1
    (path,) = (tree / "build/gpu").glob("*-abc.json")
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {name: "passed" for name in PARTS} | {
        "golden": "failed"
    }
    assert parts["golden"]["runs"][0]["tests"]["failed"] == ["A.b"]
    assert [entry["name"] for entry in parts["sanitizer"]["runs"]] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert all(entry["measurements"][0]["value"] == 1.0 for entry in parts["bench"]["runs"])

#!/usr/bin/env python3
"""Says what came of `tests/gpu.sh run`: `gpu_report.py FOLDER`.

Reads what the script left there (facts.tsv, runs.tsv, logs, GoogleTest's reports), prints a table and writes all of it
to FOLDER/DATE-DEVICE-COMMIT.json. Exits 1 where anything failed. Needs nothing but Python.
"""

import json
import pathlib
import re
import sys

RUN_KEYS = ("part", "name", "seconds", "limit", "exit_code", "reason")
# As tests/bench/lines.cc prints them.
MEASUREMENT = re.compile(
    r"^  (?P<what>.+?) +(?P<value>-?\d+\.\d\d|-?inf|-?nan) (?P<unit>\S*) *"
    r"(?:= +(?P<ratio>\S+) of (?P<limit_name>.+) \((?P<limit>\S+)\))?"
    r"(?:  goal (?P<goal>[<>]= \S+): (?P<verdict>met|missed))?$"
)
SANITIZER_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (.*)")
DEADLINE_CODES = (124, 137)  # of timeout


def read_table(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def gtest_counts(path):
    """What ran, failed and was skipped, and why: a reason is told once."""
    if not path.exists():
        return None
    cases = [case for suite in json.loads(path.read_text())["testsuites"] for case in suite["testsuite"]]
    skipped = [case for case in cases if case["result"] == "SKIPPED"]
    reasons = {entry["message"].strip().splitlines()[-1] for case in skipped for entry in case.get("skipped", [])}
    return {
        "passed": sum(case["result"] == "COMPLETED" and not case.get("failures") for case in cases),
        "failed": [f'{case["classname"]}.{case["name"]}' for case in cases if case.get("failures")],
        "skipped": len(skipped),
        "reasons": sorted(reasons),
    }


def measurements(log):
    found = []
    heading = ""
    for line in log.splitlines():
        match = MEASUREMENT.match(line)
        if match:
            entry = {key: value for key, value in match.groupdict().items() if value}
            for key in ("value", "ratio", "limit"):
                if key in entry:
                    entry[key] = float(entry[key])
            found.append({"heading": heading, **entry, "what": entry["what"].strip()})
        elif line and not line.startswith(" "):
            heading = line
    return found


def described(run, folder):
    """A line of runs.tsv with its numbers and its verdict."""
    run = dict(zip(RUN_KEYS, run))
    run |= {key: int(run[key]) for key in ("seconds", "limit", "exit_code")}
    if run["reason"]:
        return run | {"status": "skipped"}
    log = (folder / f'{run["name"]}.log').read_text(errors="replace")
    tests = gtest_counts(folder / f'{run["name"]}.json')
    if tests:
        run["tests"] = tests
    elif lines := measurements(log):
        run["measurements"] = lines
    if summary := SANITIZER_SUMMARY.search(log):
        run["summary"] = summary.group(2)
    if run["exit_code"] in DEADLINE_CODES:
        return run | {"status": "failed", "reason": f'ran past its {run["limit"]} s'}
    if run["exit_code"] != 0:
        last = log.strip().splitlines()[-1:]
        return run | {"status": "failed", "reason": " ".join([f'exit code {run["exit_code"]}:', *last])}
    if tests and not tests["passed"]:
        return run | {"status": "skipped", "reason": "; ".join(tests["reasons"]) or "no test was chosen"}
    return run | {"status": "passed"}


def status_of(runs):
    for status in ("failed", "passed"):
        if any(run["status"] == status for run in runs):
            return status
    return "skipped"


def numbers_of(run):
    """What the table says of a run."""
    said = [run["reason"]] if run["reason"] else []
    if tests := run.get("tests"):
        said.append(f'{tests["passed"]} passed, {len(tests["failed"])} failed, {tests["skipped"]} skipped')
        if run["status"] != "skipped":
            said += tests["reasons"]
    if lines := run.get("measurements"):
        verdicts = [line.get("verdict") for line in lines]
        said.append(f'{verdicts.count("met")} goals met, {verdicts.count("missed")} missed')
    if "summary" in run:
        said.append(run["summary"])
    return "; ".join(said)


def table(report):
    device, driver, cuda = (report[key] or "unknown" for key in ("device", "driver", "cuda"))
    lines = [f'device {device}, driver {driver}, CUDA {cuda}, {report["date"]}, commit {report["commit"]}', ""]
    lines.append(f'{"part":12} {"run":16} {"status":8} {"s":>4}  result')
    for name, part in report["parts"].items():
        for run in part["runs"]:
            lines.append(f'{name:12} {run["name"]:16} {run["status"]:8} {run["seconds"]:4}  {numbers_of(run)}')
            lines += [f"{'':44}{test}" for test in run.get("tests", {}).get("failed", [])]
            lines += [f"{'':44}{shown(line)}" for line in run.get("measurements", [])]
    return "\n".join(lines)


def shown(line):
    ratio = f' = {line["ratio"]:.3f} of {line["limit_name"]}' if "ratio" in line else ""
    goal = f', goal {line["goal"]}: {line["verdict"]}' if "goal" in line else ""
    return f'{line["what"]}: {line["value"]:.2f} {line.get("unit", "")}{ratio}{goal}'


def main(folder):
    folder = pathlib.Path(folder)
    report = dict(read_table(folder / "facts.tsv"))
    report["parts"] = {}
    for row in read_table(folder / "runs.tsv"):
        run = described(row, folder)
        report["parts"].setdefault(run.pop("part"), {"runs": []})["runs"].append(run)
    for part in report["parts"].values():
        part["status"] = status_of(part["runs"])
        part["seconds"] = sum(run["seconds"] for run in part["runs"])
    device = re.sub(r"[^a-z0-9]+", "-", (report["device"] or "unknown device").lower())
    path = folder / f'{report["date"][:10]}-{device}-{report["commit"]}.json'
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\n{path}")
    return 1 if any(part["status"] == "failed" for part in report["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

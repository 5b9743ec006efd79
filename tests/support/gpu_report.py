"""What came of the commands of `tests/gpu.sh run`: read from their logs, and told as a table and a .json file."""

import io
import json
import math
import os
import re
import tarfile

# As tests/bench/lines.cc prints them; one that is indented further belongs to the one above.
MEASUREMENT = re.compile(
    r"^  (?P<what>.+?) +(?P<value>-?\d+\.\d\d|-?inf|-?nan) (?P<unit>\S*) *"
    r"(?:= +(?P<ratio>\S+) of (?P<limit_name>.+) \((?P<limit>\S+)\))?"
    r"(?:  goal (?P<goal>[<>]= \S+): (?P<verdict>met|missed))?$"
)
TESTS_PLANNED = re.compile(r"^\[={10}\] Running (\d+) tests?")
TEST_BEGAN = re.compile(r"\[ RUN      \] (\S+)$")
# What a test printed may stand before it.
TEST_ENDED = re.compile(r"\[( {7}OK | {2}FAILED {2}| {2}SKIPPED )\] ([^\s,]+)(?:, where| \()")
SANITIZER_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")
SANITIZER_FINDING = re.compile(r"^=+ (?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY)\S.*(?:rror|nvalid|ninit|azard|eak)")
MESSAGE_LINES = 20
STATUSES = ("failed", "incomplete", "passed", "skipped")  # the first of a part's is the part's


def number(text):
    """JSON knows no infinity."""
    value = float(text)
    return value if math.isfinite(value) else text


def measurements(log):
    found = []
    heading = above = ""
    for line in log.splitlines():
        if match := MEASUREMENT.match(line):
            entry = {key: value for key, value in match.groupdict().items() if value}
            entry |= {key: number(entry[key]) for key in ("value", "ratio", "limit") if key in entry}
            what = entry["what"].strip()
            if entry["what"].startswith(" "):
                entry["of"] = above
            else:
                above = what
            found.append({"heading": heading, **entry, "what": what})
        elif line and not line.startswith(" "):
            heading = line
    return found


def last_line(log):
    return (log.strip().splitlines() or ["it said nothing"])[-1]


def bench_result(code, path):
    log = path.read_text(errors="replace")
    result = {"measurements": lines} if (lines := measurements(log)) else {}
    if code is None:
        return result | {"status": "incomplete", "reason": "ran past its limit"}
    if code != 0:
        return result | {"status": "failed", "reason": f"exit code {code}: {last_line(log)}"}
    return result | {"status": "passed"}


def sanitizer_result(code, path):
    log = path.read_text(errors="replace")
    findings = [line for line in log.splitlines() if SANITIZER_FINDING.match(line)]
    summary = SANITIZER_SUMMARY.search(log)
    result = {"summary": summary[1]} if summary else {}
    if findings:
        return result | {"status": "failed", "reason": findings[0].strip("= ")}
    if code is None:
        return result | {"status": "incomplete", "reason": "ran past its limit without a finding"}
    if code != 0:
        return result | {"status": "failed", "reason": f"exit code {code}: {last_line(log)}"}
    return result | {"status": "passed"}


class Tests:
    """What GoogleTest's logs say of one program's tests, which may have taken several processes."""

    def __init__(self):
        self.planned = None
        self.names = []  # of all that began
        self.passed = 0
        self.failed = []  # names and messages
        self.skipped = 0
        self.reasons = []  # of those skipped, each once
        self.ended = ""  # why the last process ended before its tests did
        self.crashed = False

    def read(self, log, code):
        current, lines = None, []
        for line in log.splitlines():
            if planned := TESTS_PLANNED.match(line):
                self.planned = self.planned or int(planned[1])
            elif began := TEST_BEGAN.search(line):
                current, lines = began[1], []
                self.names.append(current)
            elif current and (ended := TEST_ENDED.search(line)) and ended[2] == current:
                self._end(current, ended[1].strip(), lines)
                current = None
            else:
                lines.append(line)
        self.crashed = code not in (0, 1, None) or (code == 1 and current is not None)
        self.ended = ""
        if code is None:
            self.ended = f"ran past its limit{f' in {current}' if current else ''}"
        elif self.crashed and current:
            self._fail(current, [*lines, f"the process ended with exit code {code}"])
        elif code != 0 and not self.failed:
            self.ended = f"exit code {code}: {last_line(log)}"
        self.crashed = self.crashed and current is not None

    def _end(self, name, verdict, lines):
        if verdict == "OK":
            self.passed += 1
        elif verdict == "FAILED":
            self._fail(name, lines)
        else:
            self.skipped += 1
            places = [i for i, line in enumerate(lines[:-1]) if line.endswith(": Skipped")]
            self.reasons += [lines[i + 1] for i in places if lines[i + 1] not in self.reasons]

    def _fail(self, name, lines):
        self.failed.append({"name": name, "message": "\n".join(lines[-MESSAGE_LINES:])})

    def result(self):
        planned = self.planned or 0
        result = {
            "tests": {
                "planned": planned,
                "passed": self.passed,
                "failed": self.failed,
                "skipped": self.skipped,
                "reasons": self.reasons,
            }
        }
        not_done = planned - self.passed - len(self.failed) - self.skipped
        if self.failed or self.ended.startswith("exit code"):
            return result | {"status": "failed", "reason": self.ended}
        if planned == 0:
            return result | {"status": "failed", "reason": self.ended or "no test was chosen"}
        if not_done:
            return result | {"status": "incomplete", "reason": self.ended or "some did not run"}
        if self.skipped == planned:
            return result | {"status": "skipped", "reason": "; ".join(self.reasons)}
        return result | {"status": "passed"}


def status_of(part):
    return min((run["status"] for run in part["runs"]), key=STATUSES.index)


def is_good(report):
    return all(status_of(part) in ("passed", "skipped") for part in report["parts"].values())


def numbers_of(run):
    said = [run["reason"]] if run.get("reason") else []
    if tests := run.get("tests"):
        said.append(f'{tests["passed"]} passed, {len(tests["failed"])} failed, {tests["skipped"]} skipped')
        said[-1] += f' of {tests["planned"]}'
        if run["status"] != "skipped":
            said += tests["reasons"]
    if lines := run.get("measurements"):
        verdicts = [line.get("verdict") for line in lines]
        said.append(f'{verdicts.count("met")} goals met, {verdicts.count("missed")} missed')
    if "summary" in run:
        said.append(run["summary"])
    return "; ".join(said)


def line_of(part, run):
    return f'{part:12} {run["name"]:18} {run["status"]:10} {run["seconds"]:4}  {numbers_of(run)}'


def shown(line):
    ratio = f' = {line["ratio"]} of {line["limit_name"]}' if "ratio" in line else ""
    goal = f', goal {line["goal"]}: {line["verdict"]}' if "goal" in line else ""
    indent = "  " if "of" in line else ""
    return f'{indent}{line["what"]}: {line["value"]} {line.get("unit", "")}{ratio}{goal}'


def lines_of(part, run):
    """Everything of one run, for the table."""
    lines = [line_of(part, run)]
    for test in run.get("tests", {}).get("failed", []):
        lines += [f'    {test["name"]}', *(f"      {line}" for line in test["message"].splitlines())]
    heading = None
    for line in run.get("measurements", []):
        if line["heading"] != heading:
            heading = line["heading"]
            lines.append(f"    {heading}")
        lines.append(f"      {shown(line)}")
    return lines


def title(report):
    device, driver, cuda = (report[key] or "unknown" for key in ("device", "driver", "cuda"))
    return f'device {device}, driver {driver}, CUDA {cuda}, {report["date"]}, commit {report["commit"]}'


def summary(report):
    """A line for each run: what a reader wants to see last."""
    lines = [title(report), "", f'{"part":12} {"run":18} {"status":10} {"s":>4}  result']
    for name, part in report["parts"].items():
        lines += [line_of(name, run) for run in part["runs"]]
    return "\n".join(lines)


def path_of(report, folder):
    device = re.sub(r"[^a-z0-9]+", "-", (report["device"] or "unknown device").lower()).strip("-")
    return folder / f'{report["date"][:10]}-{device}-{report["commit"]}.json'


def write(report, folder, logs):
    """All there is by now: .json, table.txt and logs.tar.gz. One that is cut off leaves the earlier ones whole."""
    for part in report["parts"].values():
        part["status"] = status_of(part)
        part["seconds"] = sum(run["seconds"] for run in part["runs"])
    runs = [(name, run) for name, part in report["parts"].items() for run in part["runs"]]
    table = [summary(report)]
    for name, run in runs:
        if len(details := lines_of(name, run)) > 1:
            table += ["", *details]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(logs, arcname="logs")
    contents = {
        path_of(report, folder): (json.dumps(report, indent=1, allow_nan=False) + "\n").encode(),
        folder / "table.txt": ("\n".join(table) + "\n").encode(),
        folder / "logs.tar.gz": packed.getvalue(),
    }
    for path, content in contents.items():
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(content)
        os.replace(beside, path)

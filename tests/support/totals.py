#!/usr/bin/env python3
"""Adds up the reports that tests/run.sh left in a folder.

Names what failed and the ten slowest, then prints `N passed, M failed`. Exits 1 where anything failed or nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as xml


def junit_cases(path):
    """(name, seconds, passed) of each case that ran; skipped ones are left out."""
    cases = []
    for case in xml.parse(path).iter("testcase"):
        if case.get("status") in ("notrun", "disabled") or case.find("skipped") is not None:
            continue
        passed = (
            case.find("failure") is None
            and case.find("error") is None
            and case.get("status", "run") in ("run", "passed")
        )
        name = f'{case.get("classname", "")}.{case.get("name")}'
        cases.append((name, float(case.get("time") or 0), passed))
    return cases


def gtest_cases(folder, ctest):
    """Cases of the programs that wrote a report. One that ended badly without a failed case counts as one failure."""
    cases = []
    for program, seconds, passed in ctest:
        report = folder / "gtest" / f'{program.rpartition(".")[2]}.xml'
        try:
            own = junit_cases(report)
        except (OSError, xml.ParseError):
            own = []
        cases += own
        if not own or (not passed and all(ok for _, _, ok in own)):
            cases.append((program, seconds, passed))
    return cases


def all_cases(folder):
    cases = []
    if (folder / "ctest.xml").exists():
        cases += gtest_cases(folder, junit_cases(folder / "ctest.xml"))
    for report in ("tidy.xml", "e2e.xml", "helm.xml", "observability.xml"):
        if (folder / report).exists():
            cases += junit_cases(folder / report)
    steps = folder / "steps.tsv"
    if steps.exists():
        for line in steps.read_text().splitlines():
            name, seconds, status = line.split("\t")
            is_check = name.startswith("tests/")
            if is_check or status != "0":  # installing and building are no tests, unless they fail
                cases.append((name, float(seconds), status == "0"))
    return cases


def main():
    cases = all_cases(pathlib.Path(sys.argv[1]))
    failed = [name for name, _, passed in cases if not passed]
    print("\nTen slowest:")
    for name, seconds, _ in sorted(cases, key=lambda case: -case[1])[:10]:
        print(f"  {seconds:8.1f} s  {name}")
    for name in failed:
        print(f"FAILED {name}")
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())

"""Dashboards and rules as files: they parse, they are generated, each says what it shows and what to do."""

import json
import math
import os
import re
import shutil
import subprocess

import pytest
import yaml

import expressions
import serving

PATH = f"{serving.ROOT}/build/tools/bin:{os.environ['PATH']}"
OPERATIONS = expressions.ROOT / "deploy/OPERATIONS.md"
# Of Grafana; a unit of our own is `suffix: ...`.
UNITS = {"short", "s", "reqps", "cps", "ops", "percentunit", "bytes", "none"}


def promtool(*arguments):
    return subprocess.run(
        [shutil.which("promtool", path=PATH), *arguments],
        cwd=expressions.RULES,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "recording.yaml", "alerts.yaml")]
    + [("test", "rules", "alerts_test.yaml")],
    ids=" ".join,
)
def test_promtool_accepts(arguments):
    result = promtool(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr


def looks_at(alert, tests):
    """Of each test that looks at the alert: whether it fires there, in the order of time."""
    for test in tests:
        seen = []
        for look in test.get("promql_expr_test", []):
            named = re.fullmatch(r'ALERTS\{alertname=~?"([^"]*)",alertstate="firing"\}', look["expr"])
            if named and re.fullmatch(named[1], alert):
                fires = any(f'alertname="{alert}"' in sample["labels"] for sample in look.get("exp_samples", []))
                seen.append((expressions.milliseconds(look["eval_time"]), fires))
        yield [fires for _, fires in sorted(seen)]


def is_seen_through(fires):
    """Silent, then firing, then silent again."""
    first = fires.index(True) if True in fires else len(fires)
    return False in fires[:first] and False in fires[first:]


def test_every_alert_is_seen_silent_firing_and_resolved():
    tests = yaml.safe_load((expressions.RULES / "alerts_test.yaml").read_text())["tests"]
    for rule in expressions.rules("alerts"):
        assert any(map(is_seen_through, looks_at(rule["alert"], tests))), rule["alert"]


@pytest.mark.parametrize("fires", [[], [False], [True], [False, True], [True, False], [False, False], [True, True]])
def test_less_is_not_seen_through(fires):
    assert not is_seen_through(fires) and is_seen_through([False, True, False])


def test_a_stall_is_told_before_its_replica_ends_itself():
    """At the latest: just before a scrape it is not old enough, and just before an evaluation not scraped."""
    [(group, rule)] = [
        (group, rule)
        for group in yaml.safe_load((expressions.RULES / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
        if rule.get("alert") == "LckvStepsStalled"
    ]
    age = re.fullmatch(r"lckv_step_age_seconds > (\d+)", rule["expr"])[1] + "s"
    scraped = yaml.safe_load((expressions.ROOT / "helm/lckv/values.yaml").read_text())["monitoring"]["monitors"]
    told = sum(map(expressions.milliseconds, (age, scraped["interval"], group["interval"], rule["for"])))
    config = (expressions.ROOT / "worker/config.h").read_text()
    assert told < int(re.search(r"step_timeout = absl::Seconds\((\d+)\)", config)[1]) * 1000


def headings():
    """Anchors of the headings of OPERATIONS.md, with what is written under each."""
    parts = re.split(r"^#+ (.*)$", OPERATIONS.read_text(), flags=re.M)
    return {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-"): body
        for title, body in zip(parts[1::2], parts[2::2])
    }


@pytest.mark.parametrize("rule", expressions.rules("alerts"), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "for" in rule
    notes = rule["annotations"]
    assert notes["summary"] and notes["description"] and not notes["summary"].endswith(".")
    file, _, anchor = notes["runbook"].partition("#")
    assert file == "deploy/OPERATIONS.md" and anchor == rule["alert"].lower()
    section = headings()[anchor]
    for part in ("Meaning", "First look", "Action"):
        assert f"**{part}.**" in section, f"{anchor}: no {part}"


def test_nothing_is_filled_up_with_zeros():
    for where, expr in expressions.all_expressions():
        assert "vector(" not in expr, where


def test_dashboards_are_what_their_source_gives(tmp_path):
    python = expressions.ROOT / "build/tools/dashboards/bin/python"
    source = expressions.ROOT / "deploy/grafana/dashboards.py"
    subprocess.run([python, source, tmp_path], check=True, timeout=120)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in expressions.BOARDS.iterdir()}


@pytest.mark.parametrize("name", ["fleet", "model-memory", "step"])
def test_a_board_can_be_narrowed(name):
    board = expressions.boards()[name]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables.pop("datasource")["type"] == "datasource"
    assert "model_name" in variables and len(variables) == 2
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps([panel["targets"] for panel in expressions.panels(board)])))
    assert used == set(variables)
    assert len({panel["title"] + panel["type"] for panel in expressions.panels(board)}) == len(
        expressions.panels(board)
    )


@pytest.mark.parametrize(
    ("board", "panel"),
    expressions.all_panels(),
    ids=lambda value: value if isinstance(value, str) else f"{value['id']}-{value['title']}",
)
def test_a_panel_says_what_it_shows(board, panel):
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS or defaults["unit"].startswith("suffix: "), defaults["unit"]
    assert panel["targets"]
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert all(legends) and len(set(legends)) == len(legends)
    for target in panel["targets"]:
        # A legend that names a label needs that label in the answer.
        expr, grouped = target["expr"], expressions.series_asked_for(target["expr"])[1]
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert label in grouped or not re.match(r"(sum|max|count|histogram_quantile)\b", expr), (label, expr)
        if "histogram_quantile" in expr:
            assert "le" in grouped, expr
    if panel["type"] == "stat":
        assert defaults["thresholds"]["steps"][0]["value"] is None
    elif panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] and defaults["min"] == 0
        if defaults["unit"] == "percentunit" and "max" in defaults:
            assert defaults["max"] == 1


def fits(unit, expr):
    """Whether what the expression gives is of the unit, as far as names of metrics and its operators tell."""
    names = {name for name, _ in expressions.series_asked_for(expr)[0]}
    operators = re.sub(r"{[^}]*}", "", expr)
    seconds = any(re.search(r"_seconds(_bucket|_sum|_total)?$", name) for name in names)
    per_second = unit in ("reqps", "cps", "ops") or unit.endswith("/s")
    share = unit in ("percentunit", "short") or (unit.startswith("suffix: ") and not per_second)
    if any("_bytes" in name for name in names):
        return unit == "bytes"
    if "histogram_quantile" in operators:
        return unit == "s" if seconds else share and unit != "percentunit"
    if "/" in operators:
        return unit == "s" if seconds else share
    if "rate(" in operators:
        return unit in ("percentunit", "short") if seconds else per_second
    if seconds:
        return unit == "s"
    if any(":ratio_" in name or name.endswith("_perc") for name in names) and "*" not in operators:
        return unit == "percentunit"
    return unit in ("short", "none")


def test_a_panels_unit_is_that_of_what_it_shows():
    for board, panel in expressions.all_panels():
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert fits(unit, target["expr"]), f"{board}: {panel['title']}: {unit}: {target['expr']}"


@pytest.mark.parametrize(
    ("unit", "expr"),
    [
        ("short", "histogram_quantile(0.5, sum by (le) (rate(lckv_router_ttft_seconds_bucket[5m])))"),
        ("s", "sum(rate(lckv_router_requests_total[5m]))"),
        ("reqps", "sum(lckv_router_queue_depth)"),
        ("short", "lckv_step_age_seconds"),
        ("bytes", "max(vllm:kv_cache_usage_perc)"),
        ("short", "max(lckv_kv_bytes_per_token)"),
        ("cps", "sum(rate(a_total[5m])) / sum(rate(b_total[5m]))"),
    ],
)
def test_another_unit_is_found(unit, expr):
    assert not fits(unit, expr)


# What each colour of a panel begins at: an alert's limit, or nothing that an alert says.
COLOURS = {
    ("Ready replicas", "stat"): {1: None},
    ("Errors", "stat"): {0.01: None, 0.05: "LckvErrorsHigh"},
    ("Slow first tokens", "stat"): {0.01: None, 0.144: "LckvFirstTokensSlow"},
    ("Time to first token", "timeseries"): {2: None},
    ("Slow first tokens", "timeseries"): {0.06: "LckvFirstTokensSlowLong", 0.144: "LckvFirstTokensSlow"},
    ("Errors", "timeseries"): {0.05: "LckvErrorsHigh"},
    ("Refusals", "timeseries"): {0.05: "LckvCallsRefused"},
    ("Fill of a router's queue", "timeseries"): {0.8: "LckvQueueFilling"},
    ("Blocks in use", "stat"): {0.8: None, 0.95: "LckvKvBlocksExhausted"},
    ("Blocks in use", "timeseries"): {0.95: "LckvKvBlocksExhausted"},
    ("Work without a step", "timeseries"): {15: "LckvStepsStalled"},
}


def test_every_colour_is_an_alerts_or_said_to_be_none():
    compared = {
        rule["alert"]: {
            round(math.prod(map(float, product.split(" * "))), 6)
            for product in re.findall(r" > ([\d.]+(?: \* [\d.]+)?)(?=\s|$)", rule["expr"])
        }
        for rule in expressions.rules("alerts")
    }
    found = {}
    for _, panel in expressions.all_panels():
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})["steps"][1:]
        if steps:
            found[panel["title"], panel["type"]] = {step["value"] for step in steps}
    assert found == {panel: set(of_panel) for panel, of_panel in COLOURS.items()}
    for panel, of_panel in COLOURS.items():
        for value, alert in of_panel.items():
            assert alert is None or value in compared[alert], f"{panel}: {value}, {alert}: {compared[alert]}"


def limits():
    """The number that an alert compares each metric with, where it is one."""
    found = {}
    for rule in expressions.rules("alerts"):
        for metric, product in re.findall(r"([\w:]+)(?:\[\w+\]\))? > ([\d.]+(?: \* [\d.]+)?)(?= |$)", rule["expr"]):
            number = 1.0
            for factor in product.split(" * "):
                number *= float(factor)
            if number > 0:
                found.setdefault(metric, set()).add(round(number, 6))
    return found


def test_thresholds_are_those_of_the_alerts():
    known = limits()
    assert set(known) == {
        "lckv_step_age_seconds",
        "vllm:kv_cache_usage_perc",
        "model_name:lckv_router_errors:ratio_rate5m",
        "model_name:lckv_router_refusals:ratio_rate5m",
        *(f"model_name:lckv_router_ttft_over_2s:ratio_rate{window}" for window in ("5m", "30m", "1h", "6h")),
    }
    seen = set()
    for board, panel in expressions.all_panels():
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []})["steps"][1:]
        for target in panel["targets"]:
            alone = re.fullmatch(r"(?:max\()?([\w:]+)\{[^}]*\}\)?", target["expr"])
            if alone and alone[1] in known:
                values = {step["value"] for step in steps}
                assert known[alone[1]] & values, f"{board}: {panel['title']}: {values}, alert: {known[alone[1]]}"
                seen.add(alone[1])
    assert seen >= {metric for metric in known if not metric.endswith(("30m", "6h"))}


def test_the_line_of_slow_first_tokens_is_the_objective():
    [panel] = [panel for _, panel in expressions.all_panels() if panel["title"] == "Time to first token"]
    [line] = panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]
    edges = {edge for rule in expressions.rules("recording") for edge in re.findall(r'le=~"(\d+)\(', rule["expr"])}
    assert edges == {str(line["value"])}

"""Dashboards and rules against running programs under a load."""

import pathlib
import re
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "helm"))

import chart  # noqa: E402
import draw
import expressions
import live
import monitoring
import serving

TOLERANCE = 0.05
PICTURES = serving.ROOT / "build/observability"
# Not of the programs, but of Prometheus or of the library that serves /metrics.
FOREIGN = re.compile(r"^(up|ALERTS|exposer_\w+)$")
FOREIGN_LABELS = {"job", "instance", "alertname", "alertstate", "severity"}
# Those that count time or messages, with and without a load.
NEVER_STILL = re.compile(r"lckv_rank_wait_seconds_total|lckv_router_frames_total|process_cpu_|exposer_")


def counting(text):
    """Series of counters and histograms."""
    kinds, values = live.parse(text)
    return {
        series: value
        for series, value in values.items()
        if kinds.get(re.sub(r"_(bucket|sum|count)$", "", series.partition("{")[0]), "") == "histogram"
        or kinds.get(series.partition("{")[0]) == "counter"
    }


def test_rules_are_evaluated(served):
    groups = served.prometheus.ask("rules")["groups"]
    ours = [rule for group in groups for rule in group["rules"]]
    assert len(ours) == len(expressions.rules("recording")) + len(expressions.rules("alerts"))
    assert [rule["name"] for rule in ours if rule["health"] != "ok"] == []


def test_counters_are_there_from_the_start(served):
    for address in served.addresses():
        before, after = counting(served.fresh[address]), counting(served.after[address])
        assert sorted(set(after) - set(before)) == []
        moved = {series for series, value in before.items() if value != 0 and not NEVER_STILL.match(series)}
        assert moved == set(), address


def test_what_is_asked_for_is_exported(served):
    there = served.exported()
    recorded = {rule["record"] for rule in expressions.rules("recording")}
    queries = [
        (variable["name"], re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]))
        for board in expressions.boards().values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
    for where, expr in [*expressions.all_expressions(), *queries, ("autoscalers", live.DEMAND)]:
        asked, grouped = expressions.series_asked_for(expr)
        assert asked, where
        for metric, labels in asked:
            if metric in recorded:
                assert labels <= {"model_name"}, where
            elif metric == "lckv_tls_not_after_seconds":
                continue  # there is no certificate here; tests/observability/test_alerts.py has one
            elif not FOREIGN.match(metric):
                assert metric in there, f"{where}: {metric}"
                assert labels <= there[metric] | FOREIGN_LABELS, f"{where}: {metric} {labels - there[metric]}"
        assert grouped <= set().union(*there.values()) | FOREIGN_LABELS, where


@pytest.mark.parametrize(
    ("board", "panel"),
    expressions.all_panels(),
    ids=lambda value: value if isinstance(value, str) else f"{value['id']}-{value['title']}",
)
def test_a_panel_has_data(served, board, panel):
    for target in panel["targets"]:
        expr = expressions.filled_in(target["expr"], monitoring.RATE_INTERVAL)
        found = served.prometheus.history(expr, served.begin, served.end)
        assert any(live.has_value(points) for _, points in found), expr
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert all(label in labels for labels, _ in found), (label, expr)


@pytest.mark.parametrize("rule", expressions.rules("recording"), ids=lambda rule: rule["record"])
def test_a_recording_rule_has_data(served, rule):
    found = served.prometheus.history(rule["record"], served.begin, served.end)
    assert any(live.has_value(points) for _, points in found)


def test_demand_is_what_clients_asked_for(served):
    assert len(served.held) == 2
    for demand in served.held:
        assert demand["slow"] == live.HELD
        assert demand["idle"] == 0  # no replica, and a value
        assert 0 < demand["demo"] <= 2 * live.CALLERS  # choices count singly


@pytest.mark.parametrize("by", ["hpa", "keda"])
def test_what_the_charts_autoscalers_ask_is_the_demand(served, tmp_path, by):
    model = {"servedName": "slow", "autoscaling": {"by": by}}
    values = chart.values_of(
        chart.SMALL, {"models": {"demo": model}, "autoscaling": {"prometheusUrl": "http://prometheus:9090"}}
    )
    [query] = chart.metric_queries(chart.render(tmp_path, values))
    [(_, points)] = served.prometheus.history(query, served.begin, served.end)
    demand = [value for _, value in points]
    assert live.HELD in demand and demand[-1] == 0


def expectations(count):
    """Expressions, and what they are to give after the load."""
    demo = 'model_name="demo"'
    generate = 'lckv_router_requests_total{method="Generate"'
    return {
        f'sum({generate},{demo},code="OK"}})': count["calls"],
        f'sum({generate},code="INVALID_ARGUMENT"}})': count["invalid"],
        f'sum({generate},code="NOT_FOUND"}})': count["unknown"],
        f'sum({generate},code="UNAVAILABLE"}})': 1,
        # Held, and the one whose deadline came: which of both ends comes first is chance.
        f'sum({generate},code=~"CANCELLED|DEADLINE_EXCEEDED",model_name="slow"}})': live.HELD + 1,
        'sum(lckv_router_cancelled_total) + sum(lckv_router_rejected_total{reason="deadline_exceeded"})': live.HELD + 1,
        'sum(lckv_router_rejected_total{reason="invalid_argument"})': count["invalid"],
        f"sum(lckv_router_ttft_seconds_count{{{demo}}})": count["choices"],
        f'sum(lckv_router_tokens_total{{kind="prompt",{demo}}})': count["prompt_tokens"],
        f'sum(lckv_router_tokens_total{{kind="completion",{demo}}})': count["tokens"],
        f"sum(vllm:time_to_first_token_seconds_count{{{demo}}})": count["choices"],
        f"sum(vllm:request_success_total{{{demo}}})": count["choices"],
        f"sum(vllm:prompt_tokens_total{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:prompt_tokens_by_source_total{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:request_prompt_tokens_sum{{{demo}}})": count["sequence_prompt_tokens"],
        f"sum(vllm:generation_tokens_total{{{demo}}})": count["tokens"],
        f"sum(vllm:request_generation_tokens_sum{{{demo}}})": count["tokens"],
        f"sum(vllm:inter_token_latency_seconds_count{{{demo}}})": count["tokens"] - count["choices"],
        f"sum(vllm:e2e_request_latency_seconds_count{{{demo}}})": count["choices"],
    }


def test_counters_are_what_clients_counted(served):
    wrong = {
        expr: (served.prometheus.value(expr), expected)
        for expr, expected in expectations(served.count).items()
        if served.prometheus.value(expr) != pytest.approx(expected, rel=TOLERANCE)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("title", "legend", "counted"),
    [
        ("Calls per second", None, "calls"),
        ("Tokens per second", None, "tokens"),
        ("Tokens", "prompt", "sequence_prompt_tokens"),
        ("Tokens", "generated", "tokens"),
        ("Rows by what they are for", "generated", "tokens"),
    ],
)
def test_a_panel_over_the_load_adds_up_to_it(served, title, legend, counted):
    """A rate summed over the seconds of the load is what was counted."""
    [panel] = [panel for _, panel in expressions.all_panels() if panel["title"] == title]
    [expr] = [target["expr"] for target in panel["targets"] if legend in (None, target["legendFormat"])]
    expr = expressions.filled_in(expr, monitoring.RATE_INTERVAL, model_name="demo")
    [(_, points)] = served.prometheus.history(expr, served.begin, served.end)
    assert sum(value for _, value in points if value == value) == pytest.approx(
        served.count[counted] - served.earlier[counted], rel=TOLERANCE
    )


@pytest.mark.parametrize("name", expressions.boards())
def test_panels_are_drawn(served, name):
    board = expressions.boards()[name]
    begin = served.begin - 2
    for old in PICTURES.glob(f"{name}-*.png"):
        old.unlink()
    drawn = draw.draw_board(board, served.prometheus, begin, served.end, PICTURES, name)
    assert len(drawn) == len(expressions.panels(board))
    assert [title for title, num_points in drawn.items() if num_points == 0] == []
    assert len(list(PICTURES.glob(f"{name}-*.png"))) == sum(panel["type"] == "row" for panel in board["panels"])

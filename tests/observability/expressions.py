"""What the dashboards and rules ask of Prometheus: their expressions, and the metrics and labels in those."""

import json
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
BOARDS = ROOT / "deploy/grafana/dashboards"

WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^{}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:\\.|[^"\\])*)"')


def boards():
    return {path.stem: json.loads(path.read_text()) for path in sorted(BOARDS.glob("*.json"))}


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def all_panels():
    return [(name, panel) for name, board in boards().items() for panel in panels(board)]


def rules(name):
    groups = yaml.safe_load((RULES / f"{name}.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def all_expressions():
    """(where, expression) of every panel and rule."""
    found = [
        (f"{name}: {panel['title']}", target["expr"]) for name, panel in all_panels() for target in panel["targets"]
    ]
    return found + [
        (rule.get("record") or rule["alert"], rule["expr"]) for name in ("recording", "alerts") for rule in rules(name)
    ]


def milliseconds(duration):
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", duration)
    assert "".join(count + unit for count, unit in parts) == duration, duration
    return sum(int(count) * units[unit] for count, unit in parts)


def shorter(duration, factor):
    return f"{milliseconds(duration) // factor}ms"


def scaled(expr, factor):
    """The expression with each range, and each age that something is to have, divided by the factor."""
    expr = re.sub(r"\[([\dmshd]+)\]", lambda match: f"[{shorter(match[1], factor)}]", expr)
    return re.sub(r"(_age_seconds > )(\d+)", lambda match: f"{match[1]}{int(match[2]) / factor}", expr)


def filled_in(expr, rate_interval, **variables):
    """A panel's expression as Grafana would send it, with everything chosen where `variables` does not say else."""
    expr = expr.replace("$__rate_interval", rate_interval)
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], ".*"), expr)


def series_asked_for(expr):
    """(metric, labels) of each selector; a selector of several names counts once for each."""
    found, grouped = [], []

    def take(match):
        labels = {label for label, _, _ in MATCHER.findall(match[2])} - {"__name__"}
        names = [match[1]] if match[1] else []
        for label, _, value in MATCHER.findall(match[2]):
            if label == "__name__":
                names += re.sub(r"(.*)\((.*)\)", r"\2", value).split("|")
        found.extend((name, labels) for name in names)
        return " "

    def group(match):
        grouped.extend(label.strip() for label in match[2].split(",") if label.strip())
        return " "

    rest = SELECTOR.sub(take, expr)
    rest = re.sub(r"\[[^\]]*\]", " ", GROUPING.sub(group, rest))
    rest = re.sub(r'"[^"]*"', " ", rest)
    for match in re.finditer(r"[a-zA-Z_:][\w:]*", rest):
        is_call = rest[match.end() :].lstrip().startswith("(")
        if match[0] not in WORDS and not is_call:
            found.append((match[0], set()))
    return found, set(grouped)

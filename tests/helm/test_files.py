"""The rules and dashboards inside the chart, which can package nothing that lies outside, are those of deploy/."""

import yaml

import chart


def test_the_charts_copies_are_the_files_of_deploy():
    rules = chart.ROOT.glob("deploy/prometheus/*.yaml")
    deployed = {("prometheus", file.name): file for file in rules if "groups" in yaml.safe_load(file.read_text())}
    deployed |= {("grafana", file.name): file for file in chart.ROOT.glob("deploy/grafana/dashboards/*.json")}
    copies = {(file.parent.name, file.name): file for file in chart.CHART.glob("files/*/*")}
    assert set(copies) == set(deployed), "copy the files of deploy/ into helm/lckv/files/"
    for name, file in copies.items():
        assert file.read_bytes() == deployed[name].read_bytes(), f"{file} is not {deployed[name]}: copy it again"


def test_an_adapters_rule_is_told_for_the_series_that_autoscalers_ask_for():
    metric = yaml.safe_load((chart.CHART / "values.yaml").read_text())["autoscaling"]["metric"]
    assert f"seriesQuery: '{{__name__=\"{metric}\"}}'" in (chart.ROOT / "deploy/OPERATIONS.md").read_text()

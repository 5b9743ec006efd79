"""The kinds of panels that the dashboards are made of, on top of the Grafana Foundation SDK."""

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLORS = {"fine": "green", "warning": "orange", "critical": "red"}


def _query(number, expr, legend, instant=False):
    query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("ABCDEFGH"[number])
    return query.instant() if instant else query.range()


def _thresholds(steps, first="fine"):
    """`steps` maps a severity to where it begins; below all of them is `first`."""
    made = [models.Threshold(value=None, color=COLORS[first])]
    for severity, value in steps.items():
        made.append(models.Threshold(value=value, color=COLORS[severity]))
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _described(panel, title, description, unit, width, height):
    return panel.title(title).description(description).unit(unit).datasource(SOURCE).span(width).height(height)


def lines(title, description, unit, queries, thresholds=None, stacked=False, top=None, width=8):
    """Lines over time; `queries` maps legends to expressions."""
    panel = _described(timeseries.Panel(), title, description, unit, width, 8)
    panel.min(0).line_width(1).fill_opacity(30 if stacked else 5).show_points(shapes.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .calcs([])
    )
    panel.tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
    if top is not None:
        panel.max(top)
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if thresholds:
        panel.thresholds(_thresholds(thresholds))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED))
    for number, (legend, expr) in enumerate(queries.items()):
        panel.with_target(_query(number, expr, legend))
    return panel


def number(title, description, unit, expr, thresholds=None, needed=None, decimals=None):
    """The latest value, large; red where it is below what is needed."""
    panel = _described(stat.Panel(), title, description, unit, 4, 4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.graph_mode(shapes.BigValueGraphMode.NONE)
    panel.color_mode(shapes.BigValueColorMode.VALUE)
    panel.text_mode(shapes.BigValueTextMode.AUTO)
    panel.thresholds(_thresholds({"fine": needed}, "critical") if needed else _thresholds(thresholds or {}))
    if decimals is not None:
        panel.decimals(decimals)
    return panel.with_target(_query(0, expr, title, instant=True))


def states(title, description, expr, legend, names, width=16):
    """A bar over time per series; `names` gives each value a text and a color."""
    panel = _described(statetimeline.Panel(), title, description, "none", width, 8)
    panel.show_value(shapes.VisibilityMode.NEVER).row_height(0.8)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
        .calcs([])
    )
    results = {
        str(value): models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(names.items())
    }
    panel.mappings([models.ValueMap(options=results)])
    panel.thresholds(_thresholds({}))
    return panel.with_target(_query(0, expr, legend))


def _variable(name, label, query):
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def board(uid, title, description, variables, rows):
    """`variables` maps a name to (label, query), `rows` a title to panels."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["lckv"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name, (label, query) in variables.items():
        made.with_variable(_variable(name, label, query))
    for row, panels in rows.items():
        made.with_row(dashboard.Row(row))
        for panel in panels:
            made.with_panel(panel)
    built = made.build()
    for identifier, panel in enumerate(built.panels, 1):
        panel.id_val = identifier
    return built

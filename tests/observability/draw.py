"""Draws a dashboard's panels from what Prometheus has, one image for each row of panels, to be looked at."""

import math
import re

from PIL import Image, ImageDraw, ImageFont

import expressions
import monitoring

FINE = 2  # drawn so much larger and then made smaller: smooth edges
UNIT_WIDTH, UNIT_HEIGHT = 64, 36  # pixels of Grafana's grid
FONTS = "/usr/share/fonts/truetype/dejavu"
PALETTE = ["#3366cc", "#dc7e1f", "#2e9e4f", "#b8338a", "#8a6d3b", "#1aa6a6", "#d14343", "#6f5bd0", "#7a7a7a", "#a3b018"]
NAMED = {"green": "#2e9e4f", "orange": "#e08a00", "red": "#d62f2f"}
INK, FAINT, GRID = "#222222", "#777777", "#e4e4e4"
SECONDS = [(1, "s"), (1e-3, "ms"), (1e-6, "µs")]
POWERS = [(1e9, "G"), (1e6, "M"), (1e3, "K"), (1, "")]
BYTES = [(2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")]
RATES = {"reqps": " req/s", "cps": " /s", "ops": " ops/s"}


def short(value, steps):
    """In the largest step that is not above it."""
    size, name = next(((size, name) for size, name in steps if abs(value) >= size * 0.9995), steps[-1])
    return f"{value / size:.3g}{name}"


def text_of(value, unit, decimals=None):
    if value != value:
        return "no value"
    if unit == "s":
        return "0 s" if value == 0 else short(value, [(size, f" {name}") for size, name in SECONDS])
    if unit == "bytes":
        return short(value, BYTES)
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    number = f"{value:.{decimals}f}" if decimals is not None else short(value, POWERS)
    return number + (unit.removeprefix("suffix:") if unit.startswith("suffix:") else RATES.get(unit, ""))


def legend_of(target, labels):
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"])


def series_of(panel, prometheus, begin, end):
    """[(legend, [(time, value)])] without what is not a number; the step is a second."""
    found = []
    for target in panel["targets"]:
        expr = expressions.filled_in(target["expr"], monitoring.RATE_INTERVAL)
        for labels, points in prometheus.history(expr, begin, end):
            found.append((legend_of(target, labels), [(at, value) for at, value in points if value == value]))
    return found


def stacked(series):
    """Each series on top of those before it, with its own base."""
    base, found = {}, []
    for legend, points in series:
        made = [(at, base.get(at, 0), base.get(at, 0) + value) for at, value in points]
        base.update({at: high for at, _, high in made})
        found.append((legend, made))
    return found


def nice_top(value):
    if value <= 0:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if value <= step * power * 1.0001)


class Sheet:
    """One image; coordinates are those of the finished one."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (width * FINE, height * FINE), "white")
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def line(self, points, color, width=1.5):
        self.pen.line([(x * FINE, y * FINE) for x, y in points], fill=color, width=round(width * FINE), joint="curve")

    def area(self, points, color):
        self.pen.polygon([(x * FINE, y * FINE) for x, y in points], fill=color)

    def box(self, left, top, right, bottom, fill=None, outline=None):
        self.pen.rectangle([left * FINE, top * FINE, right * FINE, bottom * FINE], fill=fill, outline=outline)

    def write(self, x, y, text, size=11, color=INK, bold=False, anchor="la"):
        font = ImageFont.truetype(f"{FONTS}/DejaVuSans{'-Bold' if bold else ''}.ttf", size * FINE)
        self.pen.text((x * FINE, y * FINE), text, font=font, fill=color, anchor=anchor)
        return font.getlength(text) / FINE

    def save(self, path):
        width, height = self.image.size
        self.image.resize((width // FINE, height // FINE), Image.LANCZOS).save(path)


class PanelDrawing:
    """One panel inside its box."""

    def __init__(self, sheet, panel, box, times):
        self.sheet, self.panel, self.times = sheet, panel, times
        self.left, self.top, self.right, self.bottom = box
        self.defaults = panel["fieldConfig"]["defaults"]
        sheet.box(*box, outline="#bbbbbb")
        sheet.write(self.left + 10, self.top + 7, panel["title"], 12, bold=True)

    def steps(self):
        return self.defaults.get("thresholds", {"steps": []})["steps"][1:]

    def draw_legend(self, names):
        rows, x = [[]], self.left + 12
        for name, color in names:
            width = 26 + 7 * len(name)
            if x + width > self.right - 8 and rows[-1]:
                rows.append([])
                x = self.left + 12
            rows[-1].append((x, name, color))
            x += width
        y = self.bottom - 17 * len(rows) - 4
        for number, row in enumerate(rows):
            for x, name, color in row:
                self.sheet.box(x, y + 17 * number + 5, x + 12, y + 17 * number + 9, fill=color)
                self.sheet.write(x + 16, y + 17 * number, name, 10)
        return y - 4

    def draw_frame(self, bottom, top_value):
        """Axes; a function from (time, value) to a place."""
        begin, end = self.times
        left, right, top = self.left + 66, self.right - 14, self.top + 32
        bottom -= 20

        def place(at, value):
            x = left + (at - begin) / (end - begin) * (right - left)
            return x, bottom - min(value / top_value, 1.05) * (bottom - top)

        for part in range(5):
            y = place(begin, top_value * part / 4)[1]
            self.sheet.line([(left, y), (right, y)], GRID, 1)
            self.sheet.write(left - 6, y, text_of(top_value * part / 4, self.defaults["unit"]), 9, FAINT, anchor="rm")
        for part in range(5):
            x = left + (right - left) * part / 4
            anchor = "ra" if part == 4 else "ma"
            self.sheet.write(x, bottom + 5, f"{(end - begin) * part / 4:.0f} s", 9, FAINT, anchor=anchor)
        return place

    def draw_lines(self, series):
        is_stacked = self.defaults["custom"].get("stacking", {}).get("mode") == "normal"
        layers = stacked(series) if is_stacked else [(name, [(at, 0, v) for at, v in points]) for name, points in series]
        colors = [PALETTE[number % len(PALETTE)] for number in range(len(layers))]
        floor = self.draw_legend([(name, color) for (name, _), color in zip(layers, colors)])
        top = max([high for _, points in layers for _, _, high in points] + [0])
        lines = [step for step in self.steps() if step["value"] <= 4 * top or top == 0 or "max" in self.defaults]
        top_value = self.defaults.get("max") or nice_top(max([top] + [step["value"] * 1.1 for step in lines]))
        place = self.draw_frame(floor, top_value)
        for (_, points), color in zip(layers, colors):
            for run in runs(points):
                upper = [place(at, high) for at, _, high in run]
                if is_stacked:
                    self.sheet.area(upper + [place(at, low) for at, low, _ in reversed(run)], color + "55")
                if len(upper) > 1:
                    self.sheet.line(upper, color)
        for step in lines:
            (x, y), (end, _) = place(self.times[0], step["value"]), place(self.times[1], step["value"])
            while x < end:
                self.sheet.line([(x, y), (min(x + 7, end), y)], NAMED[step["color"]], 1.5)
                x += 12

    def draw_number(self, series):
        points = [point for _, points in series for point in points]
        value = points[-1][1] if points else math.nan
        color = NAMED[self.defaults["thresholds"]["steps"][0]["color"]]
        for step in self.steps():
            if value >= step["value"]:
                color = NAMED[step["color"]]
        middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2 + 12
        text = text_of(value, self.defaults["unit"], self.defaults.get("decimals"))
        self.sheet.write(*middle, text, 26, color, bold=True, anchor="mm")

    def draw_states(self, series):
        names = self.defaults["mappings"][0]["options"]
        floor = self.draw_legend([(name["text"], NAMED[name["color"]]) for name in names.values()])
        begin, end = self.times
        left, right, top = self.left + 150, self.right - 14, self.top + 36
        height = (floor - 8 - top) / max(len(series), 1)
        for number, (legend, points) in enumerate(series):
            y = top + number * height
            self.sheet.write(left - 8, y + height / 2, legend, 10, anchor="rm")
            for at, value in points:
                x = left + (at - begin) / (end - begin) * (right - left)
                width = (right - left) / (end - begin)
                color = NAMED[names[f"{value:.0f}"]["color"]]
                self.sheet.box(x, y + height * 0.1, min(x + width, right), y + height * 0.9, fill=color)

    def draw(self, series):
        kind = {"timeseries": self.draw_lines, "stat": self.draw_number, "state-timeline": self.draw_states}
        kind[self.panel["type"]](series)


def runs(points):
    """Cut where a second or more is missing."""
    found = []
    for point in points:
        if not found or point[0] - found[-1][-1][0] > 1.5:
            found.append([])
        found[-1].append(point)
    return found


def draw_board(board, prometheus, begin, end, folder, name):
    """Writes an image for each row; {panel title: number of points drawn}."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], []))
        else:
            rows[-1][1].append(panel)
    drawn = {}
    for title, panels in rows:
        first = min(panel["gridPos"]["y"] for panel in panels)
        last = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        sheet = Sheet(24 * UNIT_WIDTH, (last - first) * UNIT_HEIGHT)
        for panel in panels:
            grid = panel["gridPos"]
            left, top = grid["x"] * UNIT_WIDTH, (grid["y"] - first) * UNIT_HEIGHT
            box = left + 4, top + 4, left + grid["w"] * UNIT_WIDTH - 4, top + grid["h"] * UNIT_HEIGHT - 4
            series = series_of(panel, prometheus, begin, end)
            PanelDrawing(sheet, panel, box, (begin, end)).draw(series)
            drawn[f"{panel['id']} {panel['title']}"] = sum(len(points) for _, points in series)
        sheet.save(folder / f"{name}-{title.lower().replace(' ', '-')}.png")
    return drawn

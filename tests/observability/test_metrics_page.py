"""deploy/METRICS.md lists what running programs show, no more and no less."""

import re

import expressions
import live

ROW = re.compile(r"^\| `([\w:]+)` \| (\w+) \| ([^|]*)\| (.+) \|$")
# What the load's programs are started without.
NOT_HERE = "With TLS:"


def listed():
    """{section: {metric: (type, labels)}}."""
    sections = {}
    for line in (expressions.ROOT / "deploy/METRICS.md").read_text().splitlines():
        if line.startswith("## "):
            rows = sections.setdefault(line[3:], {})
        elif line.startswith("| `"):
            name, kind, labels, meaning = ROW.match(line).groups()
            assert name not in rows, f"{name} is listed twice"
            if not meaning.startswith(NOT_HERE):
                rows[name] = (kind, set(re.findall(r"`(\w+)`", labels)))
    return sections


def shown(text):
    """{metric: (type, labels)} of a program."""
    kinds, values = live.parse(text)
    found = {name: (kind, set()) for name, kind in kinds.items()}
    for series in values:
        name, _, labels = series.partition("{")
        family = name if name in found else re.sub(r"_(bucket|sum|count)$", "", name)
        found[family][1].update(set(re.findall(r'(\w+)="', labels)) - {"le", "quantile"})
    return found


def test_the_page_lists_what_programs_show(served):
    page = listed()
    worker, rank = served.worker_addresses[0], served.rank_addresses[0]
    for address, sections in (
        (served.router.metrics_address, ["Router"]),
        (worker, ["Worker", "Rank"]),
        (rank, ["Rank"]),
    ):
        expected = dict(page["Every program"])
        for section in sections:
            expected |= page[section]
        assert shown(served.after[address]) == expected, address

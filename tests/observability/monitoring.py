"""A real Prometheus under the shipped configuration, with time running faster: scraping every second, and each range
and `for` of the rules divided by one factor."""

import json
import os
import pathlib
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

import expressions
import serving
import tcp_ports

FACTOR = 60
RATE_INTERVAL = "5s"
SCRAPED_SECONDS = 120
PROGRAM = shutil.which("prometheus", path=f"{serving.ROOT}/build/tools/bin:{os.environ['PATH']}")


def scaled_rules(name, factor):
    document = yaml.safe_load((expressions.RULES / name).read_text())
    for group in document["groups"]:
        group.pop("interval", None)  # of all that is evaluated, which is short here
        for rule in group["rules"]:
            rule["expr"] = expressions.scaled(rule["expr"], factor)
            if "for" in rule:
                rule["for"] = expressions.shorter(rule["for"], factor)
    return document


class Prometheus(serving.Process):
    """Takes its targets from `watch`; everything it keeps goes with `close`."""

    def __init__(self, interval="1s"):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="prometheus-"))
        config = yaml.safe_load((expressions.RULES / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(["scrape_interval", "scrape_timeout", "evaluation_interval"], interval)
        for name in config["rule_files"]:
            (self.folder / name).write_text(yaml.safe_dump(scaled_rules(name, FACTOR)))
        self.target_files = {}
        (self.folder / "targets").mkdir()
        for job in config["scrape_configs"]:
            [self.target_files[job["job_name"]]] = job["file_sd_configs"][0]["files"]
            self.watch(job["job_name"], [])
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{tcp_ports.free_port()}"
        super().__init__(
            PROGRAM,
            [f"--web.listen-address={self.address}", f"--config.file={self.folder}/prometheus.yml"]
            + [f"--storage.tsdb.path={self.folder}/data"],
        )
        self.find("Server is ready to receive web requests")

    def watch(self, job, addresses):
        path = self.folder / self.target_files[job]
        # Renamed into place: it is read again at any moment.
        new = path.with_suffix(".new")
        new.write_text(json.dumps([{"targets": addresses}]))
        new.rename(path)

    def ask(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=serving.READY_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr):
        """[(labels, value)] now."""
        result = self.ask("query", query=expr)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expr):
        """Of the only series; None where there is none."""
        found = self.query(expr)
        assert len(found) <= 1, f"{expr}: {found}"
        return found[0][1] if found else None

    def history(self, expr, begin, end, step=1):
        """[(labels, [(time, value)])] of a range."""
        result = self.ask("query_range", query=expr, start=begin, end=end, step=step)["result"]
        return [
            (series["metric"], [(float(time), float(value)) for time, value in series["values"]]) for series in result
        ]

    def wait_for_scrapes(self, count, at_least=2):
        """That so many targets are up, each scraped so often from now on that what they show is there."""
        serving.wait_until(lambda: self.value("sum(up)") == count, f"{count} targets up", SCRAPED_SECONDS)
        begin = time.time()
        serving.wait_until(
            lambda: (self.value("min(timestamp(up))") or 0) >= begin + at_least - 1,
            "targets scraped again",
            SCRAPED_SECONDS,
        )

    def close(self):
        super().close()
        shutil.rmtree(self.folder, ignore_errors=True)

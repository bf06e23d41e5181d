"""deploy/grafana/pregate.json asks only for metrics and labels that store and worker give; what both
print is what Prometheus takes, as far as we know it: test_promtool.py asks promtool."""
import json
import os
import re
import unittest

import pregate_e2e as e2e

DASHBOARD = os.path.join(e2e.ROOT, "deploy", "grafana", "pregate.json")
METRIC = re.compile(r"\bpregate_\w+")
SERIES = re.compile(r"\b(pregate_\w+)\{([^}]*)\}")


def series_of(text):
    """{metric: the set of its labels} of the text format."""
    found = {}
    for sample in e2e.prometheus(text):
        name, _, labels = sample.partition("{")
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def kinds_of(text):
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


class Printed(unittest.TestCase):
    """The dashboard, and what store and worker print."""

    @classmethod
    def setUpClass(cls):
        with open(DASHBOARD) as f:
            cls.dashboard = json.load(f)
        with e2e.Pair() as pair:
            pair.worker.ask(e2e.golden()[3]["text"], max_tokens=8)
            cls.worker = pair.worker.get("/metrics")[1]
            stat = [e2e.program("expert-stat"), "--endpoint", pair.store.endpoint, "--prometheus"]
            cls.store = e2e.run(*stat).stdout
            cls.per_block = e2e.run(*stat, "--per-block").stdout

    def panels(self):
        return [p for p in self.dashboard["panels"] if p["type"] != "row"]

    def expressions(self):
        return [(p["title"], t) for p in self.panels() for t in p["targets"]]


class Dashboard(Printed):
    def test_every_series_exists_where_it_is_looked_for(self):
        given = {"$store": series_of(self.store), "$worker": series_of(self.worker)}
        for name, labels in series_of(self.per_block).items():
            given["$store"].setdefault(name, set()).update(labels)
        n = 0
        for title, target in self.expressions():
            expr = target["expr"]
            self.assertEqual(len(METRIC.findall(expr)), len(SERIES.findall(expr)), (title, expr))
            for name, selector in SERIES.findall(expr):
                place = "$store" if "$store" in selector else "$worker"
                self.assertIn(place, selector, (title, name))
                self.assertIn(name, given[place], (title, f"{place[1:]} gives no such metric"))
                known = given[place][name] | {"instance"}
                asked = set(re.findall(r"(\w+)\s*=~?|(\w+)\s*!=", selector))
                self.assertLessEqual({a or b for a, b in asked}, known, (title, name))
                for by in re.findall(r"by \((\w+)\)", expr):
                    self.assertIn(by, known, (title, name))
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    self.assertIn(f"by ({label})", expr, title)
                n += 1
        self.assertGreater(n, 80)

    def test_variables_are_filled_by_metrics_that_exist(self):
        known = set(series_of(self.store)) | set(series_of(self.worker))
        for variable in self.dashboard["templating"]["list"]:
            for name in METRIC.findall(variable["query"]):
                self.assertIn(name, known)

    def test_panels_have_places_and_numbers_of_their_own(self):
        ids = [p["id"] for p in self.dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = set()
        for p in self.dashboard["panels"]:
            g = p["gridPos"]
            self.assertLessEqual(g["x"] + g["w"], 24, p["title"])
            squares = {(g["x"] + dx, g["y"] + dy) for dx in range(g["w"]) for dy in range(g["h"])}
            self.assertFalse(squares & taken, p["title"])
            taken |= squares
            self.assertTrue(p["title"])

    def test_names_are_as_prometheus_wants_them(self):
        for text in (self.store, self.per_block, self.worker):
            kinds = kinds_of(text)
            self.assertGreater(len(kinds), 40)
            self.assertEqual(len(kinds), text.count("# TYPE "), "one TYPE a metric")
            for name, kind in kinds.items():
                self.assertEqual(kind == "counter", name.endswith("_total"), (name, kind))
                self.assertNotRegex(name, r"_(count|sum|bucket|ms|us|ns|kb|mb|gb)$")
                self.assertRegex(text, rf"(?m)^# HELP {name} \S")


if __name__ == "__main__":
    e2e.main()

"""What promtool says of the metrics that store and worker print, and of the dashboard's expressions.
Skipped (77) where promtool is missing; it comes with Prometheus, which nothing else here needs."""
import json
import shutil
import subprocess
import sys
import tempfile

import pregate_e2e as e2e
import test_dashboard

GRAFANA_VARIABLES = {"$__rate_interval": "5m", "$store": ".*", "$worker": ".*"}


class Promtool(test_dashboard.Printed):
    def test_it_has_nothing_to_say_about_the_metrics(self):
        for text in (self.store, self.per_block, self.worker):
            done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                  capture_output=True, timeout=60)
            self.assertEqual((0, ""), (done.returncode, done.stdout + done.stderr))

    def test_it_reads_every_expression(self):
        rules = []
        for i, (_, target) in enumerate(self.expressions()):
            expr = target["expr"]
            for variable, value in GRAFANA_VARIABLES.items():
                expr = expr.replace(variable, value)
            self.assertNotIn("$", expr)
            rules.append({"record": f"x:{i}", "expr": expr})
        with tempfile.NamedTemporaryFile("w", suffix=".yml", dir=e2e.scratch) as f:
            json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, f)  # YAML, too
            f.flush()
            done = e2e.run("promtool", "check", "rules", f.name)
            self.assertEqual(0, done.returncode, done.stdout + done.stderr)


if __name__ == "__main__":
    if shutil.which("promtool") is None:
        print("skipped: promtool is missing")
        sys.exit(77)
    e2e.main()

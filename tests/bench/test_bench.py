#!/usr/bin/env python3
"""`gpu-worker bench`, `plan`, `replay` and recordings against running stores, on the cpu backend.

   test_bench.py BIN_DIR [unittest options]
"""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import pregate_e2e as e2e  # noqa: E402

# What every row must have, for whoever reads them.
KEYS = """bench model dtype policy batch cells lookahead routing tier ms_per_token_p50
first_token_ms_p50 block_ms_p50 link_floor_ms hbm_floor_ms device_bytes_peak hit_rate link_busy
machine commit""".split()
TINY_BLOCKS = 2          # of the decoder of switch-tiny
TINY_EXPERT = 2 * 32 * 64 * 2  # bytes
SHORT = ["--backend", "cpu", "--threads", "1", "--prompt-tokens", "12", "--output-tokens", "24",
         "--repeats", "2", "--warmups", "1"]


class SyntheticStore(e2e.Store):
    def __init__(self, model, *options, name="synthetic"):
        super().__init__("unused", *options, name=name)
        at = self.argv.index("--store")
        self.argv[at:at + 2] = ["--synthetic", model]


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


class Tiny(unittest.TestCase):
    """Benches of a pre-gated model of 32 experts of 8 KiB, all in RAM."""

    @classmethod
    def setUpClass(cls):
        cls.store = SyntheticStore("switch-tiny-pregated").start().ready()

    @classmethod
    def tearDownClass(cls):
        cls.store.discard()

    def run_bench(self, *options, expect=0):
        done = e2e.run(e2e.program("gpu-worker"), "bench", "--endpoint", self.store.endpoint,
                       *SHORT, *options)
        self.assertEqual(expect, done.returncode, done.stderr)
        return done

    def bench(self, *options):
        return rows_of(self.run_bench(*options).stdout)

    def test_every_combination_gives_one_row_with_every_key(self):
        rows = self.bench("--policies", "resident,pregated", "--batches", "1,4", "--routing",
                          "uniform", "--cell-sweep", "4,50%",
                          "--cell-policies", "lru,lfu", "--bench-name", "all", "--machine", "here",
                          "--repeats", "1", "--output-tokens", "8")
        for row in rows:
            self.assertEqual([], [k for k in KEYS if k not in row])
            self.assertEqual(("all", "here", "bf16", "ram", "cpu", 1),
                             tuple(row[k] for k in ("bench", "machine", "dtype", "tier", "backend",
                                                    "lookahead")))
            for key, value in row.items():
                self.assertIsNotNone(value, key)
            for q in ("ms_per_token", "first_token_ms", "block_ms", "first_block_ms"):
                self.assertLessEqual(row[q + "_min"], row[q + "_p50"])
                self.assertLessEqual(row[q + "_p50"], row[q + "_p90"])
                self.assertLessEqual(row[q + "_p90"], row[q + "_p99"])
        combinations = {(r["policy"], r["batch"], r["routing"], r["cells"], r["cell_policy"])
                        for r in rows}
        self.assertEqual(len(rows), len(combinations))
        # resident: one number of cells, no policy; pregated: two of each
        self.assertEqual(2 * (1 + 2 * 2), len(rows))
        self.assertEqual({4, 16, 32}, {r["cells"] for r in rows})

    def test_traffic_is_what_was_used_and_not_there(self):
        rows = {r["policy"]: r for r in self.bench(
            "--policies", "resident,pregated,on-demand,prefetch-all", "--routing", "uniform",
            "--batches", "4")}
        self.assertEqual(0, rows["resident"]["copied_bytes_per_step"])
        self.assertEqual(1, rows["resident"]["hit_rate"])
        active = rows["resident"]["active_per_step"]
        self.assertTrue(TINY_BLOCKS < active <= TINY_BLOCKS * 4, active)
        for policy in ("pregated", "on-demand"):
            row = rows[policy]
            self.assertEqual(8, row["cells"])  # Eq. 1: two blocks of four
            self.assertAlmostEqual(active, row["active_per_step"])  # routing comes from a seed
            expected = active * (1 - row["hit_rate"]) * TINY_EXPERT
            self.assertAlmostEqual(1, row["copied_bytes_per_step"] / expected, places=3)
            self.assertAlmostEqual(
                1, row["link_floor_ms"] / (row["copied_bytes_per_step"] / row["link_gbps"] / 1e6),
                places=3)

    def test_forced_experts_are_active_in_every_block(self):
        for k in (1, 3, 8):
            row, = self.bench("--policies", "on-demand", "--routing", f"forced:{k}", "--batches",
                              "8")
            self.assertEqual(k * TINY_BLOCKS, row["active_per_step"])

    def test_a_recording_can_be_followed(self):
        first, second = e2e.path("first.routing"), e2e.path("second.routing")
        a, = self.bench("--policies", "pregated", "--routing", "zipf:1", "--batches", "3",
                        "--record-routing", first)
        b, = self.bench("--policies", "on-demand", "--routing", "trace:" + first, "--batches", "3",
                        "--record-routing", second)
        with open(first) as f, open(second) as g:
            self.assertEqual(f.read(), g.read())
        self.assertEqual(a["active_per_step"], b["active_per_step"])

    def test_a_slow_link_bounds_the_step(self):
        rows = {r["policy"]: r for r in self.bench(
            "--policies", "pregated,on-demand", "--routing", "uniform", "--cell-sweep", "2",
            "--cpu-link-gbps", "0.004")}  # 2 ms an expert
        for row in rows.values():
            # Bounds that a busy machine cannot break: nothing is faster than the link asked for.
            self.assertLess(row["link_gbps"], 0.0041)
            self.assertGreater(row["link_floor_ms"], 2.5)
            self.assertGreater(row["ms_per_token_p50"], 2.5)
            self.assertGreater(row["link_busy"], 0)

    def test_device_bytes_are_what_plan_says(self):
        done = e2e.run(e2e.program("gpu-worker"), "plan", "--endpoint", self.store.endpoint,
                       "--json", "--device-bytes", "1GiB", "--batches", "1", "--prompt-tokens",
                       "12", "--output-tokens", "24")
        plan = json.loads(done.stdout)["batches"][0]
        n_tensors = 120  # each at its own 256-byte boundary, which plan leaves out
        for row in self.bench("--policies", "resident,pregated"):
            expected = (plan["dense_bytes"] + plan["kv_bytes"] + plan["workspace_bytes"] +
                        (row["cells"] + 1) * plan["cell_bytes"])
            self.assertLessEqual(expected, row["device_bytes_own"])
            self.assertLess(row["device_bytes_own"] - expected, n_tensors * 256)
            self.assertEqual(row["device_bytes_own"], row["device_bytes_peak"])

    def test_rows_are_appended_to_a_file_and_a_timeline_is_written(self):
        out, trace = e2e.path("rows.jsonl"), e2e.path("trace.json")
        for _ in range(2):
            done = self.run_bench("--policies", "on-demand", "--routing", "uniform", "--out", out,
                                  "--trace", trace)
            self.assertEqual("", done.stdout)
        with open(out) as f:
            self.assertEqual(2, len(rows_of(f.read())))
        with open(trace) as f:
            names = {e["name"] for e in json.load(f)["traceEvents"]}
        self.assertLessEqual({"decode", "encode", "experts", "copy"}, names)

    def test_a_case_that_cannot_run_leaves_no_row(self):
        done = self.run_bench("--policies", "on-demand,resident", "--routing", "uniform,forced:2",
                              expect=1)
        self.assertEqual(["uniform", "uniform"], [r["routing"] for r in rows_of(done.stdout)])
        self.assertIn("needs a batch of at least 2", done.stderr)

    def test_settings_are_checked(self):
        for options, text in ((("--policies", "sometimes"), "'sometimes' is none of"),
                              (("--cell-policies", "x"), "'x' is none of"),
                              (("--routing", "zipf"), "'zipf' is none of"),
                              (("--batches", "257"), "1 to 256"),
                              (("--cell-sweep", "x%", "--policies", "pregated"), "--cell-sweep"),
                              (("--routing", "trace:/nonexistent"), "/nonexistent")):
            self.assertIn(text, self.run_bench(*options, expect=1).stderr)


class Demo(unittest.TestCase):
    """The demo model, packed, with a quarter of its experts in RAM."""

    @classmethod
    def setUpClass(cls):
        cls.store = e2e.Store(e2e.pack(), ram=e2e.quarter_of_the_experts()).start().ready()

    @classmethod
    def tearDownClass(cls):
        cls.store.discard()

    def test_the_tier_is_named(self):
        done = e2e.run(e2e.program("gpu-worker"), "bench", "--endpoint", self.store.endpoint,
                       *SHORT, "--policies", "pregated", "--routing", "uniform")
        row, = rows_of(done.stdout)
        self.assertEqual("drive", row["tier"])
        self.assertGreater(row["slot_miss_rate"], 0.3)  # three of four are not there

    def test_routing_of_real_text_is_recorded_and_replayed(self):
        recording = e2e.path("text.routing")
        prompts = e2e.path("prompts.txt")
        with open(prompts, "w") as f:
            f.writelines(g["text"] + "\n" for g in e2e.golden())
        done = e2e.run(e2e.program("gpu-worker"), "run", "--endpoint", self.store.endpoint,
                       "--backend", "cpu", "--file", prompts, "--max-batch", "4",
                       "--record-routing", recording)
        self.assertEqual(0, done.returncode, done.stderr)
        done = e2e.run(e2e.program("gpu-worker"), "replay", recording, "--json", "--cell-sweep",
                       "2,20%,50%,100%")
        rows = rows_of(done.stdout)
        self.assertEqual([2, 11, 28, 56], [r["cells"] for r in rows])
        for row in rows:
            best = max(row[p] for p in ("lru", "lfu", "lifo-inactive"))
            self.assertLessEqual(best, row["belady"])
            self.assertGreater(row["uses"], 1000)
        self.assertEqual(1, rows[-1]["best_static"])
        self.assertGreater(rows[-1]["lru"], 0.95)
        table = e2e.run(e2e.program("gpu-worker"), "replay", recording).stdout
        self.assertEqual(2 + 4, len(table.splitlines()))


class Figures(unittest.TestCase):
    """Rows of made-up values, only to see that each figure is drawn from the rows it needs."""

    ROW = {"machine": "m", "dtype": "bf16", "bench": "main", "model": "switch-base-8-pregated",
           "policy": "pregated", "batch": 1, "cells_share": 0.2, "cell_policy": "lru", "tier": "ram",
           "routing": "uniform", "tokens_per_s": 1, "block_ms_p50": 1, "link_floor_ms": 1,
           "device_bytes_peak": 1}

    def draw(self, rows):
        out, source = e2e.path("figures"), e2e.path("figures.jsonl")
        with open(source, "w") as f:
            f.writelines(json.dumps({**self.ROW, **row}) + "\n" for row in rows)
        script = os.path.join(os.path.dirname(os.path.realpath(__file__)), "plot_figures.py")
        done = e2e.run(sys.executable, script, out, source)
        if done.returncode == 77:
            self.skipTest(done.stderr.strip())
        self.assertEqual(0, done.returncode, done.stderr)
        drawn = sorted(os.listdir(out))
        for name in drawn:
            os.unlink(os.path.join(out, name))
        return drawn

    def test_each_figure_has_its_rows(self):
        resident = {"policy": "resident"}
        self.assertEqual(["figure11.svg", "figure12.svg"], self.draw([{}]))
        self.assertEqual(["figure10.svg", "figure11.svg", "figure12.svg"], self.draw([{}, resident]))
        self.assertEqual(["figure14.svg"], self.draw([{"bench": "active", "routing": "forced:4",
                                                       "batch": 64}]))
        self.assertEqual(["figure15.svg"], self.draw([{"bench": "cache"}]))
        self.assertEqual(["figure16.svg"], self.draw([{"bench": "drive", "tier": "drive"}]))
        self.assertEqual(["figure11-1.svg", "figure11-2.svg", "figure12-1.svg", "figure12-2.svg"],
                         self.draw([{}, {"machine": "n"}]))


class Offline(unittest.TestCase):
    def worker(self, *args):
        return e2e.run(e2e.program("gpu-worker"), *args)

    def test_plan_says_by_its_exit_code_whether_it_fits(self):
        args = ("plan", "--synthetic", "switch-base-128", "--ram-bytes", "32GiB", "--json")
        fits = self.worker(*args, "--device-bytes", "1GiB")
        self.assertEqual(0, fits.returncode, fits.stderr)
        self.assertTrue(json.loads(fits.stdout)["fits"])
        small = self.worker(*args, "--device-bytes", "256MiB")
        self.assertEqual(3, small.returncode)
        self.assertFalse(json.loads(small.stdout)["fits"])

    def test_plan_reads_a_checkpoint(self):
        done = self.worker("plan", "--model", e2e.MODEL, "--device-bytes", "1GiB", "--json")
        plan = json.loads(done.stdout)
        self.assertEqual(("bf16", 56), (plan["dtype"], plan["n_experts_total"]))
        base = self.worker("plan", "--model", "/nonexistent", "--device-bytes", "1GiB")
        self.assertEqual(1, base.returncode)
        self.assertIn("/nonexistent/config.json", base.stderr)

    def test_plan_measures_this_machine(self):
        done = self.worker("plan", "--synthetic", "switch-tiny-pregated", "--backend", "cpu",
                           "--measure", "--json")
        plan = json.loads(done.stdout)
        self.assertGreater(plan["link_gbps"], 0)
        self.assertGreater(plan["memory_gbps"], 0)
        self.assertGreater(plan["batches"][0]["policies"][0]["ms_per_token"], 0)

    def test_plan_needs_a_model(self):
        done = self.worker("plan", "--endpoint", "ipc://" + e2e.path("nobody.sock"))
        self.assertEqual(1, done.returncode)
        self.assertIn("give --synthetic NAME or --model DIR", done.stderr)
        self.assertIn("known: switch-tiny", self.worker("plan", "--synthetic", "gpt").stderr)

    def test_replay_of_made_up_routing(self):
        done = self.worker("replay", "--routing", "zipf:1.2", "--synthetic", "switch-base-64",
                           "--output-tokens", "64", "--repeats", "64", "--skip-steps", "2080",
                           "--cell-sweep", "20%", "--json")
        row, = rows_of(done.stdout)
        self.assertGreater(row["lfu"], row["lru"])  # popularity does not change
        self.assertGreater(row["lfu"], 0.7 * row["best_static"])
        self.assertIn("nothing to replay", self.worker("replay").stderr)

    def test_only_replay_takes_a_second_word(self):
        done = self.worker("bench", "replay")
        self.assertEqual(2, done.returncode)
        self.assertIn("unexpected argument 'replay' after 'bench'", done.stderr)
        self.assertEqual(2, self.worker("replay", "a", "b").returncode)


if __name__ == "__main__":
    e2e.main()

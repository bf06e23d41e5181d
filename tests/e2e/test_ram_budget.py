"""More memory for a store that serves, and less for the next one: answers stay, and so does what fits."""
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()


def order(store, *options):
    return e2e.run(e2e.program("expert-stat"), "--endpoint", store.endpoint, *options)


class RamBudget(unittest.TestCase):
    def test_a_store_is_given_more_memory_while_it_serves(self):
        store = e2e.Store(e2e.pack(), ram=e2e.quarter_of_the_experts()).start().ready()
        self.addCleanup(store.discard)
        worker = e2e.Worker(store.endpoint).start().ready()
        self.addCleanup(worker.kill)
        answers = e2e.in_threads(lambda case: worker.ask(case["text"]), CASES[:4])
        self.assertGreater(store.stat()["pregate_store_evictions_total"], 0)

        done = order(store, "--ram-bytes", "all")
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn(f"{e2e.N_EXPERTS} slots", done.stdout)
        answers += e2e.in_threads(lambda case: worker.ask(case["text"]), CASES[4:])
        self.assertEqual([case["output_text"] for case in CASES], answers)
        e2e.wait_for(lambda: store.stat()['pregate_store_slots{state="unmade"}'] == 0, "all slots")
        for case in CASES:  # whatever is not there yet comes now, to stay
            self.assertEqual(case["output_text"], worker.ask(case["text"]))
        before = store.stat()
        for case in CASES:
            self.assertEqual(case["output_text"], worker.ask(case["text"]))
        after = store.stat()
        for name in ("pregate_store_evictions_total", "pregate_store_read_bytes_total"):
            self.assertEqual(before[name], after[name], name)
        self.assertEqual(e2e.N_EXPERTS * e2e.slot_bytes(), after["pregate_store_ram_bytes"])

        less = order(store, "--ram-bytes", str(e2e.quarter_of_the_experts()))
        self.assertEqual(1, less.returncode)
        self.assertIn("start it with less", less.stderr)

        # The next one with a quarter: without workers it keeps the experts that fit.
        worker.kill()
        store.kill()
        store.start("--ram-bytes", str(e2e.quarter_of_the_experts()))
        now = store.ready().stat()
        n_slots = now["pregate_store_slots_max"]
        self.assertLess(n_slots, e2e.N_EXPERTS)
        self.assertEqual(n_slots, now["pregate_store_adopted_slots"])


if __name__ == "__main__":
    e2e.main()

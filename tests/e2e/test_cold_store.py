"""A store serves from its first slot on: its memory is made while it answers, also after it was killed
in the midst of that."""
import os
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()
UNMADE = 'pregate_store_slots{state="unmade"}'


class ColdStore(unittest.TestCase):
    def test_answers_do_not_wait_for_all_memory(self):
        # A slot every quarter of a second, 56 of them; the worker starts when there is one.
        slow = ["--test-memory-piece", str(e2e.slot_bytes()), "--test-memory-pause-ms", "250"]
        store = e2e.Store(e2e.pack(), *slow).start().ready()
        self.addCleanup(store.discard)
        worker = e2e.Worker(store.endpoint).start().ready()
        self.addCleanup(worker.kill)
        self.assertEqual(CASES[3]["output_text"], worker.ask(CASES[3]["text"]))
        early = store.stat()
        self.assertGreater(early[UNMADE], 0)
        self.assertEqual(0, early["pregate_store_evictions_total"])  # each waited for its slot

        store.kill()
        made = os.stat(next(n for n in store.left_behind() if n.endswith("-slots"))).st_blocks * 512
        self.assertLess(made, e2e.N_EXPERTS * e2e.slot_bytes())
        store.start("--test-memory-pause-ms", "50")
        again = store.ready().stat()
        self.assertGreater(again["pregate_store_adopted_slots"], 0)
        self.assertLessEqual(again[UNMADE], early[UNMADE])
        self.assertEqual(CASES[9]["output_text"], worker.ask(CASES[9]["text"]))
        e2e.wait_for(lambda: store.stat()[UNMADE] == 0, "all slots to be made")
        self.assertIn("memory_made", store.log())

        # Now the worker pins what is new: further copies are direct ones.
        self.assertEqual(CASES[8]["output_text"], worker.ask(CASES[8]["text"]))
        pageable = worker.metrics()["pregate_worker_copies_pageable_total"]
        for case in CASES:
            self.assertEqual(case["output_text"], worker.ask(case["text"]))
        self.assertEqual(pageable, worker.metrics()["pregate_worker_copies_pageable_total"])
        self.assertEqual(1, worker.metrics()["pregate_worker_copies_pinned"])


if __name__ == "__main__":
    e2e.main()

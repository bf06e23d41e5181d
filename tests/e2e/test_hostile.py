"""A store among hostile neighbours (tests/support/hostile_client.c): whatever they do, a worker that
behaves gets the golden answers, and the store neither ends, nor grows, nor keeps anything of them.
The worker's latency is measured beside each of them, and reported; how slow is too slow depends on
the machine, so only that answers arrive is asserted."""
import itertools
import json
import os
import subprocess
import threading
import time
import unittest

import pregate_e2e as e2e

CASES = [c for c in e2e.golden() if len(c["text"]) < 200]
MODE_S = float(os.environ.get("PREGATE_E2E_HOSTILE_S", "2.5"))  # longer in tests/soak.sh
MAX_WORKERS = 3
# Places of hostile workers that died come free soon.
STORE = ["--max-workers", str(MAX_WORKERS), "--worker-probe-ms", "50", "--worker-grace-ms", "500"]
# What libzmq needed at its busiest stays with the allocator: 1000 answers may wait for one peer
# (proto/README.md, section 1), those to STATS are the largest (20 MiB); hundreds of connections may
# wait for the store's thread to bury them (90 MiB seen). A storm makes tens of thousands: keeping
# 10 KiB of each would be more than this.
GROWTH_BYTES = 192 << 20
NOBODY = 65534


class Asker(threading.Thread):
    """The customer: one golden prompt after the other."""

    def __init__(self, worker):
        super().__init__()
        self.worker, self.enough = worker, threading.Event()
        self.seconds, self.failure = [], None
        self.start()

    def run(self):
        for case in itertools.cycle(CASES):
            if self.enough.is_set():
                return
            begin = time.monotonic()
            try:
                answer = self.worker.ask(case["text"], max_tokens=96)
                if answer != case["output_text"]:
                    raise AssertionError(f"{answer!r} instead of {case['output_text']!r}")
            except Exception as e:  # any: it is told by the main thread
                self.failure = e
                return
            self.seconds.append(time.monotonic() - begin)

    def finish(self):
        self.enough.set()
        self.join(e2e.PATIENCE_S)
        if self.is_alive():
            raise AssertionError("a request is stuck")
        if self.failure is not None:
            raise self.failure
        return {"answers": len(self.seconds),
                "p50_ms": round(1e3 * (e2e.percentile(self.seconds, 0.5) or 0), 2),
                "worst_ms": round(1e3 * max(self.seconds, default=0), 2)}


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = e2e.Pair(STORE, ram=e2e.quarter_of_the_experts())
        cls.pair.__enter__()
        cls.addClassCleanup(cls.pair.__exit__)
        cls.figures = {}
        for case in CASES:  # everything is touched once before anything is measured
            cls.pair.worker.ask(case["text"], max_tokens=96)
        cls.measure_beside("nobody", [])
        cls.bytes_at_first = resident_bytes(cls.pair.store.pid)
        cls.fds_at_first = e2e.n_fds(cls.pair.store)

    @classmethod
    def tearDownClass(cls):
        e2e.report("hostile", cls.figures)

    @classmethod
    def hostile(cls, mode, *more, seconds=MODE_S):
        return subprocess.Popen(
            [e2e.test_program("hostile_client"), mode, cls.pair.store.endpoint, str(seconds),
             *map(str, more)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @classmethod
    def measure_beside(cls, name, processes):
        """Asks while they live; what the last of them said it did."""
        asker = Asker(cls.pair.worker)
        if not processes:
            time.sleep(MODE_S)
        ends = [p.communicate(timeout=MODE_S + e2e.PATIENCE_S) for p in processes]
        cls.figures[name] = asker.finish()
        for p, (out, err) in zip(processes, ends):
            if p.returncode != 0:
                raise AssertionError(f"hostile_client ended with {p.returncode}: {err}")
            cls.figures[name]["neighbour"] = json.loads(out)
        return cls.figures[name].get("neighbour")

    def beside(self, mode, *more, n=1):
        did = self.measure_beside(mode, [self.hostile(mode, *more) for _ in range(n)])
        store = self.pair.store
        self.assertTrue(store.running(), store.log())
        e2e.wait_for(lambda: store.stat()["pregate_store_workers"] == 1, "their places to be free")
        e2e.wait_for(lambda: e2e.n_fds(store) <= self.fds_at_first, "their connections to end")
        growth = resident_bytes(store.pid) - self.bytes_at_first
        self.assertLess(growth, GROWTH_BYTES)
        self.figures[mode]["store_growth_bytes"] = growth
        self.assertEqual(0, store.stat()["pregate_store_slots_leased"])
        return did

    def test_random_bytes(self):
        before = self.pair.store.stat()["pregate_store_malformed_total"]
        self.assertGreater(self.beside("bytes")["sent"], 100)
        self.assertGreater(self.pair.store.stat()["pregate_store_malformed_total"], before)

    def test_flood_of_well_formed_messages(self):
        did = self.beside("flood", n=2)
        self.assertGreater(did["sent"], 1000)
        self.assertGreater(did["errors"], 0)
        self.assertEqual(0, self.pair.store.stat()["pregate_store_experts_pinned"])

    def test_huge_counts(self):
        did = self.beside("counts")
        self.assertGreater(did["errors"], 0)

    def test_oversized_frames(self):
        did = self.beside("oversized")
        self.assertGreater(did["sent"], 10)
        self.assertEqual(0, did["answers"])

    def test_connection_storm(self):
        self.assertGreater(self.beside("storm", 300)["connections"], 0)

    def test_a_client_that_never_reads(self):
        before = self.pair.store.stat()["pregate_store_replies_dropped_total"]
        did = self.beside("slow")
        dropped = self.pair.store.stat()["pregate_store_replies_dropped_total"] - before
        self.assertGreater(did["sent"], 1000)
        self.assertGreater(dropped, 0)

    def test_a_worker_that_leases_all_it_may_and_sleeps(self):
        did = self.beside("leases")
        self.assertEqual(did["capacity"], did["leases"])
        self.assertFalse(did["one_more"])

    def test_more_workers_than_places(self):
        did = self.beside("crowd", 20)
        self.assertEqual(20, did["welcome"] + did["refused"])
        self.assertLessEqual(did["welcome"], MAX_WORKERS - 1)
        self.assertGreater(did["refused"], 0)

    def test_users_who_are_not_allowed(self):
        """Refused by the files' modes; and where those let them in, by who they are."""
        if os.getuid() != 0:
            self.skipTest("only root can become another user")
        socket_path = self.pair.store.endpoint.removeprefix("ipc://")
        program = e2e.copy_for_everyone(e2e.test_program("hostile_client"))
        modes = [(p, os.stat(p).st_mode) for p in (e2e.scratch, socket_path)]

        def ping(**who):
            return subprocess.run([program, "ping", self.pair.store.endpoint, "1"],
                                  timeout=e2e.PATIENCE_S, **who).returncode
        try:
            os.chmod(e2e.scratch, 0o755)
            self.assertEqual(3, ping(user=NOBODY, group=NOBODY, extra_groups=[]))
            os.chmod(socket_path, 0o777)
            self.assertEqual(3, ping(user=NOBODY, group=NOBODY, extra_groups=[]))
            self.assertEqual(0, ping())
        finally:
            for p, mode in modes:
                os.chmod(p, mode & 0o7777)


if __name__ == "__main__":
    e2e.main()

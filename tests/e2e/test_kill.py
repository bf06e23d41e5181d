"""kill -9 of the store, the worker and expert-pack: at the points they name, and at random moments
under load. Every answer that arrives is the golden one; a store that comes back in time costs no
request, a worker only those that were open; nothing is stuck, nothing stays in /dev/shm."""
import http.client
import os
import random
import threading
import time
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()
N_CLIENTS = 6
N_KILLS = int(os.environ.get("PREGATE_E2E_KILLS", "30"))  # more in tests/soak.sh
# Little memory, few workers, and a worker that dies before it has its lease table is soon forgotten.
STORE = ["--max-workers", "2", "--worker-grace-ms", "500"]


class Client(threading.Thread):
    """Asks one golden prompt after the other until told to stop."""

    def __init__(self, worker, seed):
        super().__init__()
        self.worker, self.random = worker, random.Random(seed)
        self.enough = threading.Event()
        self.answers, self.wrong = 0, []
        self.broken = []  # [begin, end] of requests whose connection broke
        self.start()

    def run(self):
        while not self.enough.is_set():
            case = self.random.choice(CASES)
            begin = time.monotonic()
            try:
                status, _, answer = self.worker.post({"prompt": case["text"], "max_tokens": 96}, 60)
            except ConnectionRefusedError:
                time.sleep(0.02)  # no worker: nothing was asked
                continue
            except (OSError, http.client.HTTPException) as e:
                self.broken.append((begin, time.monotonic(), repr(e)))
                continue
            if status == 200 and answer["choices"][0]["text"] == case["output_text"]:
                self.answers += 1
            else:
                self.wrong.append((status, answer, case["output_text"]))


class Load:
    """Clients around a block of code; afterwards all have come home and nothing was wrong."""

    def __init__(self, test, worker):
        self.test, self.worker = test, worker

    def __enter__(self):
        self.clients = [Client(self.worker, seed) for seed in range(N_CLIENTS)]
        return self

    def answers(self):
        return sum(c.answers for c in self.clients)

    def broken(self):
        return [b for c in self.clients for b in c.broken]

    def wait_for_answers(self, n):
        goal = self.answers() + n
        e2e.wait_for(lambda: self.answers() >= goal, f"{n} more answers")

    def __exit__(self, kind, value, traceback):
        for c in self.clients:
            c.enough.set()
        for c in self.clients:
            c.join(e2e.PATIENCE_S)
        if kind is None:
            self.test.assertFalse([c for c in self.clients if c.is_alive()], "a request is stuck")
            self.test.assertEqual([], [w for c in self.clients for w in c.wrong])


class Kill(unittest.TestCase):
    def finish(self, store, worker):
        """All is well at the end, and gone after it."""
        e2e.wait_for(lambda: worker.health()["running"] == 0, "the worker to be idle")
        e2e.wait_for(lambda: store.stat()["pregate_store_workers"] == 1, "the dead to be buried")
        for case in CASES[:4]:
            self.assertEqual(case["output_text"], worker.ask(case["text"], max_tokens=96))
        stat = store.stat()
        self.assertEqual(0, stat["pregate_store_slots_leased"])
        self.assertEqual(0, stat["pregate_store_reverify_failures_total"])
        self.assertEqual(0, stat["pregate_store_load_failures_total"])
        self.assertEqual(0, worker.stop())
        self.assertEqual(0, store.stop())
        self.assertEqual([], store.left_behind())

    def die_at(self, point, after):
        """A store that dies at a point, under load; another takes its place."""
        store = e2e.Store(e2e.pack(), *STORE, ram=e2e.quarter_of_the_experts(), name=f"{point}{after}")
        worker = e2e.Worker(store.endpoint, name=f"{point}{after}-worker")
        self.addCleanup(store.discard)
        self.addCleanup(worker.kill)
        store.start("--test-kill-at", point, "--test-kill-after", str(after))
        worker.start()
        if point == "welcome":  # of the only worker: it waits for the next store
            self.assertEqual(-9, store.wait())
            store.start().ready()
        worker.ready()
        with Load(self, worker) as load:
            if point != "welcome":
                self.assertEqual(-9, store.wait())
                store.start().ready()
            load.wait_for_answers(20)
            self.assertEqual([], load.broken())
        self.assertEqual(2, store.stat()["pregate_store_boot"])
        self.assertEqual(0, worker.metrics()["pregate_worker_sequences_failed_total"])
        self.finish(store, worker)

    def test_store_dies_with_a_read_in_flight(self):
        self.die_at("mid_read", 1)
        self.die_at("mid_read", 60)

    def test_store_dies_evicting(self):
        self.die_at("evicting", 1)
        self.die_at("evicting", 40)

    def test_store_dies_before_it_welcomes(self):
        self.die_at("welcome", 1)

    def test_store_that_stays_away_fails_requests_in_time(self):
        store = e2e.Store(e2e.pack(), *STORE, ram=e2e.quarter_of_the_experts(), name="away")
        worker = e2e.Worker(store.endpoint, "--expert-deadline-s", "1", "--cells", "2",
                            name="away-worker")
        self.addCleanup(store.discard)
        self.addCleanup(worker.kill)
        store.start().ready()
        worker.start().ready()
        worker.ask(CASES[0]["text"])
        store.kill()
        begin = time.monotonic()
        status, headers, answer = worker.post({"prompt": CASES[1]["text"]})
        self.assertEqual(503, status, answer)
        self.assertIn("Retry-After", headers)
        self.assertIn("expert", answer["error"]["message"])
        self.assertLess(time.monotonic() - begin, 5)  # one deadline, not one per expert
        store.start().ready()
        e2e.wait_for(lambda: worker.post({"prompt": "a"})[0] == 200, "answers again")
        self.finish(store, worker)

    def test_random_moments_under_load(self):
        store = e2e.Store(e2e.pack(), *STORE, ram=e2e.quarter_of_the_experts(), name="random")
        worker = e2e.Worker(store.endpoint, name="random-worker")
        self.addCleanup(store.discard)
        self.addCleanup(worker.kill)
        store.start().ready()
        worker.start().ready()
        store.kill()  # files are counted of a store that has adopted, as all later ones have
        store.start().ready()
        e2e.wait_for(lambda: store.stat().get('pregate_store_requests_total{kind="HELLO"}'),
                     "the worker to come back")
        fds = [e2e.n_fds(store), e2e.n_fds(worker)]
        deaths = {"store": 0, "worker": 0}
        worker_away = []  # [killed, ready again]
        with Load(self, worker) as load:
            plan = [[store], [store], [worker], [worker, store]] * (N_KILLS // 4 + 1)
            random.shuffle(plan)
            for victims in plan[:N_KILLS]:
                time.sleep(random.uniform(0, 0.8))
                if worker in victims:
                    worker_away.append([time.monotonic(), None])
                for victim in victims:
                    victim.kill()
                    deaths["store" if victim is store else "worker"] += 1
                time.sleep(random.choice([0, random.uniform(0, 0.3)]))
                for victim in victims:
                    victim.start()
                if random.random() < 0.8:  # else the next may hit it while it starts
                    store.ready()
                    worker.ready()
                    worker_away = [[a, b or time.monotonic()] for a, b in worker_away]
            store.ready()
            worker.ready()
            worker_away = [[a, b or time.monotonic()] for a, b in worker_away]
            load.wait_for_answers(20)
            for begin, end, what in load.broken():
                self.assertTrue([1 for a, b in worker_away if begin < b and a < end],
                                f"a request broke although its worker lived: {what}")
            self.assertGreater(load.answers(), N_KILLS)
        e2e.wait_for(lambda: e2e.n_fds(store) <= fds[0], "files of the store to be closed")
        e2e.wait_for(lambda: e2e.n_fds(worker) <= fds[1], "connections of the worker to be closed")
        leaked = [e2e.n_fds(store) - fds[0], e2e.n_fds(worker) - fds[1]]
        self.finish(store, worker)
        e2e.report("kill", {"kills": N_KILLS, "deaths": deaths, "answers_compared": load.answers(),
                            "answers_wrong": sum(len(c.wrong) for c in load.clients),
                            "requests_broken": len(load.broken()),
                            "left_in_shm": len(store.left_behind()),
                            "fds_leaked": {"store": leaked[0], "worker": leaked[1]}})


class KillPack(unittest.TestCase):
    def test_a_rerun_finishes_what_was_begun(self):
        whole = e2e.pack()
        for point in ("after-item:1", "after-item:100", "after-commit:1", "after-commit:3",
                      "before-rename", "after-rename"):
            out = e2e.path(point.replace(":", "-") + ".store")
            argv = [e2e.program("expert-pack"), e2e.MODEL, "--out", out, "--commit-every", "10"]
            done = e2e.run(*argv, "--test-kill-at", point)
            self.assertEqual(-9, done.returncode, done.stderr)
            if point != "after-rename":
                self.assertFalse(os.path.exists(out), point)
                done = e2e.run(*argv)
                self.assertEqual(0, done.returncode, done.stderr)
            done = e2e.run(e2e.program("expert-pack"), "verify", out)
            self.assertEqual(0, done.returncode, done.stderr)
            for name in os.listdir(os.path.join(whole, "segments")):
                with open(os.path.join(whole, "segments", name), "rb") as a, \
                        open(os.path.join(out, "segments", name), "rb") as b:
                    self.assertEqual(a.read(), b.read(), (point, name))


if __name__ == "__main__":
    e2e.main()

"""deploy/pregate as a user runs it: up, ask, stats, status, logs, restart, down. What dies comes back;
down leaves nothing running and nothing in /dev/shm. Its home has a space in its name."""
import glob
import json
import os
import re
import shutil
import signal
import unittest

import pregate_e2e as e2e

CASE = e2e.golden()[3]


@unittest.skipUnless(shutil.which("supervisord") and shutil.which("curl"),
                     "supervisord or curl is missing")
class Supervised(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = e2e.path("a home")
        cls.http = f"127.0.0.1:{e2e.free_port()}"
        cls.environment = e2e.clean_environment(PREGATE_HOME=cls.home, PREGATE_BIN=e2e.bin_dir)

    def pregate(self, *args, expect=0, timeout=90, **more):
        done = e2e.run(os.path.join(e2e.ROOT, "deploy", "pregate"), *args, timeout=timeout,
                       env={**self.environment, **more}, cwd="/")
        self.assertEqual(expect, done.returncode, f"{args}: {done.stdout}\n{done.stderr}")
        return done.stdout if expect == 0 else done.stderr + done.stdout

    def setUp(self):
        self.addCleanup(self.pregate, "down")

    def up(self, *args):
        return self.pregate("up", "--http", self.http, *args)

    def pids(self):
        """{program: pid} of what runs, as status says."""
        return {name: int(pid) for name, pid in
                re.findall(r"^(store|worker)\s+RUNNING\s+pid (\d+)", self.pregate("status"), re.M)}

    def our_processes(self):
        """Processes with our home in their command line or environment."""
        found = []
        for proc in glob.glob("/proc/[0-9]*"):
            try:
                with open(proc + "/environ", "rb") as f:
                    if f"PREGATE_HOME={self.home}\0".encode() in f.read():
                        found.append(os.path.basename(proc))
            except OSError:
                pass
        return found

    def test_a_life(self):
        self.assertIn("down", self.pregate("status", expect=3))
        self.assertIn("pregate up", self.pregate("ask", "a", expect=1))
        said = self.up()
        self.assertIn(f"http://{self.http}", said)
        self.assertEqual(CASE["output_text"], self.pregate("ask", CASE["text"]).rstrip("\n"))
        self.assertIn("already running", self.pregate("up", expect=1))
        stat = json.loads(self.pregate("stats", "--json"))
        self.assertEqual(1, stat["pregate_store_workers"])
        self.assertIn("restore-pregated", self.pregate("stats"))
        logs = self.pregate("logs")
        self.assertIn("store serving", logs)
        self.assertIn("worker serving", logs)
        with open(f"/proc/{self.pids()['store']}/maps") as f:
            prefix = re.search(r"/dev/shm/pregate-\w+-", f.read()).group()

        for victim in ("store", "worker"):
            before = self.pids()
            os.kill(before[victim], signal.SIGKILL)

            def is_back():
                now = self.pids()
                return len(now) == 2 and now[victim] != before[victim]
            e2e.wait_for(is_back, f"another {victim}")
            e2e.wait_for(lambda: self.answers(), "answers again")
            other = "worker" if victim == "store" else "store"
            self.assertEqual(before[other], self.pids()[other])
        self.assertEqual(2, json.loads(self.pregate("stats", "--json"))["pregate_store_boot"])

        before = self.pids()
        self.pregate("restart")
        self.assertEqual(2, len(self.pids()))
        self.assertFalse(set(before.values()) & set(self.pids().values()))
        self.assertTrue(self.answers())

        self.pregate("down")
        self.assertEqual([], self.our_processes())
        self.assertEqual([], glob.glob(prefix + "*"))
        self.assertIn("down", self.pregate("down"))  # twice is harmless
        self.assertIn("pregate up", self.pregate("ask", "a", expect=1))

    def answers(self):
        done = e2e.run(os.path.join(e2e.ROOT, "deploy", "pregate"), "ask", CASE["text"],
                       env=self.environment)
        return done.stdout.rstrip("\n") == CASE["output_text"]

    def test_settings_come_from_the_file_and_the_environment(self):
        config = e2e.path("my.conf")
        with open(config, "w") as f:
            f.write(f"[store]\nram_bytes = {20 * e2e.slot_bytes()}B\nmax_workers = 2\n"
                    "[worker]\nmax_output_tokens = 4\nmax_batch = 3\n")
        self.environment["PREGATE_STORE_MAX_WORKERS"] = "3"
        try:
            self.up("--store", e2e.pack(), "--config", config)
        finally:
            del self.environment["PREGATE_STORE_MAX_WORKERS"]
        stat = json.loads(self.pregate("stats", "--json"))
        self.assertEqual(20, stat["pregate_store_slots_max"])
        self.assertEqual(3, stat["pregate_store_workers_max"])
        answer = self.pregate("ask", CASE["text"]).rstrip("\n")
        self.assertTrue(CASE["output_text"].startswith(answer))
        self.assertLess(len(answer), len(CASE["output_text"]))

    def test_what_cannot_start_is_shown_and_stopped(self):
        config = e2e.path("bad.conf")
        with open(config, "w") as f:
            f.write("[worker]\nmax_batch = many\n")
        said = self.pregate("up", "--http", self.http, "--config", config, expect=1)
        self.assertIn("max_batch", said)
        self.assertIn("did not become healthy", said)
        self.assertEqual([], self.our_processes())

    def test_unknown_commands_and_options_are_named(self):
        self.assertIn("Usage", self.pregate("--help"))
        self.assertIn("unknown command 'upp'", self.pregate("upp", expect=1))
        self.assertIn("unknown option '--prot'", self.pregate("up", "--prot", "1", expect=1))


if __name__ == "__main__":
    e2e.main()

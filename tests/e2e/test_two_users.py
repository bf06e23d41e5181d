"""Store and worker as two users (--allow-uid): the worker answers, and cannot write what belongs to
the store. Needs root, who alone can become two other users; else skipped (77)."""
import json
import os
import stat
import sys
import unittest

import pregate_e2e as e2e

# Numbers that no account is likely to have; the worker is in the store's primary group.
STORE_ID, WORKER_ID, STRANGER_ID = 64001, 64002, 64003
AS_STORE = {"user": STORE_ID, "group": STORE_ID, "extra_groups": []}
AS_WORKER = {"user": WORKER_ID, "group": WORKER_ID, "extra_groups": [STORE_ID]}
AS_STRANGER = {"user": STRANGER_ID, "group": STRANGER_ID, "extra_groups": [STORE_ID]}
CASES = e2e.golden()[:6]


class TwoUsers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        os.chmod(e2e.scratch, 0o755)
        cls.client_program = e2e.copy_for_everyone(e2e.test_program("hostile_client"))
        store = e2e.pack()
        e2e.bin_dir = e2e.copy_for_everyone(e2e.bin_dir)
        cls.run_dir = e2e.path("run")
        os.mkdir(cls.run_dir, 0o750)
        os.chown(cls.run_dir, STORE_ID, STORE_ID)
        cls.store = e2e.Store(store, "--allow-uid", str(WORKER_ID), "--worker-probe-ms", "50",
                              ram=e2e.quarter_of_the_experts(), as_user=AS_STORE,
                              endpoint="ipc://" + os.path.join(cls.run_dir, "store.sock"))
        cls.worker = e2e.Worker(cls.store.endpoint, as_user=AS_WORKER)
        cls.addClassCleanup(cls.store.discard)
        cls.addClassCleanup(cls.worker.kill)
        cls.store.start().ready()
        cls.worker.start().ready()

    def client(self, mode, seconds, as_user):
        return e2e.run(self.client_program, mode, self.store.endpoint, str(seconds), **as_user)

    def test_the_worker_answers(self):
        for case in CASES:
            self.assertEqual(case["output_text"], self.worker.ask(case["text"], max_tokens=96))

    def test_the_worker_cannot_write_what_the_store_owns(self):
        done = self.client("regions", 10, AS_WORKER)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual({"slots": "refused", "dense": "refused", "board": "refused",
                          "leases": "writable"}, json.loads(done.stdout))
        for name in self.store.left_behind():
            s = os.stat(name)
            self.assertEqual((STORE_ID, STORE_ID), (s.st_uid, s.st_gid), name)
            self.assertEqual(0, s.st_mode & (stat.S_IRWXO | stat.S_IXUSR | stat.S_IXGRP), name)

    def test_the_worker_is_no_operator(self):
        done = e2e.run(e2e.program("expert-stat"), "--endpoint", self.store.endpoint, "--drain",
                       **AS_WORKER)
        self.assertNotEqual(0, done.returncode, done.stdout)
        self.assertTrue(self.store.running())

    def test_a_third_user_is_refused(self):
        """Although its group lets it reach the socket."""
        self.assertEqual(0, self.client("ping", 5, AS_WORKER).returncode)
        self.assertEqual(3, self.client("ping", 1, AS_STRANGER).returncode)


if __name__ == "__main__":
    if os.getuid() != 0:
        print("only root can become two other users: skipped")
        sys.exit(77)
    e2e.main()

"""deploy/pregate doctor and expert-doctor: one JSON object, the model's part when there is one, what
is degraded said with its cost, nothing left behind."""
import json
import os
import resource
import unittest

import pregate_e2e as e2e

QUICK = ("--seconds", "0.5", "--file-bytes", "16MiB")


def lower_memlock():
    """64 KiB, and the capability that ignores it taken away where we have it."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


class Doctor(unittest.TestCase):
    def doctor(self, *args, expect=0, **kw):
        done = e2e.run(e2e.program("expert-doctor"), *QUICK, *args, **kw)
        self.assertEqual(expect, done.returncode, done.stdout + done.stderr)
        return done.stdout if expect in (0, 3) else done.stderr

    def finding(self, report, name):
        return next(f for f in report["findings"] if f["name"] == name)

    def test_a_machine_without_a_model(self):
        report = json.loads(self.doctor("--dir", e2e.scratch, "--json"))
        self.assertIsNone(report["model"])
        self.assertEqual({"memlock", "/dev/shm", "RAM", "huge pages", "NUMA", "io_uring",
                          "O_DIRECT", "pread", "DRAM"} - {f["name"] for f in report["findings"]},
                         set())
        for f in report["findings"]:
            self.assertIn(f["verdict"], ("good", "note", "slow", "bad"))
            self.assertTrue(f["found"])
            self.assertEqual(f["verdict"] == "slow", bool(f["cost"]) and bool(f["change"]), f)
        drive = report["drive"]
        self.assertGreater(drive["pread"]["gb_per_s"], 0)
        self.assertEqual(16 << 20, drive["file_bytes"])
        if drive["io_uring"]:
            fastest = max(p["gb_per_s"] for p in drive["grid"])
            self.assertGreater(drive["best"]["gb_per_s"], 0.5 * fastest)
            self.assertIn((drive["best"]["read_bytes"], drive["best"]["depth"]),
                          {(p["read_bytes"], p["depth"]) for p in drive["grid"]} |
                          {(1 << 20, 64)})
        self.assertGreater(report["dram"]["one_thread_gb_per_s"], 0)

    def test_the_model_of_a_store(self):
        store = e2e.pack()
        before = sorted(os.listdir(store))
        report = json.loads(self.doctor("--store", store, "--json"))
        model = report["model"]
        self.assertEqual("restore-pregated", model["name"])
        self.assertEqual(e2e.N_EXPERTS, model["n_experts"])
        self.assertEqual(4, model["experts_per_token"])  # one in each decoder block
        self.assertEqual(e2e.slot_bytes() * e2e.N_EXPERTS, model["all_bytes"])
        shares = [b["share"] for b in model["budgets"]]
        self.assertEqual(sorted(shares), shares)
        self.assertEqual(1, shares[-1])
        self.assertIsNone(model["budgets"][-1]["even_tokens_per_s"])
        self.assertEqual(before, sorted(os.listdir(store)))

    def test_a_large_enough_segment_is_measured_itself(self):
        store = e2e.pack()
        done = e2e.run(e2e.program("expert-doctor"), "--seconds", "0.2", "--file-bytes", "4MiB",
                       "--store", store, "--json")
        self.assertIn("000000.seg", json.loads(done.stdout)["drive"]["file"])

    def test_people_get_a_table(self):
        text = self.doctor("--store", e2e.pack())
        for part in ("memlock", "O_DIRECT", "depth 16", "--ram-bytes", "restore-pregated"):
            self.assertIn(part, text)

    def test_a_small_memlock_limit_is_said_with_its_remedy(self):
        os.chmod(e2e.scratch, 0o777)
        programs = e2e.copy_for_everyone(e2e.program("expert-doctor"))
        done = e2e.run(programs, *QUICK, "--dir", e2e.scratch, "--json", preexec_fn=lower_memlock)
        self.assertEqual(0, done.returncode, done.stderr)
        report = json.loads(done.stdout)
        memlock = self.finding(report, "memlock")
        self.assertEqual("slow", memlock["verdict"])
        self.assertIn("LimitMEMLOCK=infinity", memlock["change"])
        if report["drive"]["io_uring"]:
            self.assertFalse(report["drive"]["registered_buffers"])
            self.assertEqual("slow", self.finding(report, "io_uring")["verdict"])

    def test_what_is_wrong_is_said(self):
        self.assertIn("/nowhere", self.doctor("--dir", "/nowhere", expect=1))
        self.assertIn("/nowhere", self.doctor("--store", "/nowhere", expect=1))
        self.assertIn("--file-bytes", self.doctor("--file-bytes", "1B", expect=2))

    def test_pregate_doctor_adds_the_gpu_or_says_that_none_answers(self):
        pregate = os.path.join(e2e.ROOT, "deploy", "pregate")
        env = e2e.clean_environment(PREGATE_HOME=e2e.path("doctor home"), PREGATE_BIN=e2e.bin_dir)
        done = e2e.run(pregate, "doctor", *QUICK, "--store", e2e.pack(), "--json", env=env)
        self.assertEqual(0, done.returncode, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual("restore-pregated", report["machine"]["model"]["name"])
        text = e2e.run(pregate, "doctor", *QUICK, "--dir", e2e.scratch, env=env).stdout
        if report["gpu"] is None:
            self.assertRegex(text, r"note  GPU +none answered: \S")
        else:
            self.assertGreater(report["gpu"]["link_gbps"], 0)
            self.assertIn("link", text)
        self.assertEqual(2, e2e.run(pregate, "doctor", "--nonsense", env=env).returncode)


if __name__ == "__main__":
    e2e.main()

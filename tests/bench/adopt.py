#!/usr/bin/env python3
"""How soon a store serves: one that starts cold, and one that adopts the memory of a killed one.

    adopt.py BIN_DIR TESTS_DIR WORK_DIR [SYNTHETIC]

BIN_DIR has expert-pack, expert-store and expert-stat, TESTS_DIR bench_lease; WORK_DIR has room for the
model SYNTHETIC, by default switch-base-128 (15 GB, which /dev/shm must hold, too). Seconds from exec of
the store to the first lease of an expert, a worker's start included: with an empty memory, from the
drive; then all experts are loaded, the store is killed (SIGKILL) and started again, three times. Prints
one JSON object; exit 1 when an adopted expert had to be read again or one was lost.
"""
import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

READY = 'pregate_store_slots{state="ready"}'


class Store:
    def __init__(self, bin_dir, tests_dir, path, scratch):
        self.bin, self.tests, self.path = bin_dir, tests_dir, path
        self.endpoint = f"ipc://{scratch}/store.sock"
        self.log = open(f"{scratch}/store.log", "a")

    def lease(self, experts):
        subprocess.run([f"{self.tests}/bench_lease", "--endpoint", self.endpoint, "--rounds", "1", "--experts",
                        str(experts)], check=True, stdout=subprocess.DEVNULL)

    def start(self):
        """Seconds to the first lease."""
        begin = time.monotonic()
        self.process = subprocess.Popen([f"{self.bin}/expert-store", "--store", self.path, "--endpoint",
                                         self.endpoint], stdout=self.log, stderr=self.log)
        atexit.register(self.process.kill)
        self.lease(1)
        return time.monotonic() - begin

    def stat(self):
        out = subprocess.run([f"{self.bin}/expert-stat", "--endpoint", self.endpoint, "--json"],
                             check=True, capture_output=True, text=True)
        return json.loads(out.stdout)

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait()


def number(stat, name):
    value = stat.get(name)
    return value if value is not None else sys.exit(f"adopt.py: expert-stat has no {name}")


def main():
    bin_dir, tests_dir, work = sys.argv[1:4]
    model = sys.argv[4] if len(sys.argv) > 4 else "switch-base-128"
    with tempfile.TemporaryDirectory(prefix="pregate-adopt-", dir=work) as scratch:
        path = os.path.join(scratch, "model.store")
        subprocess.run([f"{bin_dir}/expert-pack", "--synthetic", model, "--out", path], check=True,
                       stdout=subprocess.DEVNULL)
        store = Store(bin_dir, tests_dir, path, scratch)
        result = {"bench": "adopt", "model": model, "date": time.strftime("%Y-%m-%d"),
                  "cold_first_lease_s": round(store.start(), 3)}
        begin = time.monotonic()
        store.lease(65536)
        result["load_all_s"] = round(time.monotonic() - begin, 1)
        resident = number(store.stat(), READY)
        times, reads = [], 0
        for _ in range(3):
            store.end(signal.SIGKILL)
            times.append(round(store.start(), 3))
            after = store.stat()
            reads += number(after, "pregate_store_read_bytes_total")
            if number(after, "pregate_store_adopted_slots") != resident:
                sys.exit("adopt.py: experts were lost")
        store.end(signal.SIGTERM)
        result.update(experts=resident, adopted_first_lease_s=times, read_again_bytes=reads)
        print(json.dumps(result))
        sys.exit(reads > 0)


if __name__ == "__main__":
    main()

"""The numbers that users see: driven to values known beforehand, and the same in expert-stat --json,
expert-stat --prometheus, its table, and the worker's /metrics.

Known beforehand: a greedy answer uses the experts that golden.json records. With a cell for every
expert and no predictions, an expert is missed exactly once; the batch is one sequence."""
import contextlib
import json
import socket
import struct
import threading
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()
FIELDS = {"max_tokens": 96}
BLOCKS = ["enc0", "enc1", "enc2", "dec0", "dec1", "dec2", "dec3"]
READ_SPLIT = 256 << 10  # the default of --read-split


def uses(case):
    """{block: [the sets of experts that its steps use]}; encoding is one step."""
    enc, dec = case["encoder_experts"], case["decoder_experts"]
    steps = {f"enc{b}": [set(experts)] for b, experts in enumerate(enc)}
    steps.update({f"dec{b}": [{e} for e in experts] for b, experts in enumerate(dec)})
    return steps


def flat(prefix, block):
    return f'{prefix}{{block="{block}"}}'


@contextlib.contextmanager
def sent_to_store(path, *messages):
    """Speaks ZMTP 3 by hand, as far as it takes to deliver these bytes. Hanging up would drop those
    that the store has not read yet."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(e2e.PATIENCE_S)
        s.connect(path)
        s.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        s.recv(64, socket.MSG_WAITALL)
        ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        s.sendall(bytes([4, len(ready)]) + ready)
        s.recv(s.recv(2, socket.MSG_WAITALL)[1], socket.MSG_WAITALL)
        for m in messages:
            s.sendall(bytes([0, len(m)]) + m)
        yield


class Statistics(unittest.TestCase):
    def pair(self, *worker_options, ram=None):
        pair = e2e.Pair(worker_options=worker_options, ram=ram)
        pair.__enter__()
        self.addCleanup(pair.__exit__)
        return pair

    def stat(self, pair, *options):
        done = e2e.run(e2e.program("expert-stat"), "--endpoint", pair.store.endpoint, *options)
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout

    def expect(self, samples, **values):
        for name, value in values.items():
            self.assertEqual(value, samples["pregate_" + name], name)

    def test_two_requests_count_what_the_golden_file_says(self):
        pair = self.pair("--fetch-policy", "on-demand", "--cells", str(e2e.N_EXPERTS))
        asked = [CASES[3], CASES[9]]
        for case in asked:
            self.assertEqual(case["output_text"], pair.worker.ask(case["text"], **FIELDS))
        seen = {b: set().union(*(s for c in asked for s in uses(c)[b])) for b in BLOCKS}
        used = {b: sum(len(s) for c in asked for s in uses(c)[b]) for b in BLOCKS}
        loaded = sum(len(s) for s in seen.values())
        outputs = sum(len(c["output_ids"]) for c in asked)
        of_worker = {
            "encode_steps_total": 2, "decode_steps_total": outputs,
            "prompt_tokens_total": sum(len(c["input_ids"]) for c in asked),
            "output_tokens_total": outputs, "sequences_started_total": 2,
            "sequences_finished_total": 2, "sequences_failed_total": 0, "batch_max": 1,
            "copies_total": loaded, "copy_bytes_total": loaded * e2e.slot_bytes(),
            "copies_pageable_total": 0, "leases_taken_total": loaded,
            "predictions_sent_total": 0, "wants_sent_total": loaded, "lease_retries_total": 0,
            "cells": e2e.N_EXPERTS, "cells_used": loaded, "cell_bytes": e2e.slot_bytes(),
            "copy_hidden_seconds_total": 0}
        metrics = pair.worker.metrics()
        stat = json.loads(self.stat(pair, "--json", "--per-block"))
        self.expect(metrics, **{"worker_" + k: v for k, v in of_worker.items()})
        self.expect(stat, **{f'worker_{k}{{worker="1"}}': v for k, v in of_worker.items()})
        self.expect(metrics, **{'worker_batch_steps_total{batch="1"}': outputs,
                                'worker_batch_steps_total{batch="2"}': 0})
        self.expect(metrics, worker_ready=1, worker_running=0, worker_waiting=0,
                    worker_leases_held=0, worker_store_wait_seconds_count=loaded,
                    worker_encode_seconds_count=2, worker_decode_seconds_count=outputs,
                    worker_first_token_seconds_count=2)
        self.expect(metrics, http_open_requests=0, http_abandoned_total=0,
                    http_request_seconds_count=2, http_first_token_seconds_count=2)
        for b in BLOCKS:
            misses, all_used = len(seen[b]), used[b]
            for kind, value in {"cell_hit": all_used - misses, "cell_late": 0, "cell_miss": misses,
                                "cell_wasted": 0, "slot_hit": 0, "slot_late": 0,
                                "slot_miss": misses, "fetch_predicted": 0,
                                "fetch_demand": misses}.items():
                self.assertEqual(value, metrics[flat(f"pregate_worker_{kind}_total", b)], (b, kind))
                self.assertEqual(value, stat[flat(f"pregate_{kind}_total", b)], (b, kind))
            self.assertEqual(misses, stat[flat("pregate_store_block_ready", b)])
        reads_each = -(-e2e.slot_bytes() // READ_SPLIT)
        self.expect(stat, store_reads_total=loaded * reads_each, store_load_failures_total=0,
                    store_read_bytes_total=loaded * e2e.slot_bytes(), store_want_miss_total=loaded,
                    store_want_hit_total=0, store_want_late_total=0, store_evictions_total=0,
                    store_slots_max=e2e.N_EXPERTS, store_experts=e2e.N_EXPERTS, store_workers=1,
                    store_workers_joined_total=1, store_boot=1, store_slots_leased=0,
                    store_reads_in_flight=0, store_wasted_total=0)
        self.expect(stat, **{'store_slots{state="ready"}': loaded,
                             'store_slots{state="free"}': e2e.N_EXPERTS - loaded,
                             'store_loads_total{class="demand"}': loaded,
                             'store_loads_total{class="near"}': 0,
                             'store_requests_total{kind="HELLO"}': 1})

        # A second worker finds everything in memory, nothing in its cells.
        done = e2e.run(e2e.program("gpu-worker"), "run", "--endpoint", pair.store.endpoint,
                       "--fetch-policy", "on-demand", "--cells", str(e2e.N_EXPERTS), "--prompt",
                       CASES[3]["text"], "--max-tokens", "96")
        self.assertEqual(CASES[3]["output_text"], done.stdout.rstrip("\n"), done.stderr)
        first = {b: set().union(*uses(CASES[3])[b]) for b in BLOCKS}
        e2e.wait_for(lambda: pair.store.stat()["pregate_store_workers"] == 1, "it to be gone")
        after = json.loads(self.stat(pair, "--json", "--per-block"))
        for b in BLOCKS:
            self.assertEqual(len(first[b]), after[flat("pregate_slot_hit_total", b)])
            self.assertEqual(len(seen[b]) + len(first[b]), after[flat("pregate_cell_miss_total", b)])
        self.expect(after, store_workers_joined_total=2, store_workers_gone_total=1,
                    store_reads_total=loaded * reads_each)
        self.expect(after, **{'worker_sequences_finished_total{worker="gone"}': 1})

    def test_all_outputs_agree(self):
        pair = self.pair()
        for case in CASES[:3]:
            pair.worker.ask(case["text"])
        volatile = ("uptime", "resident", "per_second", 'kind="STATS"', 'kind="PING"', "_bucket",
                    "outstanding", "_seconds")
        as_json = json.loads(self.stat(pair, "--json"))
        as_text = e2e.prometheus(self.stat(pair, "--prometheus"))
        metrics = pair.worker.metrics()
        compared = 0
        for key, value in as_json.items():
            if isinstance(value, dict):  # a histogram
                self.assertEqual(value["count"], as_text[key + "_count"], key)
            elif not any(v in key for v in volatile):
                self.assertAlmostEqual(value, as_text[key], msg=key)
                compared += 1
        self.assertGreater(compared, 60)
        for key, value in as_json.items():
            if 'worker="1"' in key and key.startswith("pregate_worker_"):
                own = key.replace('worker="1",', "").replace('{worker="1"}', "")
                self.assertAlmostEqual(value, metrics[own], msg=key)
        for kind in ("cell_hit", "cell_late", "cell_miss", "slot_hit", "slot_late", "slot_miss"):
            self.assertEqual(as_json[f"pregate_{kind}_total"],
                             sum(metrics[flat(f"pregate_worker_{kind}_total", b)] for b in BLOCKS))
        table = self.stat(pair)
        for name, value in (("experts copied", as_json['pregate_worker_copies_total{worker="1"}']),
                            ("tokens made",
                             as_json['pregate_worker_output_tokens_total{worker="1"}'])):
            self.assertRegex(table, rf"{name}\s+{int(value)}\n")
        self.assertIn("up ", table)
        blocks = self.stat(pair, "--per-block")
        self.assertEqual(BLOCKS, [line.split()[0] for line in blocks.splitlines()[1:]])

    def test_memory_for_few_evicts_as_many_as_it_must(self):
        pair = self.pair("--fetch-policy", "on-demand", ram=e2e.quarter_of_the_experts())
        for case in CASES[:2]:
            pair.worker.ask(case["text"])
        stat = pair.store.stat()
        loads = sum(v for k, v in stat.items() if k.startswith("pregate_store_loads_total"))
        self.assertEqual(14, stat["pregate_store_slots_max"])
        self.assertGreater(stat["pregate_store_evictions_total"], 0)
        self.assertEqual(stat['pregate_store_slots{state="ready"}'],
                         loads - stat["pregate_store_evictions_total"])

    def test_an_operator_fills_pins_and_empties_memory(self):
        pair = self.pair()
        self.assertIn("56 of 56", self.stat(pair, "--prefetch", "all"))
        e2e.wait_for(lambda: pair.store.stat()['pregate_store_slots{state="ready"}'] == 56,
                     "all experts to be read")
        self.expect(pair.store.stat(), **{'store_loads_total{class="warm"}': 56})
        self.stat(pair, "--pin", "dec0,enc1:3-5")
        self.expect(pair.store.stat(), store_experts_pinned=11)
        done = e2e.run(e2e.program("expert-stat"), "--endpoint", pair.store.endpoint, "--evict",
                       "enc1")
        self.assertEqual(1, done.returncode)
        self.assertIn("5 evicted, 3 in use or pinned", done.stderr)
        self.stat(pair, "--unpin", "enc1:3-5")
        self.assertIn("3 evicted", self.stat(pair, "--evict", "enc1"))
        stat = pair.store.stat()
        self.expect(stat, store_experts_pinned=8, store_evictions_total=8,
                    store_wasted_total=8)  # read in advance, never used
        self.expect(stat, **{'store_slots{state="ready"}': 48})

    def test_bad_messages_are_counted_and_survived(self):
        pair = self.pair()
        path = pair.store.endpoint[len("ipc://"):]
        with sent_to_store(path, b"", b"garbage", b"\xdf\xff\xff\xff\xff", b"\x80"):
            e2e.wait_for(lambda: pair.store.stat()["pregate_store_malformed_total"] == 4,
                         "four bad messages to be counted")
        self.assertEqual(CASES[3]["output_text"], pair.worker.ask(CASES[3]["text"]))

    def test_http_answers_are_counted_by_class(self):
        pair = self.pair("--max-body-bytes", "1KiB", "--max-queue", "1", "--max-batch", "1")
        worker = pair.worker
        before = worker.metrics()
        worker.ask("a")                             # 2xx
        worker.get("/v1/models")                    # 2xx
        worker.get("/nowhere")                      # 4xx
        worker.post({"prompt": "a" * 2000})         # 4xx
        worker.post({"prompt": "a", "n": 2})        # 4xx
        worker.ask_streamed("a")                    # 2xx
        # One runs, one waits, the others are refused.
        answers = e2e.in_threads(lambda _: worker.post({"prompt": CASES[1]["text"]})[0], range(12))
        refused = answers.count(503)
        self.assertGreater(refused, 0)
        self.assertEqual(12, refused + answers.count(200))
        after = worker.metrics()

        def grown(code):
            key = f'pregate_http_responses_total{{code="{code}"}}'
            return after[key] - before[key]
        self.assertEqual(3, grown("4xx"))
        self.assertEqual(refused, grown("5xx"))
        # the metrics asked for before, and those of the worker's readiness
        self.assertEqual(3 + 12 - refused + 1, grown("2xx"))

    def test_a_given_up_answer_counts_as_failed(self):
        pair = self.pair("--cpu-link-gbps", "0.05", "--cells", "2")
        thread = threading.Thread(target=self.ask_and_hang_up, args=[pair.worker])
        thread.start()
        thread.join()
        e2e.wait_for(lambda: pair.worker.metrics()["pregate_worker_sequences_failed_total"] == 1,
                     "the sequence to be counted")
        self.expect(pair.worker.metrics(), http_abandoned_total=1,
                    worker_sequences_started_total=1, worker_sequences_finished_total=0)

    def ask_and_hang_up(self, worker):
        body = json.dumps({"prompt": CASES[8]["text"]}).encode()
        with socket.create_connection(("127.0.0.1", worker.port)) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                      b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            e2e.wait_for(
                lambda: worker.metrics()["pregate_worker_sequences_started_total"] == 1,
                "the sequence to start")


if __name__ == "__main__":
    e2e.main()

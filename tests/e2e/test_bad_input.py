"""Everything that a user may get wrong: one clear line that names the thing, the reason and what to do;
a non-zero exit or a 4xx or 503; and whatever else runs goes on."""
import json
import os
import re
import shutil
import socket
import struct
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()


def fail_line(test, done, *words, program):
    """The one error line of a program that gave up, with all the words in it."""
    test.assertNotEqual(0, done.returncode)
    test.assertLess(done.returncode, 128, "killed by a signal")
    lines = [line for line in done.stderr.splitlines()
             if line.startswith(program + ":") or " ERROR " in line]
    test.assertEqual(1, len(lines), done.stderr)
    for word in words:
        test.assertIn(word, lines[0])
    return lines[0]


def read_tensors(file):
    """{name: (offset in the file, bytes)} of a safetensors file."""
    with open(file, "rb") as f:
        length, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    return {name: (8 + length + t["data_offsets"][0], t["data_offsets"][1] - t["data_offsets"][0])
            for name, t in header.items() if name != "__metadata__"}


class BadCheckpoint(unittest.TestCase):
    """expert-pack refuses, and leaves no store behind."""

    def setUp(self):
        self.model = e2e.path("bad-model")
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(e2e.MODEL, self.model)

    def file(self, name):
        return os.path.join(self.model, name)

    def edit_config(self, **changes):
        with open(self.file("config.json")) as f:
            config = json.load(f)
        config.update(changes)
        with open(self.file("config.json"), "w") as f:
            json.dump(config, f)

    def refuse(self, *words):
        out = e2e.path("bad.store")
        done = e2e.run(e2e.program("expert-pack"), self.model, "--out", out)
        fail_line(self, done, *words, program="expert-pack")
        self.assertFalse(os.path.exists(out))

    def test_a_missing_shard(self):
        os.unlink(self.file("model-00002-of-00002.safetensors"))
        self.refuse("model-00002-of-00002.safetensors", "is missing", "download it")

    def test_a_truncated_shard(self):
        os.truncate(self.file("model-00001-of-00002.safetensors"), 1 << 20)
        self.refuse("model-00001-of-00002.safetensors", "truncated", "download it again")

    def test_a_wrong_shape(self):
        self.edit_config(d_ff=400)
        self.refuse("wi.weight", "[384, 192]", "[400, 192]", "another model")

    def test_a_wrong_dtype(self):
        shard = self.file("model-00001-of-00002.safetensors")
        with open(shard, "r+b") as f:
            header = f.read(20000)
            at = header.index(b'"dtype":"BF16"')
            f.seek(at)
            f.write(b'"dtype":"I16" ')
        self.refuse("I16", "weight", "BF16")

    def test_an_unknown_architecture(self):
        self.edit_config(architectures=["LlamaForCausalLM"])
        self.refuse("LlamaForCausalLM", "supported are", "SwitchTransformersForConditionalGeneration")

    def test_a_corrupt_config(self):
        with open(self.file("config.json"), "w") as f:
            f.write('{"d_model": ')
        self.refuse("config.json", "not JSON")

    def test_no_config(self):
        os.unlink(self.file("config.json"))
        self.refuse("config.json", "No such file")

    def test_a_corrupt_index(self):
        with open(self.file("model.safetensors.index.json"), "w") as f:
            f.write("{")
        self.refuse("model.safetensors.index.json", "not JSON", "download it again")

    def test_no_such_directory(self):
        self.model = e2e.path("nowhere")
        self.refuse("nowhere", "No such file")

    @unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
    def test_a_full_disk(self):
        mount = e2e.path("small-disk")
        os.makedirs(mount, exist_ok=True)
        done = e2e.run("unshare", "-m", "sh", "-c",
                       f'mount -t tmpfs -o size=8m none "$0" && exec "$@"', mount,
                       e2e.program("expert-pack"), self.model, "--out", mount + "/x.store")
        fail_line(self, done, "x.store", "free", program="expert-pack")


class BadStore(unittest.TestCase):
    """expert-store does not start, and says why."""

    def refuse(self, store, *words, options=(), endpoint=None, prefix=()):
        endpoint = endpoint or "ipc://" + e2e.path("refused.sock")
        done = e2e.run(*prefix, e2e.program("expert-store"), "--store", store, "--endpoint",
                       endpoint, *options)
        return fail_line(self, done, *words, program="expert-store")

    def test_no_store(self):
        self.refuse(e2e.path("nowhere.store"), "nowhere.store", "No such file")

    def test_an_unfinished_store(self):
        out = e2e.path("killed.store")
        done = e2e.run(e2e.program("expert-pack"), e2e.MODEL, "--out", out, "--commit-every", "1",
                       "--test-kill-at", "after-item:20")
        self.assertEqual(-9, done.returncode)
        self.assertFalse(os.path.exists(out))
        self.refuse(out + ".partial", "killed.store.partial", "unfinished", "run expert-pack again")
        done = e2e.run(e2e.program("expert-pack"), e2e.MODEL, "--out", out)  # as it says
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual(0, e2e.run(e2e.program("expert-pack"), "verify", out).returncode)

    def test_a_store_without_its_segment(self):
        broken = e2e.path("broken.store")
        shutil.copytree(e2e.pack(), broken)
        os.truncate(os.path.join(broken, "segments", "000000.seg"), 1 << 20)
        self.refuse(broken, "000000.seg")
        os.unlink(os.path.join(broken, "segments", "000000.seg"))
        self.refuse(broken, "000000.seg")

    def test_memory_below_the_minimum(self):
        self.refuse(e2e.pack(), "--ram-bytes 100KiB", "minimum", "bytes",
                    options=["--ram-bytes", "100KiB"])

    def test_an_endpoint_that_is_too_long(self):
        self.refuse(e2e.pack(), "107", "choose a shorter directory",
                    endpoint="ipc://" + e2e.path("x" * 120))

    def test_an_instance_that_already_runs(self):
        store = e2e.Store(e2e.pack(), name="first").start().ready()
        self.addCleanup(store.discard)
        self.refuse(e2e.pack(), "already running", store.endpoint, f"process {store.pid}",
                    "another --endpoint", endpoint=store.endpoint)
        self.assertIsNotNone(store.stat())  # which did not mind
        self.assertEqual(0, store.stop())

    @unittest.skipUnless(os.geteuid() == 0, "needs root to mount")
    def test_too_little_shared_memory(self):
        small = ["unshare", "-m", "sh", "-c",
                 'mount -t tmpfs -o size=4m none /dev/shm && exec "$0" "$@"']
        self.refuse(e2e.pack(), "/dev/shm", "bytes", prefix=small)

    def test_settings_that_do_not_exist(self):
        for program in ("expert-store", "gpu-worker", "expert-pack", "expert-stat"):
            done = e2e.run(e2e.program(program), "--edpoint", "x")
            fail_line(self, done, "--edpoint", program=program)
        done = e2e.run(e2e.program("gpu-worker"), "serve", "--max-batch", "1000000")
        fail_line(self, done, "max_batch", "1000000", "from 1 to", program="gpu-worker")


class BadWorker(unittest.TestCase):
    def test_no_store_is_waited_for_and_said(self):
        store = e2e.Store(e2e.pack(), name="late-store")
        worker = e2e.Worker(store.endpoint, name="early-worker").start()
        self.addCleanup(worker.kill)
        e2e.wait_for(lambda: store.endpoint in worker.log() and "wait" in worker.log(),
                     "the worker to say that it waits")
        self.assertTrue(worker.running())
        store.start()
        self.addCleanup(store.discard)
        store.ready()
        worker.ready()
        self.assertEqual(CASES[3]["output_text"], worker.ask(CASES[3]["text"]))

    def test_no_store_within_the_timeout(self):
        done = e2e.run(e2e.program("gpu-worker"), "run", "--prompt", "a", "--endpoint",
                       "ipc://" + e2e.path("nobody.sock"), "--connect-timeout-s", "1")
        fail_line(self, done, "nobody.sock", "expert-store", program="gpu-worker")

    def test_cuda_where_there_is_none(self):
        done = e2e.run(e2e.program("gpu-worker"), "run", "--prompt", "a", "--backend", "cuda",
                       "--endpoint", "ipc://" + e2e.path("nobody.sock"))
        if "ERROR" not in done.stderr:
            self.skipTest("there is one")
        fail_line(self, done, "cuda", program="gpu-worker")

    def test_an_address_in_use(self):
        store = e2e.Store(e2e.pack(), name="store-of-two").start().ready()
        self.addCleanup(store.discard)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = e2e.run(e2e.program("gpu-worker"), "serve", "--endpoint", store.endpoint,
                           "--http", f"127.0.0.1:{port}")
            fail_line(self, done, f"127.0.0.1:{port}", "--http", program="gpu-worker")


class BadRequest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = e2e.Pair(worker_options=["--max-input-tokens", "100", "--max-body-bytes",
                                            "100KiB"]).__enter__()
        cls.addClassCleanup(cls.pair.__exit__)
        cls.worker = cls.pair.worker

    def refuse(self, status, body, *words, param=None):
        got, _, answer = self.worker.post(body)
        self.assertEqual(status, got, answer)
        self.assertEqual(param, answer["error"]["param"])
        for word in words:
            self.assertIn(word, answer["error"]["message"])

    def test_malformed_bodies(self):
        self.refuse(400, b"", "not a JSON object")
        self.refuse(400, b'{"prompt": "a"', "not a JSON object")
        self.refuse(400, b"[" * 5000, "nests deeper")
        self.refuse(400, {}, "prompt must be", param="prompt")
        self.refuse(400, {"prompt": "a", "max_tokens": 0}, "max_tokens", param="max_tokens")
        self.refuse(400, {"prompt": "a", "n": 4}, "not supported", param="n")
        self.refuse(404, {"prompt": "a", "model": "gpt"}, "restore-pregated", param="model")

    def test_an_oversized_body(self):
        self.refuse(413, {"prompt": "a" * 200000}, "102400 bytes")

    def test_a_prompt_that_is_too_long(self):
        self.refuse(400, {"prompt": "word " * 200}, "201", "100", param="prompt")
        self.refuse(400, {"prompt": [5] * 100}, "101", "100", param="prompt")

    def test_what_is_no_http_at_all(self):
        with socket.create_connection(("127.0.0.1", self.worker.port), timeout=5) as s:
            s.sendall(b"\x00\xff\x00\xff hello\r\n\r\n" * 100)
            s.shutdown(socket.SHUT_WR)
            while s.recv(4096):
                pass

    def test_afterwards_all_is_well(self):
        self.assertEqual(CASES[3]["output_text"], self.worker.ask(CASES[3]["text"]))


class FlippedByte(unittest.TestCase):
    """One byte of one expert is wrong on the drive: requests that need it fail and name it."""

    def setUp(self):
        block, self.expert = 0, 3  # an encoder expert that golden 3 does not use and golden 0 does
        self.assertNotIn(self.expert, CASES[3]["encoder_experts"][block])
        self.assertIn(self.expert, CASES[0]["encoder_experts"][block])
        name = f"encoder.block.1.layer.1.mlp.experts.expert_{self.expert}.wi.weight"
        for shard in sorted(os.listdir(e2e.MODEL)):
            if shard.endswith(".safetensors"):
                shard = os.path.join(e2e.MODEL, shard)
                tensors = read_tensors(shard)
                if name in tensors:
                    offset, length = tensors[name]
                    with open(shard, "rb") as f:
                        f.seek(offset)
                        weights = f.read(length)
        self.store_dir = e2e.path("flipped.store")
        shutil.rmtree(self.store_dir, ignore_errors=True)
        shutil.copytree(e2e.pack(), self.store_dir)
        self.segment = os.path.join(self.store_dir, "segments", "000000.seg")
        with open(self.segment, "rb") as f:
            self.at = f.read().index(weights) + 12345
        self.flip()

    def flip(self):
        with open(self.segment, "r+b") as f:
            f.seek(self.at)
            byte = f.read(1)[0]
            f.seek(self.at)
            f.write(bytes([byte ^ 0x10]))

    def test_only_requests_that_need_it_fail(self):
        store = e2e.Store(self.store_dir, name="flipped").start()
        worker = e2e.Worker(store.endpoint, name="flipped-worker").start()
        self.addCleanup(store.discard)
        self.addCleanup(worker.kill)
        store.ready()
        worker.ready()

        def post(case):
            return worker.post({"prompt": case["text"], "max_tokens": 96})
        for _ in range(2):  # alone, then sharing batches
            answers = e2e.in_threads(post, [CASES[0], CASES[3], CASES[0], CASES[3]])
            for status, headers, answer in answers[::2]:
                self.assertEqual(503, status, answer)
                self.assertIn("Retry-After", headers)
                self.assertRegex(answer["error"]["message"], r"expert.*\b3\b")
                self.assertRegex(answer["error"]["message"], r"hash|corrupt|checksum")
            for status, _, answer in answers[1::2]:
                self.assertEqual(200, status, answer)
                self.assertEqual(CASES[3]["output_text"], answer["choices"][0]["text"])
        stat = store.stat()
        self.assertGreater(stat["pregate_store_verify_failures_total"], 0)
        self.assertEqual(1, worker.metrics()["pregate_worker_ready"])

        done = e2e.run(e2e.program("expert-pack"), "verify", self.store_dir)
        self.assertNotEqual(0, done.returncode)
        self.assertRegex(done.stderr + done.stdout, r"expert.*\b3\b")

        self.flip()  # the drive is repaired: no restart needed
        status, _, answer = post(CASES[0])
        self.assertEqual(200, status, answer)
        self.assertEqual(CASES[0]["output_text"], answer["choices"][0]["text"])


if __name__ == "__main__":
    e2e.main()

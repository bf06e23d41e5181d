"""A client that hangs up stops the work that was done for it; a server that is asked to stop finishes
what it has begun."""
import concurrent.futures
import json
import socket
import time
import unittest

import pregate_e2e as e2e

CASE = e2e.golden()[8]
# Sampled hot, an answer rarely ends early: some seed below gives a long one.
SLOW = ["--cpu-link-gbps", "0.05", "--cells", "2"]  # answers take seconds
LONG = {"prompt": [c["text"] for c in e2e.golden()][:8], "max_tokens": 256, "temperature": 2}


class Disconnect(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = e2e.Pair(worker_options=SLOW).__enter__()
        cls.addClassCleanup(cls.pair.__exit__)
        cls.worker = cls.pair.worker

    def begin(self, **fields):
        body = json.dumps({**LONG, **fields}).encode()
        s = socket.create_connection(("127.0.0.1", self.worker.port))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                  b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        e2e.wait_for(lambda: self.worker.health()["running"] == 8, "eight sequences to run")
        return s

    def expect_idle_within_a_second(self):
        begin = time.monotonic()
        e2e.wait_for(lambda: self.worker.health()["running"] == 0, "the work to stop", 1)
        e2e.wait_for(lambda: self.worker.metrics()["pregate_http_open_requests"] == 0,
                     "the request to be forgotten", 1)
        return time.monotonic() - begin

    def test_an_unstreamed_answer_nobody_waits_for_is_given_up(self):
        finished = self.worker.metrics()["pregate_worker_sequences_finished_total"]
        self.begin().close()
        self.expect_idle_within_a_second()
        self.assertEqual(finished, self.worker.metrics()["pregate_worker_sequences_finished_total"])

    def test_a_streamed_answer_nobody_reads_is_given_up(self):
        abandoned = self.worker.metrics()["pregate_http_abandoned_total"]
        s = self.begin(stream=True)
        while b"data: " not in s.recv(4096):
            pass
        s.close()
        self.expect_idle_within_a_second()
        self.assertEqual(abandoned + 1, self.worker.metrics()["pregate_http_abandoned_total"])

    def test_others_get_their_answers(self):
        case = e2e.golden()[0]
        s = self.begin(stream=True)
        s.close()
        self.assertEqual(case["output_text"], self.worker.ask(case["text"]))


class Stop(unittest.TestCase):
    def stop_with_one_open(self, *options):
        """A worker gets SIGTERM with one request open: the answer, and the exit status."""
        worker = e2e.Worker(self.store.endpoint, *SLOW, *options, name="stopping").start().ready()
        self.addCleanup(worker.kill)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(worker.post, {"prompt": CASE["text"]})
            e2e.wait_for(lambda: worker.health()["running"] == 1, "the sequence to run")
            worker.process.terminate()
            e2e.wait_for(lambda: worker.get("/health")[0] == 503, "the worker to say so")
            status, headers, refusal = worker.post({"prompt": "a"})
            self.assertEqual((503, "1"), (status, headers["Retry-After"]), refusal)
            return answer.result(), worker.wait()

    def setUp(self):
        self.store = e2e.Store(e2e.pack(), name="store-to-stop").start().ready()
        self.addCleanup(self.store.discard)

    def test_open_answers_are_finished(self):
        (status, _, answer), exit_status = self.stop_with_one_open()
        self.assertEqual(200, status, answer)
        self.assertEqual(CASE["output_text"], answer["choices"][0]["text"])
        self.assertEqual(0, exit_status)

    def test_but_not_beyond_the_drain_time(self):
        (status, _, answer), exit_status = self.stop_with_one_open("--drain-s", "1")
        self.assertEqual(503, status, answer)
        self.assertEqual(0, exit_status)


if __name__ == "__main__":
    e2e.main()

"""All prompts of golden.json over HTTP, whole and streamed, as text, as ids and as one list; by curl
as a user would; and by `gpu-worker run`."""
import json
import os
import select
import shutil
import unittest

import pregate_e2e as e2e

CASES = e2e.golden()
FIELDS = {"max_tokens": 96}  # where the goldens were cut


class GoldenHttp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = e2e.Pair().__enter__()
        cls.addClassCleanup(cls.pair.__exit__)
        cls.worker = cls.pair.worker

    def test_every_prompt_gets_its_golden_text(self):
        for case in CASES:
            status, _, answer = self.worker.post({"prompt": case["text"], **FIELDS})
            self.assertEqual(200, status, answer)
            choice = answer["choices"][0]
            self.assertEqual(case["output_text"], choice["text"])
            ended = case["output_ids"][-1] == 1
            self.assertEqual("stop" if ended else "length", choice["finish_reason"])
            self.assertEqual({"prompt_tokens": len(case["input_ids"]),
                              "completion_tokens": len(case["output_ids"]),
                              "total_tokens": len(case["input_ids"]) + len(case["output_ids"])},
                             answer["usage"])

    def test_every_prompt_streams_its_golden_text(self):
        for case in CASES:
            stream = self.worker.ask_streamed(case["text"], **FIELDS,
                                              stream_options={"include_usage": True})
            self.assertEqual(case["output_text"], e2e.joined(stream))
            self.assertEqual(len(case["output_ids"]), stream[-1]["usage"]["completion_tokens"])
            finishes = [c["finish_reason"] for e in stream for c in e["choices"]]
            self.assertEqual(1, sum(f is not None for f in finishes))

    def test_ids_say_the_same_as_text(self):
        for case in CASES[:4]:
            self.assertEqual(case["output_text"], self.worker.ask(case["input_ids"], **FIELDS))

    def test_a_list_of_prompts_is_answered_in_its_order(self):
        status, _, answer = self.worker.post({"prompt": [c["text"] for c in CASES], **FIELDS})
        self.assertEqual(200, status, answer)
        self.assertEqual([c["output_text"] for c in CASES],
                         [c["text"] for c in answer["choices"]])
        self.assertEqual(list(range(len(CASES))), [c["index"] for c in answer["choices"]])

    def test_a_list_of_prompts_streams_mixed(self):
        stream = self.worker.ask_streamed([c["text"] for c in CASES], **FIELDS)
        for i, case in enumerate(CASES):
            self.assertEqual(case["output_text"], e2e.joined(stream, i))

    def test_a_stop_string_cuts(self):
        text = CASES[0]["output_text"]
        stop = text[len(text) // 2:len(text) // 2 + 3]
        expected = text[:text.index(stop)]
        self.assertEqual(expected, self.worker.ask(CASES[0]["text"], stop=stop))
        stream = self.worker.ask_streamed(CASES[0]["text"], stop=[stop, "never said"])
        self.assertEqual(expected, e2e.joined(stream))

    def test_sampling_follows_its_seed(self):
        def sample(seed):
            return self.worker.ask(CASES[0]["text"], temperature=2, seed=seed, max_tokens=20)
        self.assertEqual(sample(1), sample(1))
        self.assertGreater(len({sample(seed) for seed in range(5)}), 1)

    @unittest.skipUnless(shutil.which("curl"), "no curl")
    def test_curl_gets_whole_and_streamed_answers(self):
        url = f"http://127.0.0.1:{self.worker.port}/v1/completions"
        body = {"prompt": CASES[1]["text"], **FIELDS}
        done = e2e.run("curl", "-sS", url, "-d", json.dumps(body))
        self.assertEqual(CASES[1]["output_text"], json.loads(done.stdout)["choices"][0]["text"])
        done = e2e.run("curl", "-sSN", url, "-d", json.dumps({**body, "stream": True}))
        self.assertEqual(CASES[1]["output_text"], e2e.joined(e2e.events(done.stdout)))

    def test_models_names_the_model(self):
        status, text = self.worker.get("/v1/models")
        self.assertEqual(200, status)
        self.assertEqual("restore-pregated", json.loads(text)["data"][0]["id"])

    def test_run_answers_a_file_line_by_line(self):
        prompts = e2e.path("prompts.txt")
        with open(prompts, "w") as f:
            f.writelines(c["text"] + "\n" for c in CASES)
        done = e2e.run(e2e.program("gpu-worker"), "run", "--endpoint", self.pair.store.endpoint,
                       "--file", prompts, "--max-tokens", "96")
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual([c["output_text"] for c in CASES], done.stdout.splitlines())

    def test_run_answers_each_line_that_is_typed(self):
        ours, theirs = os.openpty()
        typist = e2e.Child("typist", [e2e.program("gpu-worker"), "run", "--endpoint",
                                      self.pair.store.endpoint, "--max-tokens", "96"])
        typist.start(stdin=theirs, stdout=theirs)
        self.addCleanup(typist.kill)
        for case in CASES[3:5]:
            os.write(ours, case["text"].encode() + b"\n")
            screen = b""
            while case["output_text"].encode() not in screen:
                self.assertTrue(select.select([ours], [], [], e2e.PATIENCE_S)[0], screen)
                screen += os.read(ours, 4096)
        os.write(ours, b"\x04")  # ends the input
        self.assertEqual(0, typist.wait())

    def test_run_answers_json_from_standard_input(self):
        done = e2e.run(e2e.program("gpu-worker"), "run", "--endpoint", self.pair.store.endpoint,
                       "--json", "--max-tokens", "96", input=CASES[2]["text"] + "\n")
        self.assertEqual(0, done.returncode, done.stderr)
        answer = json.loads(done.stdout)
        self.assertEqual(CASES[2]["output_ids"], answer["ids"])
        self.assertEqual(CASES[2]["output_text"], answer["text"])


if __name__ == "__main__":
    e2e.main()

"""Many requests at once, with memory for a quarter of the experts: each answer is the one its prompt
gets alone, and they really shared batches."""
import random
import unittest

import pregate_e2e as e2e

N_REQUESTS = 200


def prompts():
    """The golden prompts, and each cut after half its words."""
    texts = [c["text"] for c in e2e.golden()]
    return texts + [" ".join(t.split()[:len(t.split()) // 2]) for t in texts]


class Concurrent(unittest.TestCase):
    def test_two_hundred_at_once_answer_as_each_alone(self):
        with e2e.Pair(ram=e2e.quarter_of_the_experts(),
                      store_options=["--max-workers", "1"]) as pair:
            alone = {text: pair.worker.ask(text) for text in prompts()}
            for case in e2e.golden():
                self.assertEqual(case["output_text"], alone[case["text"]])
            self.assertEqual(1, pair.worker.metrics()["pregate_worker_batch_max"])
            asked = [random.choice(prompts()) for _ in range(N_REQUESTS)]

            def answer(i):
                if i % 2 == 0:
                    return pair.worker.ask(asked[i])
                return e2e.joined(pair.worker.ask_streamed(asked[i]))
            answers = e2e.in_threads(answer, range(N_REQUESTS))
            self.assertEqual([alone[text] for text in asked], answers)

            metrics, stat = pair.worker.metrics(), pair.store.stat()
            self.assertGreater(metrics["pregate_worker_batch_max"], 4)
            self.assertEqual(metrics["pregate_worker_batch_max"],
                             stat['pregate_worker_batch_max{worker="1"}'])
            self.assertEqual(14, stat["pregate_store_slots_max"])
            self.assertGreater(stat["pregate_store_evictions_total"], 0)
            self.assertEqual(0, stat["pregate_store_load_failures_total"])
            self.assertEqual(len(prompts()) + N_REQUESTS,
                             metrics["pregate_worker_sequences_finished_total"])
            self.assertEqual(0, metrics["pregate_worker_sequences_failed_total"])


if __name__ == "__main__":
    e2e.main()

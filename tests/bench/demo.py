#!/usr/bin/env python3
"""How long the demo model takes for a sentence of 50 words over HTTP, on an otherwise idle machine.

    tests/bench/demo.py BIN_DIR [--repeats N]      prints one JSON object

first_s: the first request of a fresh store and worker, every expert still on the drive;
median_s, best_s: later ones; first_token_s: until the first streamed text, median.
"""
import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import pregate_e2e as e2e  # noqa: E402

SENTENCE = (
    "mr bennet was so odd a mixture of quick parts sarcastic humour reserve and caprice that the "
    "experience of three and twenty years had been insufficient to make his wife understand his "
    "character her mind was less difficult to develop she was a woman of mean understanding little "
    "information and")


def timed(work):
    begin = time.monotonic()
    result = work()
    return time.monotonic() - begin, result


def first_text_s(worker):
    c = worker.connect()
    body = json.dumps({"prompt": SENTENCE, "stream": True})
    begin = time.monotonic()
    c.request("POST", "/v1/completions", body)
    c.getresponse().fp.readline()  # headers are out when there is a first event
    seconds = time.monotonic() - begin
    c.close()
    return seconds


def measure(repeats):
    with e2e.Pair() as pair:
        first_s, (status, _, answer) = timed(lambda: pair.worker.post({"prompt": SENTENCE}, 600))
        if status != 200:
            sys.exit(str(answer))
        later = [timed(lambda: pair.worker.ask(SENTENCE))[0] for _ in range(repeats)]
        tokens = answer["usage"]["completion_tokens"]
        median = statistics.median(later)
        return {"words": len(SENTENCE.split()), "prompt_tokens": answer["usage"]["prompt_tokens"],
                "completion_tokens": tokens, "repeats": repeats, "cores": os.cpu_count(),
                "first_s": round(first_s, 4), "median_s": round(median, 4),
                "best_s": round(min(later), 4), "tokens_per_s": round(tokens / median, 1),
                "first_token_s": round(statistics.median(first_text_s(pair.worker)
                                                         for _ in range(repeats)), 4),
                "text": answer["choices"][0]["text"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    with e2e.session(args.bin_dir):
        print(json.dumps(measure(args.repeats), indent=2))


if __name__ == "__main__":
    main()

"""`gpu-worker run --trace` over a slow link: under pregated the copies of experts run while blocks
compute, on demand they never do. Measured from the trace file itself: a copy is hidden while the
compute lane is not waiting for experts."""
import json
import unittest

import pregate_e2e as e2e

# A copy takes about as long as the compute of a block: there is something to hide, and room for it.
LINK_GBPS = "2"
# Two encoder steps would hide one's copies behind the other's compute; one sequence has one of each.
PROMPT = e2e.golden()[0]["text"]


def spans(trace, name):
    return [(e["ts"], e["ts"] + e["dur"]) for e in trace["traceEvents"]
            if e["ph"] == "X" and e["name"] == name]


def hidden_share(trace):
    """Share of the copies' time outside of every wait; waits do not overlap each other."""
    copies, waits = spans(trace, "copy"), spans(trace, "wait for experts")
    total = sum(end - begin for begin, end in copies)
    exposed = sum(max(0, min(end, w_end) - max(begin, w_begin))
                  for begin, end in copies for w_begin, w_end in waits)
    return 1 - exposed / total


class TraceOverlap(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = e2e.Store(e2e.pack(), "--max-workers", "1").start().ready()
        cls.addClassCleanup(cls.store.discard)

    def trace(self, policy):
        out = e2e.path(policy + ".json")
        done = e2e.run(e2e.program("gpu-worker"), "run", "--endpoint", self.store.endpoint,
                       "--fetch-policy", policy, "--cpu-link-gbps", LINK_GBPS, "--prompt", PROMPT,
                       "--trace", out)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertEqual(e2e.golden()[0]["output_text"], done.stdout.rstrip("\n"))
        with open(out) as f:
            trace = json.load(f)
        self.assertEqual("0", trace["otherData"]["dropped_events"])
        self.assertGreater(len(spans(trace, "copy")), 20)
        self.assertGreater(len(spans(trace, "experts")), 20)
        self.assertEqual(1, len(spans(trace, "encode")))
        return trace

    def test_copies_hide_behind_compute_only_when_predicted(self):
        self.trace("pregated")  # reads the experts from the drive once: not what is measured
        pregated, on_demand = self.trace("pregated"), self.trace("on-demand")
        print(f"hidden: pregated {hidden_share(pregated):.3f}, "
              f"on-demand {hidden_share(on_demand):.3f}")
        self.assertGreater(hidden_share(pregated), 0.2)
        # Not quite 0: a copy may begin between the gate and the place that waits for it.
        self.assertLess(hidden_share(on_demand), 0.1)


if __name__ == "__main__":
    e2e.main()

"""What the end-to-end tests share: the demo model packed once per run, store and worker as child
processes, an HTTP client, and a look at what is left behind.

A test file is a program: NAME.py BIN_DIR [unittest options]. It ends with pregate_e2e.main().
Everything lies in one temporary directory, removed at the end; children die with the test.
"""
import concurrent.futures
import contextlib
import ctypes
import glob
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = os.path.join(ROOT, "deploy", "models", "restore-pregated")
MODEL_BASE = os.path.join(ROOT, "tests", "golden", "restore-base")
PATIENCE_S = 30
KILL_SEED = 20240607

bin_dir = None
scratch = None
_children = []


def golden():
    with open(os.path.join(MODEL, "golden.json")) as f:
        return json.load(f)


def program(name):
    return os.path.join(bin_dir, name)


def test_program(name):
    """A helper that is built beside the C tests."""
    return os.path.join(os.path.dirname(bin_dir), "tests", name)


def path(name):
    return os.path.join(scratch, name)


def copy_for_everyone(program_path):
    """A copy of a program, or a folder of them, that other users can run if they can look into
    `scratch`, wherever the original lies."""
    to = path(os.path.basename(program_path) + ".copy")
    if os.path.isdir(program_path):
        shutil.copytree(program_path, to)
    elif not os.path.exists(to):
        shutil.copy(program_path, to)
    os.chmod(to, 0o755)
    return to


def report(name, figures):
    """What a test measured: printed, and kept in the folder PREGATE_E2E_RESULTS if there is one."""
    print(f"{name}: {json.dumps(figures)}")
    folder = os.environ.get("PREGATE_E2E_RESULTS")
    if folder:
        with open(os.path.join(folder, name + ".json"), "w") as f:
            json.dump(figures, f, indent=2)


def n_fds(child):
    return len(os.listdir(f"/proc/{child.pid}/fd"))


def percentile(values, share):
    """The value with this share of the values below it; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def wait_for(condition, what, seconds=PATIENCE_S):
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for: {what}")
        time.sleep(0.01)


def clean_environment(**more):
    """Ours, without settings of the programs."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("PREGATE_")}, **more}


def run(*args, timeout=60, env=None, **kw):
    """A program to its end: CompletedProcess with text output."""
    return subprocess.run(args, capture_output=True, text=True, timeout=timeout,
                          env=env or clean_environment(), **kw)


def pack(model=MODEL, name="demo.store", *options):
    out = path(name)
    if not os.path.isdir(out):
        done = run(program("expert-pack"), model, "--out", out, *options)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
    return out


def slot_bytes(model=MODEL):
    """One expert of a bf16 Switch model, which needs no padding here."""
    with open(os.path.join(model, "config.json")) as f:
        c = json.load(f)
    return 2 * 2 * c["d_model"] * c["d_ff"]


N_EXPERTS = 7 * 8  # three encoder and four decoder blocks of eight


def quarter_of_the_experts():
    return N_EXPERTS // 4 * slot_bytes()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Child:
    """A process whose output goes to a file. Start it from the main thread only: it dies with the
    thread that started it."""

    def __init__(self, name, argv, as_user=None):
        self.name, self.argv = name, argv
        self.as_user = as_user or {}  # user, group, extra_groups of subprocess
        self.log_path = path(name + ".log")
        self.process = None

    def start(self, *more, **streams):
        with open(self.log_path, "ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **streams}
            self.process = subprocess.Popen([*self.argv, *more], env=clean_environment(),
                                            preexec_fn=_die_with_parent, **streams,
                                            **self.as_user)
        if self not in _children:
            _children.append(self)
        return self

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds=PATIENCE_S):
        return self.process.wait(timeout=seconds)

    def kill(self):
        if self.running():
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def stop(self):
        """Asks nicely; the exit status."""
        if self.running():
            self.process.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self.log()}")


class Store(Child):
    def __init__(self, store, *options, ram=None, name="store", endpoint=None, as_user=None):
        self.endpoint = endpoint or "ipc://" + path(name + ".sock")
        self.shm_prefix = None
        ram_options = ["--ram-bytes", str(ram)] if ram else []
        super().__init__(name, [program("expert-store"), "--store", store, "--endpoint",
                                self.endpoint, *ram_options, *options], as_user)

    def stat(self):
        """The statistics, or None while there is nobody to ask."""
        done = run(program("expert-stat"), "--endpoint", self.endpoint, "--json", **self.as_user)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def ready(self):
        def serving():
            if not self.running():
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n"
                                     f"{self.log()}")
            return self.stat()
        wait_for(serving, f"{self.name} to serve")
        with open(f"/proc/{self.pid}/maps") as f:
            self.shm_prefix = re.search(r"/dev/shm/(pregate-\w+-)", f.read()).group(1)
        return self

    def left_behind(self):
        """Shared memory of this store, which must have been ready once."""
        return sorted(glob.glob(f"/dev/shm/{self.shm_prefix}*"))

    def discard(self):
        """Kills it and removes what a next start would adopt."""
        self.kill()
        if self.shm_prefix is not None:
            for name in self.left_behind():
                os.unlink(name)


class Worker(Child):
    def __init__(self, endpoint, *options, name="worker", port=None, as_user=None):
        self.port = port or free_port()
        super().__init__(name, [program("gpu-worker"), "serve", "--endpoint", endpoint, "--http",
                                f"127.0.0.1:{self.port}", *options], as_user)

    def ready(self):
        def healthy():
            if not self.running():
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n"
                                     f"{self.log()}")
            try:
                return self.get("/health/ready")[0] == 200
            except OSError:
                return False
        wait_for(healthy, f"{self.name} to be ready")
        return self

    def connect(self, timeout=PATIENCE_S):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, url):
        c = self.connect()
        try:
            c.request("GET", url)
            r = c.getresponse()
            return r.status, r.read().decode()
        finally:
            c.close()

    def post(self, body, timeout=PATIENCE_S):
        """Status, headers and JSON of a completion."""
        c = self.connect(timeout)
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            c.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
            r = c.getresponse()
            return r.status, r.headers, json.loads(r.read())
        finally:
            c.close()

    def ask(self, prompt, **fields):
        """The text of an answer; anything but an answer is a failure."""
        status, _, answer = self.post({"prompt": prompt, **fields})
        if status != 200:
            raise AssertionError(f"{status}: {answer}")
        return answer["choices"][0]["text"]

    def ask_streamed(self, prompt, **fields):
        """The events of a streamed answer."""
        c = self.connect()
        try:
            c.request("POST", "/v1/completions", json.dumps({"prompt": prompt, "stream": True,
                                                              **fields}))
            r = c.getresponse()
            if r.status != 200:
                raise AssertionError(f"{r.status}: {r.read()}")
            return events(r.read().decode())
        finally:
            c.close()

    def health(self):
        return json.loads(self.get("/health/live")[1])

    def metrics(self):
        return prometheus(self.get("/metrics")[1])


def events(text):
    """The JSON of a text/event-stream that ends as it should."""
    data = [e[len("data: "):] for e in text.split("\n\n") if e]
    if not data or data[-1] != "[DONE]":
        raise AssertionError(f"a stream without its end: {text}")
    return [json.loads(e) for e in data[:-1]]


def joined(stream, index=0):
    for e in stream:
        if "error" in e:
            raise AssertionError(str(e))
    return "".join(c["text"] for e in stream for c in e["choices"] if c["index"] == index)


def prometheus(text):
    """{'name{labels}': value} of the text format."""
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            samples[key] = float(value)
    return samples


def in_threads(work, items):
    """[work(item) for item in items], one thread each; the first failure is raised."""
    with concurrent.futures.ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


class Pair:
    """A store and a worker of the demo model."""

    n_made = 0

    def __init__(self, store_options=(), worker_options=(), ram=None):
        Pair.n_made += 1
        self.store = Store(pack(), *store_options, ram=ram, name=f"store{Pair.n_made}")
        self.worker = Worker(self.store.endpoint, *worker_options, name=f"worker{Pair.n_made}")

    def __enter__(self):
        self.store.start()
        self.worker.start()
        self.store.ready()
        self.worker.ready()
        return self

    def __exit__(self, *unused):
        self.worker.kill()
        self.store.discard()


@contextlib.contextmanager
def session(directory):
    """Programs from this directory; a temporary directory; nothing left of either at the end."""
    global bin_dir, scratch
    bin_dir = os.path.realpath(directory)
    scratch = tempfile.mkdtemp(prefix="pregate-e2e-")
    random.seed(KILL_SEED)
    try:
        yield
    finally:
        for child in _children:
            child.discard() if isinstance(child, Store) else child.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def main():
    if len(sys.argv) < 2 or not os.access(os.path.join(sys.argv[1], "gpu-worker"), os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} BIN_DIR [unittest options]")
    with session(sys.argv.pop(1)):
        unittest.main(verbosity=2)

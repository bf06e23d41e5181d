"""A checkpoint packed and served in a scratch directory, for the tests beside this file."""
import hashlib
import os
import signal
import subprocess


def checkpoint_hash(model):
    """SHA-256 over config.json and the weights of a checkpoint's directory, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(model)):
        if name == "config.json" or name.endswith(".safetensors"):
            with open(os.path.join(model, name), "rb") as file:
                digest.update(file.read())
    return digest.hexdigest()


class Store:
    """with Store(bin_dir, model_dir, scratch) as store: store.worker("eval", ...) -> its stdout"""

    def __init__(self, bin_dir, model, scratch, *options, backend="cpu"):
        self.bin = bin_dir
        self.dir = os.path.join(scratch, "model.store")
        self.endpoint = "ipc://" + os.path.join(scratch, "store.sock")
        self.options = options
        self.backend = backend
        self.process = None
        self.run("expert-pack", model, "--out", self.dir)

    def run(self, program, *args):
        done = subprocess.run([os.path.join(self.bin, program), *args], check=False, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(f"{program} {' '.join(args)}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def worker(self, *args):
        return self.run("gpu-worker", *args, "--endpoint", self.endpoint, "--backend", self.backend,
                        "--threads", "1", "--connect-timeout-s", "30", "--log-level", "warn")

    def start(self):
        self.process = subprocess.Popen(
            [os.path.join(self.bin, "expert-store"), "--store", self.dir, "--endpoint",
             self.endpoint, "--log-level", "error", *self.options])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        assert status == 0, f"expert-store ended with {status}"

    def add_predictors(self, path):
        self.run("expert-pack", "add", self.dir, path)
        self.stop()
        self.start()

    def calibrate(self, *args):
        """Fits predictors and puts them into the store; what `calibrate` printed."""
        predictors = os.path.join(os.path.dirname(self.dir), "predictors.safetensors")
        printed = self.worker("calibrate", *args, "--out", predictors)
        self.add_predictors(predictors)
        return printed

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

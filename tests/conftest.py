"""The step's root is on the path; one thread a process, since two on few cores would fight."""

import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes seconds; left out of checks in a hurry")
    if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers inherit all this
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # of tmp_path
        # torchrun, torch.compile and multiprocessing leave files in the temporary folder
        folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="tests-")
        # at the process's end, after multiprocessing has deleted its own there
        multiprocessing.util.Finalize(None, shutil.rmtree, [folder, True], exitpriority=-200)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started it with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals():
    """Restore signal handlers that a failed run in this process left behind."""
    names = [name for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
             if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    """A random GPT-2 with GPT-2's vocabulary, small, as transformers saves it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hf_gpt2")
    config = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=64, vocab_size=50257)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)

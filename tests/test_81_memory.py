"""The system supplies memory for tensors that come and go once, not again at every step."""

import platform
import subprocess
import sys

import pytest
from helpers import ROOT

# Ten tensors of 40 MB, one after the other; then minor page faults of ten more.
COME_AND_GO = """
import resource, sys
import torch
from nanogpt import cpu
if sys.argv[1] == "keep":
    cpu.keep_memory()
def faults():
    for _ in range(10):
        torch.zeros(10**7).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_pages_are_touched_for_the_first_time_once():
    found = {}
    for how in "keep", "as it is":
        done = subprocess.run([sys.executable, "-c", COME_AND_GO, how], cwd=ROOT,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[how] = int(done.stdout)
    assert found["keep"] < found["as it is"] / 5

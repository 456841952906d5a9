"""Memory that a process keeps while it trains on a processor. Counted in page faults, not in seconds."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from train.device import keep_memory
if {kept}:
    keep_memory(torch.device("cpu"))
before = 0
for _ in range(12):  # the first few settle where it lies
    torch.zeros(1 << 24)
    before, faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back and asks for it again")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    handed_back, kept = (int(subprocess.check_output([sys.executable, "-c", FAULTS.format(kept=kept)])) for kept in (False, True))
    assert kept < handed_back / 10, f"{kept} and {handed_back} page faults for 64 MB"

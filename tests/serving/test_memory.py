"""A process that serves takes no page anew for what it has freed just now."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from hansa.serving.memory import keep_freed
keep_freed()
[bytes(range(256)) * 4096 for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(20):
    [bytes(range(256)) * 4096 for _ in range(8)]
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_megabytes_that_were_freed_are_used_again():
    """Each of eight megabytes would be 256 faults, twenty times; a few are of what else happens."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < 4096

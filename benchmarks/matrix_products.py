"""One process that multiplies square matrices for a moment and prints its GFLOP/s: ``python -m ... KIND``.

It is the speed of the fastest tenth of the products: a peak, which other processes of the machine shall not lower.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_SIZE = 1024
_SECONDS = 2.0
_START = 4.0
"""Seconds between the starts that processes agree on, so that all multiply at once."""


def product(kind: str) -> Callable[[], Any]:
    """Return a function that multiplies once."""
    left, right = (np.random.default_rng(seed).standard_normal((_SIZE, _SIZE), dtype=np.float32) for seed in (0, 1))
    if kind == "numpy":
        result = np.empty_like(left)
        return lambda: np.matmul(left, right, out=result)
    import torch  # noqa: PLC0415 - slow to import
    from torch.utils import mkldnn  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    x, w = torch.from_numpy(left), torch.from_numpy(right)
    if kind == "torch":
        out = torch.empty_like(x)
        return lambda: torch.mm(x, w, out=out)
    if kind == "onednn-linear":
        linear = torch.nn.Linear(_SIZE, _SIZE).eval()
        blocked, layer = x.to_mkldnn(), mkldnn.to_mkldnn(linear)
        return lambda: layer(blocked)
    side = int(_SIZE**0.5)
    image = x.reshape(1, side, side, _SIZE).permute(0, 3, 1, 2)
    kernel = w.t().contiguous()[:, :, None, None].to(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(image, kernel)


def main() -> None:
    """Warm up, wait for the common start, multiply, print."""
    once = product(sys.argv[1])
    once()
    time.sleep(_START - time.time() % _START)
    times, until = [], time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    sys.stdout.write(f"{2 * _SIZE**3 / float(np.percentile(times, 10)) / 1e9}\n")


if __name__ == "__main__":
    main()

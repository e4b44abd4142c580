"""The cross-entropy over the vocabulary is that of float64, and its logits are never whole in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

# The memory is that of 128 tokens; float64 is slow, and judges 32 of them.
SCRIPT = """
import sys, numpy as np
T, FEW, V, D, cap = 128, 32, 262144, 64, 30.0
rng = np.random.default_rng(0)
h, w = rng.standard_normal((T, D), dtype=np.float32), rng.standard_normal((V, D), dtype=np.float32)
y = rng.integers(V, size=T)
if sys.argv[1] == "mlx":
    import mlx.core as mx
    from mlx_dgemma.mlx_backend.layers import Embedding
    from mlx_dgemma.mlx_backend.learn import log_sum_exp
    table = Embedding(V, D); table.weight = mx.array(w)
    function, hidden = log_sum_exp(table, cap), mx.array(h)
    mx.eval(table.weight, hidden)
    before = mx.get_active_memory(); mx.reset_peak_memory()
    slope_of = mx.value_and_grad(lambda h: function(h, table.weight).mean())
    mx.eval(slope_of(hidden))
    peak = mx.get_peak_memory() - before
    value, gradient = slope_of(hidden[:FEW])
else:
    import torch
    from mlx_dgemma.torch_backend.layers import Embedding
    from mlx_dgemma.torch_backend.learn import LogSumExp
    table = Embedding(V, D); table.weight = torch.from_numpy(w)
    hidden = torch.from_numpy(h).requires_grad_()
    LogSumExp.apply(hidden[:2], table.weight, table, cap).sum().backward(); hidden.grad = None
    held = lambda name: int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted anew
    before = held("VmRSS:")
    LogSumExp.apply(hidden, table.weight, table, cap).mean().backward()
    peak, hidden.grad = held("VmHWM:") - before, None
    value = LogSumExp.apply(hidden[:FEW], table.weight, table, cap).mean(); value.backward()
    gradient = hidden.grad[:FEW]
value, gradient = float(value), np.array(gradient)
exact, slope, w = [], np.zeros((FEW, D)), w.astype(np.float64)
for i in range(0, FEW, 16):
    z = cap * np.tanh(h[i:i + 16].astype(np.float64) @ w.T / cap)
    top = z.max(-1, keepdims=True); p = np.exp(z - top); s = p.sum(-1, keepdims=True)
    exact.append((top + np.log(s))[:, 0])
    slope[i:i + 16] = (p / s * (1 - (z / cap) ** 2)) @ w / FEW
print(peak / 1e6, abs(value - np.concatenate(exact).mean()), np.abs(gradient - slope).max() / np.abs(slope).max())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_memory_and_error_over_the_published_vocabulary(backend):
    pytest.importorskip(backend)
    if backend == "torch" and not sys.platform.startswith("linux"):
        pytest.skip("torch does not count what it holds on a CPU: read from Linux' /proc")
    output = subprocess.run([sys.executable, "-c", SCRIPT, backend], capture_output=True, text=True, check=True).stdout
    megabytes, value, slope = map(float, output.split())
    print(output)
    assert 1 < megabytes < 60  # the logits alone are 134
    assert value < 1e-5 and slope < 1e-5


def test_a_slice_s_loss_is_the_whole_s(monkeypatch):
    """A table that the slices do not divide, with its own gradient."""
    import mlx.core as mx

    from mlx_dgemma.mlx_backend import learn
    from mlx_dgemma.mlx_backend.layers import Embedding

    monkeypatch.setattr(learn, "WIDTH", 40)
    rng = np.random.default_rng(0)
    hidden, weight = (mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((5, 8), (96, 8)))
    table, factors = Embedding(96, 8), mx.arange(1, 6)

    def sliced(hidden, weight):
        return (learn.log_sum_exp(table, 30.0)(hidden, weight) * factors).sum()

    def whole(hidden, weight):
        return (mx.logsumexp(30 * mx.tanh(hidden @ weight.T / 30), axis=-1) * factors).sum()

    ours, theirs = (mx.value_and_grad(function, argnums=(0, 1))(hidden, weight) for function in (sliced, whole))
    assert abs(ours[0].item() - theirs[0].item()) < 1e-4
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert mx.abs(one - other).max().item() < 1e-4

"""NT-Xent and two-tower InfoNCE as other code computes them, one function each.

A provider maps two (B, D) matrices and a temperature to a 0-d loss. A peer that is not installed,
or cannot run on the device, is left out by name. Versions: benchmarks/requirements.txt.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import Compiled, Peer
from selftaught.kernels import BACKENDS
from selftaught.kernels.dispatch import Request, refusal
from selftaught.losses import info_nce_loss, ntxent_loss

Loss = Callable[[Tensor, Tensor, float], Tensor]


def eager_ntxent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    rows = torch.arange(z.shape[0], device=z.device)
    scores = z @ z.T / temperature
    scores = scores.masked_fill(rows[:, None] == rows, -torch.inf)
    return F.cross_entropy(scores.float(), rows.roll(z1.shape[0]))


def eager_clip(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    q, k = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    scores = q @ k.T / temperature
    target = torch.arange(q.shape[0], device=q.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def _autocast(loss: Loss) -> Loss:
    def run(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
        with torch.autocast(z1.device.type, torch.bfloat16):
            return loss(z1, z2, temperature)

    return run


def flex_ntxent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Log-sums from FlexAttention with queries = keys and a dummy value."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    heads = z[None, None]
    value = torch.zeros(1, 1, z.shape[0], 16, device=z.device, dtype=z.dtype)
    log_sum = _flex()(heads, heads, value, 1 / temperature)
    positive = (z * z.roll(z1.shape[0], 0)).sum(1) / temperature
    return (log_sum[0, 0] - positive).mean()


def _flex() -> Callable[..., Tensor]:
    global _compiled_flex
    if _compiled_flex is None:
        from torch.nn.attention.flex_attention import flex_attention

        def run(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            def off_diagonal(score, batch, head, row, column):
                return torch.where(row == column, -float("inf"), score)

            _, log_sum = flex_attention(
                query, key, value, score_mod=off_diagonal, scale=scale, return_lse=True
            )
            return log_sum

        _compiled_flex = Compiled(run)
    return _compiled_flex


_compiled_flex: Callable[..., Tensor] | None = None


def lightly_ntxent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    loss = importlib.import_module("lightly.loss").NTXentLoss
    return loss(temperature=temperature)(z1, z2)


def metric_learning_supcon(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    losses = importlib.import_module("pytorch_metric_learning.losses")
    labels = torch.arange(z1.shape[0], device=z1.device).repeat(2)
    return losses.SupConLoss(temperature)(torch.cat([z1, z2]), labels)


def memeff_ntxent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Both directions of its InfoNCE with query-query negatives have NT-Xent's denominators."""
    loss = importlib.import_module("memeff").MemoryEfficientQwen3Loss(
        temperature, margin=2.0, use_qq_negatives=True, stable=False
    )
    return (loss(z1, z2) + loss(z2, z1)) / 2


def memeff_clip(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    module = importlib.import_module("memeff")
    return module.MemoryEfficientCLIPLoss(temperature, stable=False)(z1, z2)


def inf_cl_clip(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    loss = importlib.import_module("inf_cl").cal_flash_loss
    q, k = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    head = min(256, q.shape[1])
    both = [loss(a, b, None, 1 / temperature, head).mean() for a, b in ((q, k), (k, q))]
    return (both[0] + both[1]) / 2


def cut_clip(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Without its gradient filter, which drops most negatives of a contrastive loss."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    q, k = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    target = torch.arange(q.shape[0], device=q.device)
    both = [loss(a / temperature, b, target, filter_eps=None) for a, b in ((q, k), (k, q))]
    return (both[0] + both[1]) / 2


def open_clip(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    loss = importlib.import_module("open_clip.loss").ClipLoss
    return loss()(F.normalize(z1, dim=1), F.normalize(z2, dim=1), 1 / temperature)


def info_nce_pytorch(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    loss = importlib.import_module("info_nce").info_nce
    return (loss(z1, z2, temperature=temperature) + loss(z2, z1, temperature=temperature)) / 2


PEERS: dict[str, dict[str, Peer]] = {
    "ntxent": {
        "eager": Peer(eager_ntxent, "torch"),
        "eager bf16 autocast": Peer(_autocast(eager_ntxent), "torch", on_cpu=False),
        "torch.compile": Peer(Compiled(eager_ntxent), "torch"),
        "torch.compile bf16 autocast": Peer(
            Compiled(_autocast(eager_ntxent)), "torch", on_cpu=False
        ),
        "flex_attention log-sum": Peer(flex_ntxent, "torch", on_cpu=False),
        "lightly": Peer(lightly_ntxent, "lightly"),
        "pytorch-metric-learning SupCon": Peer(metric_learning_supcon, "pytorch_metric_learning"),
        "memeff": Peer(memeff_ntxent, "memeff", on_cpu=False),
    },
    "clip": {
        "eager": Peer(eager_clip, "torch"),
        "eager bf16 autocast": Peer(_autocast(eager_clip), "torch", on_cpu=False),
        "torch.compile": Peer(Compiled(eager_clip), "torch"),
        "open_clip": Peer(open_clip, "open_clip"),
        "info-nce-pytorch": Peer(info_nce_pytorch, "info_nce"),
        "memeff": Peer(memeff_clip, "memeff", on_cpu=False),
        "inf-cl": Peer(inf_cl_clip, "inf_cl", on_cpu=False),
        "cut-cross-entropy": Peer(cut_clip, "cut_cross_entropy", on_cpu=False),
    },
}


def _ours(objective: str, backend: str, precision: str) -> Loss:
    def run(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
        if objective == "ntxent":
            return ntxent_loss(z1, z2, temperature, backend=backend, precision=precision)
        return info_nce_loss(
            z1, z2, temperature=temperature, symmetric=True, backend=backend, precision=precision
        )

    return run


def providers(
    objective: str, width: int, device: torch.device
) -> tuple[dict[str, Loss], dict[str, str]]:
    """What can run on `device`, and why the rest cannot."""
    there: dict[str, Loss] = {}
    missing: dict[str, str] = {}
    op = "ntxent" if objective == "ntxent" else "info_nce"
    request = Request(op=op, device=device, dtype=torch.float32, width=width)
    for backend in BACKENDS:
        why = refusal(backend, request)
        if why:
            missing[f"selftaught {backend}"] = why
            continue
        tiers = ("fp32", "fp16", "bf16") if backend in ("triton", "cuda") else ("fp32",)
        for tier in tiers:
            there[f"selftaught {backend} {tier}"] = _ours(objective, backend, tier)
    for name, peer in PEERS[objective].items():
        why = peer.refusal()
        if why:
            missing[name] = why
        else:
            there[name] = peer.function
    return there, missing

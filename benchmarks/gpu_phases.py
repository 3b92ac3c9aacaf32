"""The phases of `gpu_suite` that measure: what each runs on the device and which rows it leaves.

Where torch.cuda is not available everything is tiny and runs in Triton's interpreter.
"""

import csv
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import gpu_timing, kmeans, nearest_center, neighbours, peers
from benchmarks.contrastive_peers import PEERS, providers
from benchmarks.gpu_tools import TEMPERATURE, WIDTH, Run, cuda_path
from benchmarks.measure import relative_error, seconds, summary
from benchmarks.ntxent import PRODUCTS, inputs, sampled_truth
from selftaught.kernels import dispatch
from selftaught.kernels.triton import tuning
from selftaught.search import knn_score

COLD, CLOSE = 0.07, 0.25  # temperature and noise of losses near 0.01
QUADRATIC = 32_768  # rows up to which a matrix is built
COMPILED = (16_384, 4_096, 1_024)  # rows at which torch.compile is measured: each takes seconds
ALL_PEERS = 16_384  # rows at which every peer is measured
ALL_RIGHT = "all right"
SAMPLED = 64  # rows whose losses and gradients are compared
# Share of the float64 gradient's length that a tier may be off by; tests/gpu has the same.
TIERS = {"fp32": 2e-6, "fp16": 5e-3, "bf16": 4e-2}


def sampled(rows: int) -> Tensor:
    """Some rows, the first and last among them."""
    return torch.linspace(0, rows - 1, min(SAMPLED, rows)).long()


def errors(
    loss: Callable[..., Tensor], views: list[Tensor], temperature: float
) -> tuple[float, float]:
    """Relative errors of the mean loss and of sampled rows' gradient, against float64."""
    chosen = sampled(2 * len(views[0]))
    expected, gradient = sampled_truth(views, temperature, chosen)
    value = loss(*views, temperature)
    found = torch.cat(torch.autograd.grad(value, views))[chosen.to(views[0].device)]
    return abs(float(value) / expected - 1), relative_error(found, gradient)


def wgmma(run: Run) -> None:
    """Warpgroup instructions at few and many rows: right, and they end."""
    run.rows.add(phase="wgmma", note="begun")
    there, missing = providers("ntxent", WIDTH, run.device)
    name = run.pick("selftaught cuda {}", "selftaught triton {}")
    for rows in run.pick((300, 20_000), (44,)):
        for tier in ("fp16", "bf16")[: run.pick(2, 1)]:
            provider = name.format(tier)
            if provider not in there:
                run.rows.add(
                    phase="wgmma", provider=provider, note=f"skipped: {missing['selftaught cuda']}"
                )
                return
            views = inputs(rows, WIDTH, run.device, 1.0)
            with cuda_path("wgmma"):
                value, wrong = errors(there[provider], views, TEMPERATURE)
            run.rows.add(
                phase="wgmma", kernel="ntxent", provider=provider.replace("cuda", "cuda wgmma"),
                shape=f"{rows}x{WIDTH}", dtype=tier, loss_error=f"{value:.1e}",
                gradient_error=f"{wrong:.1e}", note="right" if wrong < TIERS[tier] else "WRONG",
            )  # fmt: skip
            if not wrong < TIERS[tier]:
                raise RuntimeError(f"wgmma: gradient error {wrong:.1e}, allowed {TIERS[tier]:.0e}")
    run.rows.add(phase="wgmma", note=run.pick(ALL_RIGHT, "rehearsed"))


def kind_of(name: str) -> str:
    """Lowest precision of a provider's products."""
    return next((tier for tier in ("bf16", "fp16") if tier in name), "fp32")


def _providers(run: Run, rows: int) -> dict[str, Callable[..., Tensor]]:
    """Those that are measured at so many rows."""
    there, missing = providers("ntxent", WIDTH, run.device)
    chosen = {name: loss for name, loss in there.items() if name.startswith("selftaught")}
    chosen.pop("selftaught reference fp32", None)
    chosen.pop("selftaught cpp fp32", None)
    if not run.real:  # the interpreter takes a second for a step
        chosen = {"selftaught triton fp16": there["selftaught triton fp16"]}
    for tier in ("fp16", "bf16") if _wgmma_is_right(run) else ():
        chosen[f"selftaught cuda wgmma {tier}"] = there[f"selftaught cuda {tier}"]
    everybody = rows in run.pick((ALL_PEERS,), ())
    for name, peer in PEERS["ntxent"].items():
        wanted = name.startswith("eager") or everybody
        if name.startswith("torch.compile"):
            wanted = rows in run.pick(COMPILED, (rows,))
        if rows > QUADRATIC and not name.startswith(("memeff", "flex")):
            wanted = False
        if name.startswith(("lightly", "pytorch")) or peer.refusal():
            wanted = False
        if wanted:
            chosen[name] = peer.function
    for name, why in missing.items():
        print(f"{name}: {why}", flush=True)
    return chosen


def _wgmma_is_right(run: Run) -> bool:
    """Whether phase wgmma came to its end here: it could hang."""
    if not run.rows.path.exists():
        return False
    with run.rows.path.open(newline="") as handle:
        notes = [row["note"] for row in csv.DictReader(handle) if row["phase"] == "wgmma"]
    return notes[-1:] == [ALL_RIGHT]


def ntxent(run: Run) -> None:
    """Implementations x tiers x sizes; those that the gates are about first."""
    for rows in run.pick((16_384, 65_536, 8_192, 4_096, 32_768, 2_048, 1_024), (48,)):
        peers.new_shape()
        ceiling = gpu_timing.ceilings(run.device)
        run.rows.add(
            phase="ntxent", kernel="ceiling", provider="matmul bf16", shape=f"{rows}x{WIDTH}",
            rate=round(ceiling.tflops, 1), note=f"copy {ceiling.gb_per_s:.0f} GB/s",
        )  # fmt: skip
        many = run.pick(16 if rows <= 8192 else 2, 1)
        sets = [inputs(rows, WIDTH, run.device, 1.0, seed) for seed in range(many)]
        for name, loss in _providers(run, rows).items():
            _guarded(run, "ntxent", name, rows, partial(_ntxent, run, name, loss, sets, ceiling))


def _guarded(run: Run, phase: str, name: str, rows: int, work: Callable[[], None]) -> None:
    """What fails is a row that says so; the rest goes on."""
    try:
        with cuda_path(name):
            work()
    except Exception as error:  # a peer may fail in any way
        why = str(error).splitlines()[:1]
        note = f"failed: {type(error).__name__}: {' '.join(why)}"[:200]
        run.rows.add(phase=phase, provider=name, shape=f"{rows}x{WIDTH}", note=note)
    if run.real:
        torch.cuda.empty_cache()


def _ntxent(
    run: Run,
    name: str,
    loss: Callable[..., Tensor],
    sets: list[list[Tensor]],
    ceiling: gpu_timing.Ceiling,
) -> None:
    rows = 2 * len(sets[0][0])
    before = peers.graphs()
    value, wrong = errors(loss, sets[0], TEMPERATURE)
    small = ""
    if rows in run.pick((4_096,), (48,)):
        small = f"{errors(loss, inputs(rows, WIDTH, run.device, CLOSE), COLD)[1]:.1e}"
    for mode in gpu_timing.MODES:
        found = gpu_timing.figures(lambda *views: loss(*views, TEMPERATURE), sets, mode)
        if "compile" in name and peers.graphs() == before:
            raise RuntimeError("torch.compile made no graph")
        taken = summary([t / 1000 for t in found.times])
        rate = PRODUCTS[mode] * rows**2 * WIDTH / taken["ms_median"] / 1e9
        run.rows.add(
            phase="ntxent", kernel="ntxent", provider=name, mode=mode, shape=f"{rows}x{WIDTH}",
            dtype=kind_of(name), **taken, graph=found.replayed, launches=found.launches,
            host_ms=round(found.host_ms, 4), extra_mb=found.extra_mb, loss_error=f"{value:.1e}",
            gradient_error=f"{wrong:.1e}", gradient_error_small_loss=small, rate=round(rate, 2),
            ceiling=round(ceiling.tflops, 1), share=round(rate / ceiling.tflops, 4),
        )  # fmt: skip


def million(run: Run) -> None:
    """2B = 2^20 once: its matrix would have 4.4 TB."""
    rows = run.pick(1 << 20, 44)
    views = inputs(rows, WIDTH, run.device, 1.0)
    there = providers("ntxent", WIDTH, run.device)[0]
    for name in ("selftaught triton fp16", "selftaught cuda fp16"):
        if name in there:
            loss = there[name]
            _guarded(run, "million", name, rows, partial(_once, run, name, loss, views, rows))


def _once(run: Run, name: str, loss: Callable[..., Tensor], views: list[Tensor], rows: int) -> None:
    def step() -> None:
        torch.autograd.grad(loss(*views, TEMPERATURE), views)

    if run.real:
        step()  # compiles, each of the kernels' roles in many rounds
    taken = seconds(step)
    run.rows.add(
        phase="million", kernel="ntxent", provider=name, mode="full", shape=f"{rows}x{WIDTH}",
        dtype="fp16", **summary([taken]), graph=False,
        rate=round(5 * rows**2 * WIDTH / taken / 1e12, 2),
    )  # fmt: skip


def _mad_sets(run: Run, rows: int, many: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator(run.device).manual_seed(0)
    settings = {"device": run.device, "generator": generator}
    centers = torch.randn(many, WIDTH, **settings)
    near = centers[torch.randint(many, (rows,), **settings)]
    x = (near + nearest_center.SPREAD * torch.randn(rows, WIDTH, **settings)).to(dtype)
    labels = torch.randint(-1, 2, (rows,), **settings)
    return [x.requires_grad_(), centers], labels


def mad(run: Run) -> None:
    """MAD loss over 1e6 rows against the time that its bytes take, and over a small batch."""
    ceiling = gpu_timing.ceilings(run.device)
    for rows, many in run.pick(((1_000_000, 100), (4_096, 100)), ((70, 9),)):
        for dtype in (torch.float32, torch.bfloat16)[: run.pick(2, 1)]:
            peers.new_shape()
            tensors, labels = _mad_sets(run, rows, many, dtype)
            for name, loss in _mad_providers(labels).items():
                work = partial(_mad, run, name, loss, tensors, ceiling)
                _guarded(run, "mad", name, rows, work)


def _mad_providers(labels: Tensor) -> dict[str, Callable[..., Tensor]]:
    def ours(backend: str) -> Callable[..., Tensor]:
        return lambda x, c: nearest_center.mad_loss(
            x, c, labels, eps=nearest_center.EPS, backend=backend
        )

    def eager(x: Tensor, c: Tensor) -> Tensor:
        return nearest_center.loss_of(nearest_center.cdist(x.float(), c), labels)

    request = dispatch.Request(op="mad", device=labels.device, dtype=torch.float32, width=WIDTH)
    there = [name for name in ("triton", "cuda") if not dispatch.refusal(name, request)]
    return {
        **{f"selftaught {name}": ours(name) for name in there},
        "cdist": eager,
        "cdist, torch.compile": peers.Compiled(eager),
    }


def _mad(
    run: Run,
    name: str,
    loss: Callable[..., Tensor],
    tensors: list[Tensor],
    ceiling: gpu_timing.Ceiling,
) -> None:
    rows, size = len(tensors[0]), tensors[0].element_size()
    # Rows are read twice and their gradient written; labels twice; distance, index and loss.
    moved = {"forward": (1, 24), "backward": (2, 24), "full": (3, 48)}
    for mode in gpu_timing.MODES:
        found = gpu_timing.figures(loss, [tensors], mode)
        if "compile" in name and not peers.graphs():
            raise RuntimeError("torch.compile made no graph")
        taken = summary([t / 1000 for t in found.times])
        of_rows, each = moved[mode]
        rate = rows * (of_rows * WIDTH * size + each) / taken["ms_median"] / 1e6
        run.rows.add(
            phase="mad", kernel="mad_loss", provider=name, mode=mode,
            shape=f"{rows}x{len(tensors[1])}x{WIDTH}", dtype=str(tensors[0].dtype)[6:], **taken,
            graph=found.replayed, launches=found.launches, host_ms=round(found.host_ms, 4),
            extra_mb=found.extra_mb, rate=round(rate, 1), ceiling=round(ceiling.gb_per_s, 1),
            share=round(rate / ceiling.gb_per_s, 4),
        )  # fmt: skip


def search(run: Run) -> None:
    """k-means and 100 nearest neighbours beside plain PyTorch on the same device; wall times."""
    rows, many, iterations = run.pick((1_000_000, 100, 10), (60, 5, 2))
    (x, _), _ = _mad_sets(run, rows, many, torch.float32)
    x = x.detach()
    start = x[:many].clone()

    def plain() -> Tensor:
        nearest = lambda a, c: torch.cdist(a, c).argmin(1)  # noqa: E731
        return kmeans.by_means(x, start, iterations, nearest)

    work = {
        "selftaught": lambda: kmeans.kmeans(x, many, initial=start, iterations=iterations),
        "torch": plain,
    }
    _timed(run, "kmeans", f"{rows}x{many}x{WIDTH}", work)
    faiss = importlib.util.find_spec("faiss") is not None
    # Without FAISS ours searches on the CPU.
    asked, table = run.pick((10_000, 1_000_000) if faiss else (2_000, 20_000), (20, 150))
    queries, database = neighbours.data("groups", asked, table, WIDTH)
    search_all = {
        "selftaught": partial(knn_score, queries, database, neighbours.K),
        "torch": partial(neighbours.cdist, queries, database),
    }
    if faiss and run.real:
        search_all["faiss on the GPU"] = partial(neighbours.faiss_gpu, queries, database)
    _timed(run, "knn", f"{asked}x{table}x{WIDTH}", search_all)


def _timed(run: Run, kernel: str, shape: str, work: dict[str, Callable[[], object]]) -> None:
    for name, one in work.items():
        try:
            one()
            times = [seconds(one) for _ in range(3)]
        except Exception as error:
            run.rows.add(
                phase="search", kernel=kernel, provider=name, note=f"failed: {error}"[:200]
            )
            continue
        run.rows.add(
            phase="search", kernel=kernel, provider=name, shape=shape, **summary(times),
            note="wall time",
        )  # fmt: skip


def _candidates(kernel: str, default: "tuning.Shape") -> "list[tuning.Shape]":
    """The table's, and those of whole rows with the warps that their accumulators ask for."""
    return [
        shape
        for shape in tuning.candidates(kernel, default, WIDTH)
        if shape == default
        or (
            shape.chunk == WIDTH
            and shape.warps == (4 if shape.rows * shape.columns < 1 << 14 else 8)
        )
    ]


def shapes(run: Run) -> None:
    """Every block shape worth timing, for the next table of `selftaught.kernels.triton.tuning`."""
    rows = run.pick(16_384, 40)
    views = inputs(rows, WIDTH, run.device, 1.0)
    there = providers("ntxent", WIDTH, run.device)[0]
    table, tried = tuning.SHAPES.copy(), 0
    for tier, split in (("fp16", False), ("fp32", True))[: run.pick(2, 1)]:
        loss = there[f"selftaught triton {tier}"]
        for kernel, mode in (("sum", "forward"), ("weight", "backward")):
            key = (kernel, tuning.generation(run.device), WIDTH, split)
            default = tuning.table_shape(*key)
            for shape in _candidates(kernel, default)[: run.pick(None, 1)]:
                tuning.SHAPES[key] = shape
                tried += 1
                note = str(tuple(shape))
                try:
                    times = gpu_timing.figures(
                        lambda *both, loss=loss: loss(*both, TEMPERATURE), [views], mode
                    ).times
                except Exception as error:
                    run.rows.add(phase="shapes", provider=tier, note=f"{note} failed: {error}"[:99])
                    continue
                taken = summary([t / 1000 for t in times])
                run.rows.add(
                    phase="shapes", kernel=kernel, provider=f"selftaught triton {tier}", mode=mode,
                    shape=f"{rows}x{WIDTH}", dtype=tier, **taken, note=note,
                )  # fmt: skip
            tuning.SHAPES.clear()
            tuning.SHAPES.update(table)

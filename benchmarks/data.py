"""From files to two augmented views of 512 px: every executor against the pipelines people have.

python -m benchmarks.data [--rounds 5] [--workers 16] [--only prepare]

Rows of mode "alone" run in one thread of the calling process (DALI: one of its own) and count
images per second and per second of CPU time; their gate is from the pack, with masks, at least 3x
torchvision v2. Rows of mode "prepare" count images per second of `selftaught prepare` over all
cores, its start included, from PNG, with masks found; their gate is without the carrier search, at
least 40 on two cores. With workers, rows of mode "loader" count images per second of all of them,
and on a GPU "overlap" compares training steps fed by a pipeline with steps on one batch that stays.
With --only the CSV keeps its rows of the other modes. `threads` of "prepare" are its processes.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.data_peers import CUTOFF, RECIPE, SIZE, available
from benchmarks.measure import median_ratio, seconds
from benchmarks.plot import draw
from benchmarks.record import kept, write
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.pack_writer import Packable, write_pack
from selftaught.data.pipeline import has_dali, open_pipeline
from selftaught.phantoms import radiograph, to_8bit
from selftaught.workers import available_cores

FILMS, BATCH, SOURCES = 12, 12, ("png", "jpeg", "pack")
PREPARED = 480
LOADER_IMAGES, STEPS, OVERLAP_BATCH = 480, 20, 48
BASE = "torchvision v2"
STAYS = "a batch that stays"
PARTS = ("alone", "loader", "prepare", "overlap")


def write_films(folder):
    """Synthetic films of 512 px as PNG, JPEG and pack: paths and masks of each source."""
    made, packables = {source: ([], []) for source in SOURCES}, []
    for i in range(FILMS):
        film = radiograph(1, i, size=SIZE, clutter=False)
        image, mask = to_8bit(film.image), film.body_mask
        packables.append(Packable(f"{i}.png", image, mask, *contrast_limits(image, CUTOFF)))
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask{i}.png")
        for source, options in (("png", {}), ("jpeg", {"quality": 95})):
            path = folder / f"{i}.{source}"
            Image.fromarray(image).save(path, **options)
            made[source][0].append(path)
            made[source][1].append(folder / f"mask{i}.png")
        made["pack"][0].append(folder / "pack/images" / f"{i}.png")
        made["pack"][1].append(folder / "pack/masks" / f"{i}.png")
    write_pack(folder / "pack", packables, size=SIZE)
    return made


def open_ours(kind, paths, masks, workers, device, views=2):
    return open_pipeline(
        kind,
        paths=paths,
        masks=masks,
        image_size=SIZE,
        augment=RECIPE,
        seed=1,
        stage="benchmark",
        views=views,
        workers=workers,
        cache_bytes=0,  # as in a set that does not fit into memory
        device=device,
    )


def passes_of_ours(pipeline):
    """A callable that makes the views of all films once, with a new epoch each time."""
    epoch = iter(range(10**9))

    def work():
        number = next(epoch)
        ids = np.arange(FILMS)
        for batch in pipeline.batches((number, ids[i : i + BATCH]) for i in range(0, FILMS, BATCH)):
            assert batch.views.shape[1:] == (2, 1, SIZE, SIZE)

    return work


def passes_of_peer(make_views, paths, masks):
    def work():
        for start in range(0, FILMS, BATCH):
            chosen = range(start, min(start + BATCH, FILMS))
            torch.stack([make_views(paths[i], None if masks is None else masks[i]) for i in chosen])

    return work


def measured(work, rounds):
    """Wall and CPU seconds of `rounds` passes of each, taken in turn."""
    for one in work.values():
        one()
    wall, cpu = {name: [] for name in work}, {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            start = time.process_time()
            wall[name].append(seconds(one))
            cpu[name].append(time.process_time() - start)
    return wall, cpu


def levels_from_opencv(pipeline, paths, masks):
    """Mean distance of an executor's views from the OpenCV executor's, in levels of 255."""
    with open_ours("opencv", paths, masks, 0, "cpu") as reference:
        asked = [(0, np.arange(FILMS))]
        (expected,), (made,) = reference.batches(asked), pipeline.batches(asked)
    return round(float((made.views.cpu() - expected.views).abs().mean()) * 255, 4)


def row(provider, mode, source, masks, wall, **figures):
    return {
        "kernel": "data",
        "provider": provider,
        "mode": mode,
        "source": source,
        "masks": masks is not None,
        "shape": f"{FILMS}x2x{SIZE}x{SIZE}",
        "dtype": "uint8",
        "images_per_second": round(wall, 1),
        "images_per_cpu_second": figures.get("cpu", ""),
        "cpu_ratio_to_torchvision": figures.get("ratio", ""),
        "levels_from_opencv": figures.get("levels", ""),
    }


def alone(source, paths, masks, rounds, device):
    """Rows of all executors and peers in one thread."""
    places = {"selftaught opencv": ("opencv", "cpu")}
    if has_dali():
        places["selftaught dali cpu"] = ("dali", "cpu")
        if device.type == "cuda":
            places["selftaught dali gpu"] = ("dali", device)
    else:
        print("selftaught dali: not installed, left out")
    ours = {name: open_ours(kind, paths, masks, 0, at) for name, (kind, at) in places.items()}
    work = {name: passes_of_ours(pipeline) for name, pipeline in ours.items()}
    for name, make_views in available().items():
        work[name] = passes_of_peer(make_views, paths, masks)
    wall, cpu = measured(work, rounds)
    rows = []
    for name in work:
        ratio = median_ratio(cpu[BASE], cpu[name]) if BASE in cpu else ""
        levels = levels_from_opencv(ours[name], paths, masks) if name in ours else ""
        rates = [FILMS / statistics.median(times) for times in (wall[name], cpu[name])]
        figures = {"cpu": round(rates[1], 1), "ratio": ratio, "levels": levels}
        rows.append(row(name, "alone", source, masks, rates[0], **figures))
    for pipeline in ours.values():
        pipeline.close()
    return rows


def prepared(paths, place):
    """Rows of `selftaught prepare`, without and with the search for the carrier."""
    rows = []
    for carrier, count in (("none", PREPARED), ("default", PREPARED // 4)):
        raw = place / f"raw {carrier}"
        raw.mkdir()
        for number in range(count):
            os.link(paths[number % FILMS], raw / f"{number:04d}.png")
        words = ["prepare", raw, "--out", place / carrier, "--carrier", carrier]
        command = [sys.executable, "-m", "selftaught", *map(str, words), "--sheets", "0"]
        before = os.times()
        wall = seconds(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))
        after = os.times()
        used = sum(after[2:4]) - sum(before[2:4])  # the command's processes
        name = f"selftaught prepare, carrier {carrier}"
        figures = {"cpu": round(count / used, 1)}
        made = row(name, "prepare", "png", ["found"], count / wall, **figures)
        rows.append(made | {"threads": available_cores()})
    return rows


class Films(torch.utils.data.Dataset):
    """A peer's views for PyTorch's DataLoader."""

    def __init__(self, name, paths, masks):
        self.name, self.paths, self.masks = name, paths, masks
        self.make_views = None

    def __len__(self):
        return LOADER_IMAGES

    def __getitem__(self, i):
        if self.make_views is None:
            torch.set_num_threads(1)
            self.make_views = available()[self.name]
        i %= FILMS
        return self.make_views(self.paths[i], None if self.masks is None else self.masks[i])


def loader(source, paths, masks, workers, device):
    """Rows of images per second with all workers, the first batch excluded."""

    def rate(batches):
        next(batches)
        start, count = time.perf_counter(), 0
        for views in batches:
            count += len(views)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count / (time.perf_counter() - start)

    rows = []
    kinds = {"selftaught opencv": "opencv"} | ({"selftaught dali": "dali"} if has_dali() else {})
    batches = [(0, np.arange(BATCH) % FILMS)] * (LOADER_IMAGES // BATCH)
    for name, kind in kinds.items():
        with open_ours(kind, paths, masks, workers, device) as pipeline:
            for _ in range(2):  # the first pass reads every file strictly
                found = rate(batch.views.to(device) for batch in pipeline.batches(batches))
            rows.append(row(name, f"loader {workers}", source, masks, found))
    for name in available():
        films = torch.utils.data.DataLoader(Films(name, paths, masks), BATCH, num_workers=workers)
        found = rate(views.to(device) for views in films)
        rows.append(row(name, f"loader {workers}", source, masks, found))
    return rows


def overlap(paths, masks, workers, device):
    """Rows of images per second of training steps: one batch that stays, then a pipeline."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=128)
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def steps(batches):
        for views in batches:
            x = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    fixed = torch.rand(OVERLAP_BATCH, 2, 1, SIZE, SIZE, device=device)
    asked = [(0, np.arange(OVERLAP_BATCH) % FILMS)] * STEPS
    kind = "dali" if has_dali() else "opencv"
    with open_ours(kind, paths, masks, workers, device) as pipeline:
        work = {
            STAYS: lambda: steps([fixed] * STEPS),
            f"selftaught {kind}": lambda: steps(
                b.views.to(device) for b in pipeline.batches(asked)
            ),
        }
        wall, _ = measured(work, 3)
    images = STEPS * OVERLAP_BATCH
    return [
        row(name, "overlap", "pack", masks, images / statistics.median(times))
        for name, times in wall.items()
    ]


def gates(rows):
    """What was measured for each gate, in words; nothing for what was not."""

    def rates(mode, column="images_per_second", source="pack"):
        chosen = [one for one in rows if one["mode"].startswith(mode) and one["masks"]]
        return {one["provider"]: one[column] for one in chosen if one["source"] == source}

    said = []
    if ratio := rates("alone", "cpu_ratio_to_torchvision").get("selftaught opencv"):
        said.append(f"pack, masks: {ratio} x {BASE} per CPU-second (gate 3)")
    if films := rates("prepare", source="png").get("selftaught prepare, carrier none"):
        said.append(f"prepare: {films} images/s (gate 40 on two cores)")
    loaders, fed = rates("loader"), rates("overlap")
    if (ours := loaders.get("selftaught dali")) and (base := loaders.get(BASE)):
        said.append(f"loader: {ours} images/s (gate 3000), {ours / base:.1f} x {BASE} (gate 3)")
    if still := fed.pop(STAYS, None):
        for name, rate in fed.items():
            said.append(f"overlap, {name}: {1 - rate / still:.1%} of a step is waiting (gate 3%)")
    return said


def main():
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=16 if cuda else 0)
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", help="only these; the CSV keeps its rows of the others"
    )
    arguments = parser.parse_args()
    parts = arguments.only or PARTS
    if "loader" in (arguments.only or ()) and not arguments.workers:
        parser.error("--only loader needs --workers")
    if "overlap" in (arguments.only or ()) and not cuda:
        parser.error("--only overlap needs a GPU")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    torch.manual_seed(1)
    random.seed(1)
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = write_films(Path(place))
        for source, (paths, regions) in made.items():
            for masks in (None, regions):
                if "alone" in parts:
                    rows += alone(source, paths, masks, arguments.rounds, device)
                if "loader" in parts and arguments.workers:
                    rows += loader(source, paths, masks, arguments.workers, device)
        if "prepare" in parts:
            rows += prepared(made["png"][0], Path(place))
        if "overlap" in parts and cuda:
            rows += overlap(*made["pack"], arguments.workers, device)
    for one in rows:
        print(one)
    print(*gates(rows), sep="\n")
    others = kept("data", lambda one: one["mode"].split()[0] not in parts)
    print(write("data", others + rows), draw("data"))


if __name__ == "__main__":
    main()

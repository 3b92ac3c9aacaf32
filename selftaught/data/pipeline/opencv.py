"""Executes augmentation plans on CPU threads; OpenCV releases the interpreter lock."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from selftaught.data.augment import Augment
from selftaught.data.images.bad_files import Loaded, Skipping, find
from selftaught.data.images.contrast import autocontrast
from selftaught.data.pipeline import composed, published
from selftaught.data.pipeline.cache import CACHE_BYTES, Cache, CacheBudget
from selftaught.data.pipeline.executor import (
    ImageBatch,
    Pipeline,
    Request,
    check_ids,
    check_options,
)
from selftaught.data.pipeline.sample import Made, Sample, load, refuse_flat
from selftaught.data.plan import PARAMETERS, draw
from selftaught.errors import InputError, MachineError
from selftaught.host import Shared
from selftaught.workers import worker_count

_OPENCV_THREADS = Shared(cv2.getNumThreads, cv2.setNumThreads, lambda _: 0)


class _Started(NamedTuple):
    """A batch whose views are being made."""

    batch: ImageBatch
    work: list[Future[Loaded[None]]]


class OpenCVPipeline(Pipeline):
    """Decodes, caches and augments on CPU threads.

    A view depends on (seed, stage, epoch, sample id, view number) and on the files, on nothing
    else: not on workers, batch sizes, order of requests or the cache. Images above `cache_bytes`
    in all are decoded again each time.

    While one is open, OpenCV has no threads of its own in this process: parallel is over images.

    Args:
        paths: image files; a sample's id is its position.
        masks: for each image its mask file or None; None = no masks at all. A missing mask
            leaves the whole frame.
        image_size: S, side of the square views in pixels.
        augment: what may happen to a view.
        seed: the run's seed.
        stage: name of the stream of random numbers.
        views: V, views per image.
        workers: threads; "auto" = available cores, 0 = work in the calling thread.
        return_masks: give the views' masks in [0, 1] too; without a mask file, the image's frame.
        cache_bytes: memory for prepared images; a budget may be shared with other pipelines.
        prefetch: batches prepared ahead of the consumer.
        skipping: what takes the place of samples that cannot be read; None: they are errors.
        made: gives samples that are not to be read from their files, if there are such.
        flat: take images of one grey level too; scoring does not.

    Raises:
        InputError: an option outside its range.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        masks: Sequence[Path | None] | None = None,
        image_size: int,
        augment: Augment,
        seed: int,
        stage: str,
        views: int = 1,
        workers: int | Literal["auto"] = "auto",
        return_masks: bool = False,
        cache_bytes: int | CacheBudget = CACHE_BYTES,
        prefetch: int = 2,
        skipping: Skipping | None = None,
        made: Made | None = None,
        flat: bool = True,
    ):
        check_options(len(paths), masks, image_size, views, prefetch)
        self._paths = [Path(path) for path in paths]
        self._masks = [None] * len(paths) if masks is None else list(masks)
        self._size = image_size
        self._augment = augment
        self._draw = partial(draw, augment, seed=seed, stage=stage, views=views)
        self._views = views
        self._return_masks = return_masks
        self._cache: Cache[Sample] = Cache(cache_bytes)
        self._skipping, self._made, self._flat = skipping, made, flat
        threads = worker_count(workers)
        self._prefetch = prefetch if threads else 0
        self._closed = False
        self._pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="selftaught-views") if threads else None
        )
        _OPENCV_THREADS.__enter__()

    def batches(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """Batches in the order of the requests, up to `prefetch` prepared ahead.

        Args:
            requests: (epoch, ids) with ids (B,) integers; taken only as they are needed.

        Yields:
            `ImageBatch`, owned by the consumer.

        Raises:
            BadImage: the first file of a batch, in its order, that cannot be used; not where such
                samples are skipped.
            InputError: nor can any of the stand-ins of a skipped sample.
            MachineError: the disk cannot be read.
            RuntimeError: a view could not be made for another reason; names the file.
            ValueError: an id outside the images.
        """
        started: deque[_Started] = deque()
        try:
            for epoch, ids in requests:
                started.append(self._start(epoch, np.asarray(ids, np.int64).reshape(-1)))
                if len(started) > self._prefetch:
                    yield _finish(started.popleft())
            while started:
                yield _finish(started.popleft())
        finally:
            for _, work in started:
                _cancel(work)

    def close(self) -> None:
        """Drop work that has not begun, join the threads, free the cache."""
        first, self._closed = not self._closed, True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._cache.clear()
        if first:
            _OPENCV_THREADS.__exit__()

    def _start(self, epoch: int, ids: np.ndarray) -> _Started:
        """Submit a batch; without threads, make it."""
        if self._closed:
            raise RuntimeError("the pipeline is closed")
        check_ids(ids, len(self._paths))
        plan = self._draw(epoch=epoch, samples=ids)
        shape = (ids.size, self._views, 1, self._size, self._size)
        views = _empty(shape)
        masks = _empty(shape) if self._return_masks else None
        work: list[Future[Loaded[None]]] = []
        for i, sample in enumerate(ids.tolist()):
            place = (views[i, :, 0].numpy(), None if masks is None else masks[i, :, 0].numpy())
            arguments = (epoch, sample, plan[i], *place)
            if self._pool is None:
                work.append(Future())
                work[-1].set_result(self._fill(*arguments))
            else:
                work.append(self._pool.submit(self._fill, *arguments))
        return _Started(ImageBatch(views, masks, torch.from_numpy(ids.copy())), work)

    def _fill(
        self,
        epoch: int,
        asked: int,
        plan: np.ndarray,
        views: np.ndarray,
        masks: np.ndarray | None,
    ) -> Loaded[None]:
        """Make all views at one place of a batch; plan (V, P), views and masks (V, S, S)."""
        render = published.render if self._augment.order == "published" else composed.render
        sample = asked
        try:
            loaded = find(self._skipping, epoch, asked, self._base)
            sample = loaded.sample
            if loaded.content is not None:
                base = loaded.content
                masked = base.mask is not None and not base.framed
                for v in range(self._views):
                    row = dict(zip(PARAMETERS, plan[v].astype(float).tolist(), strict=True))
                    mask = None if masks is None else masks[v]
                    render(base, row, self._augment, views[v], mask, masked=masked)
        except (InputError, MachineError, MemoryError):
            raise
        except Exception as error:
            raise RuntimeError(f"{self._paths[sample]}: no view could be made") from error
        return Loaded(loaded.sample, None, loaded.problems)

    def _base(self, sample: int) -> Sample:
        """The prepared image, from memory where it is there."""
        base = self._cache.get(sample)
        if base is not None:
            return base
        cutoff = self._augment.autocontrast
        made = None if self._made is None else self._made(sample)
        if made is None:
            base = load(self._paths[sample], self._masks[sample], cutoff=cutoff)
        else:
            base = Sample(autocontrast(made.image, cutoff), made.mask)
        if not self._flat:
            refuse_flat(self._paths[sample], base.image)
        if self._augment.order == "composed":
            base = composed.canvas(base, self._size, frame=self._return_masks)
        elif base.mask is None and self._return_masks:
            base = Sample(base.image, np.full(base.image.shape, 255, np.uint8), framed=True)
        self._cache.keep(sample, base, base.nbytes)
        return base


def _empty(shape: tuple[int, ...]) -> Tensor:
    """Memory for a batch; where there is a GPU, such as is sent there without a wait."""
    pinned = torch.cuda.is_available()
    return torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=pinned)


def _finish(started: _Started) -> ImageBatch:
    """Wait for a batch; the first failure in its order is raised, the rest dropped."""
    try:
        loaded = [future.result() for future in started.work]
    except BaseException:
        _cancel(started.work)
        raise
    problems = tuple(problem for one in loaded for problem in one.problems)
    if not problems:
        return started.batch
    views, masks, _, _ = started.batch
    ids = torch.tensor([one.sample for one in loaded], device="cpu")
    kept = ids >= 0
    return ImageBatch(views[kept], None if masks is None else masks[kept], ids[kept], problems)


def _cancel(work: Sequence[Future[Loaded[None]]]) -> None:
    for future in work:
        future.cancel()

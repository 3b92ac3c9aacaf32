"""Executes augmentation plans with NVIDIA DALI, on a GPU or on the CPU."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from selftaught.data.augment import Augment
from selftaught.data.images.bad_files import Loaded, Problem, Skipping, find
from selftaught.data.images.decode import read_grey
from selftaught.data.images.pack import Packed, locate
from selftaught.data.pipeline.cache import CACHE_BYTES, CacheBudget
from selftaught.data.pipeline.dali_graph import Kind, Spec, build
from selftaught.data.pipeline.dali_resident import free_bytes, resident
from selftaught.data.pipeline.dali_source import Item, Items, numbers
from selftaught.data.pipeline.executor import (
    ImageBatch,
    Pipeline,
    Request,
    check_ids,
    check_options,
)
from selftaught.data.pipeline.sample import Made
from selftaught.data.plan import draw
from selftaught.errors import InputError
from selftaught.workers import worker_count

NEUTRAL = (1.0, 1.0)


class _Fed:
    """A batch on its way: ids, plan, the samples that are being read.

    After `wait`, ids and plan are those of the samples that stand in the batch.
    """

    def __init__(
        self, ids: np.ndarray, plan: np.ndarray, work: list[Callable[[], Loaded[Item]]]
    ) -> None:
        self.asked, self.ids, self.plan, self.work = ids.size, ids, plan, work
        self.items: list[Item] = []
        self.problems: tuple[Problem, ...] = ()
        self._waited = False

    def wait(self) -> list[Item]:
        """All samples; the first failure in their order is raised."""
        if not self._waited:
            loaded = [get() for get in self.work]
            self.ids = np.array([one.sample for one in loaded], np.int64)
            self.ids, self.plan = self.ids[self.ids >= 0], self.plan[self.ids >= 0]
            self.items = [one.content for one in loaded if one.content is not None]
            self.problems = tuple(problem for one in loaded for problem in one.problems)
            self._waited = True
        return self.items


class DaliPipeline(Pipeline):
    """Decodes and augments in a DALI graph; the same views as `OpenCVPipeline` up to rounding.

    A view depends on (seed, stage, epoch, sample id, view number) and on the files, on nothing
    else. Each file is read strictly on the host when it is first asked for, which finds broken
    files and the contrast limits; DALI decodes grey PNGs and JPEGs from then on, and gets the
    pixels of packs and of all other files.

    Args:
        paths: image files; a sample's id is its position.
        masks: for each image its mask file or None; None = no masks at all.
        image_size: S, side of the square views in pixels.
        augment: what may happen to a view, in the composed order.
        seed: the run's seed.
        stage: name of the stream of random numbers.
        views: V, views per image.
        workers: threads that read and threads of DALI; "auto" = available cores, 0 = read in the
            calling thread.
        return_masks: give the views' masks in [0, 1] too; without a mask file, the image's frame.
        cache_bytes: host memory for masks, and for images that DALI cannot decode; a budget may
            be shared with other pipelines.
        prefetch: batches prepared ahead of the consumer.
        device: where the operators run and the batches are.
        on_device: hold a set of packs in device memory: auto = on a GPU where it fits.
        skipping: what takes the place of samples that cannot be read; None: they are errors.
        made: gives samples that are not to be read from their files, if there are such.
        flat: take images of one grey level too; scoring does not.

    Raises:
        InputError: an option outside its range, or the published order.
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
        prefetch: int = 4,
        device: torch.device | str = "cpu",
        on_device: Literal["auto", "always", "never"] = "auto",
        skipping: Skipping | None = None,
        made: Made | None = None,
        flat: bool = True,
    ):
        check_options(len(paths), masks, image_size, views, prefetch)
        if augment.order != "composed":
            raise InputError(
                f"data.pipeline dali: augment.order {augment.order!r} runs step by step in Pillow; "
                "allowed with dali: composed; or set data.pipeline opencv"
            )
        self._device = torch.device(device)
        self._paths = [Path(path) for path in paths]
        regions = [None] * len(paths) if masks is None else list(masks)
        packed = [locate(path) for path in self._paths]
        all_masked = made is None and all(mask is not None for mask in regions)
        with_masks = return_masks or made is not None or any(mask is not None for mask in regions)
        held = None
        if on_device == "always" or (on_device == "auto" and self._device.type == "cuda"):
            budget = free_bytes(self._device) if on_device == "auto" else 2**62
            held = resident(packed, regions, self._device, budget)
        self._items = Items(
            self._paths,
            regions,
            packed,
            cutoff=augment.autocontrast,
            feed_masks=with_masks,
            cache_bytes=cache_bytes,
            resident=held,
            made=made,
            flat=flat,
        )
        self._skipping = skipping
        self._size, self._augment, self._views = image_size, augment, views
        self._draw = partial(draw, augment, seed=seed, stage=stage, views=views)
        kinds, resize = _kinds(packed, image_size)
        self._spec = Spec(
            size=image_size,
            views=views,
            kinds=kinds,
            resize=resize,
            masks=with_masks,
            partly=with_masks and not all_masked,
            return_masks=return_masks,
            brightness=augment.brightness != NEUTRAL,
            color=augment.color > 0,
            blur=augment.blur > 0,
            scale=float(augment.mask_scale),
            device="gpu" if self._device.type == "cuda" else "cpu",
            resident=held is not None,
        )
        threads = worker_count(workers)
        self._threads = max(1, threads)
        self._ahead = prefetch
        self._closed = False
        self._idle: list[_Runner] = []
        self._pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="selftaught-views") if threads else None
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """Batches in the order of the requests, up to `prefetch` prepared ahead.

        Args:
            requests: (epoch, ids) with ids (B,) integers; taken only as they are needed.

        Yields:
            `ImageBatch` on the pipeline's device, owned by the consumer; its memory came from DALI
            without a copy.

        Raises:
            BadImage: the first file of a batch, in its order, that cannot be used; not where such
                samples are skipped.
            InputError: nor can any of the stand-ins of a skipped sample.
            MachineError: the disk cannot be read.
            RuntimeError: DALI failed for another reason; names the files of the batch.
            ValueError: an id outside the images.
        """
        queue = _Queue(self._started(requests), self._ahead // 2)
        try:
            while (head := queue.peek()) is not None:
                if not head.wait():
                    queue.pop()
                    yield self._empty()._replace(problems=head.problems)
                    continue
                runner = self._runner(head.asked)
                yield from self._run(runner, queue)
                self._idle.append(runner)
        finally:
            queue.drop()

    def close(self) -> None:
        """Drop work that has not begun, join the threads, free all memory."""
        self._closed = True
        self._idle.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._items.forget()

    def _started(self, requests: Iterable[Request]) -> Iterator[_Fed]:
        """Batches whose samples are being read."""
        for epoch, wanted in requests:
            if self._closed:
                raise RuntimeError("the pipeline is closed")
            ids = np.asarray(wanted, np.int64).reshape(-1)
            check_ids(ids, len(self._paths))
            plan = self._draw(epoch=epoch, samples=ids)
            work: list[Callable[[], Loaded[Item]]] = []
            for sample in ids.tolist():
                job = partial(find, self._skipping, epoch, sample, self._items.item)
                work.append(job if self._pool is None else self._pool.submit(job).result)
            yield _Fed(ids, plan, work)

    def _runner(self, size: int) -> "_Runner":
        """A graph that takes batches of `size`, used before or new."""
        while self._idle:
            runner = self._idle.pop()
            if runner.size >= size:
                return runner
        return _Runner(
            self._spec,
            self._arguments,
            size=size,
            threads=self._threads,
            device=self._device,
            depth=max(1, self._ahead - self._ahead // 2),
        )

    def _arguments(self, fed: _Fed) -> tuple[np.ndarray, ...]:
        facts = [item.facts for item in fed.items]
        made = numbers(facts, fed.plan, self._size, self._augment)
        return tuple(getattr(made, name) for name in self._spec.number_inputs)

    def _run(self, runner: "_Runner", queue: "_Queue") -> Iterator[ImageBatch]:
        """Batches until the requests end or one needs a larger graph."""
        try:
            for fed, outputs in runner.run(queue, ahead=self._ahead > 0):
                masks = outputs[1] if self._spec.return_masks else None
                yield ImageBatch(outputs[0], masks, torch.from_numpy(fed.ids.copy()), fed.problems)
        except _DaliError as error:
            raise self._blamed(error.fed, error) from error.__cause__

    def _blamed(self, fed: _Fed, error: Exception) -> Exception:
        """The file of a failed batch that is broken by now, or all of its files."""
        files = [self._paths[sample] for sample in fed.ids.tolist()]
        for path in files:
            try:
                read_grey(path)
            except Exception as broken:
                return broken
        return RuntimeError(f"{', '.join(map(str, files))}: DALI made no views of these: {error}")

    def _empty(self) -> ImageBatch:
        shape = (0, self._views, 1, self._size, self._size)
        views = torch.empty(shape, device=self._device)
        masks = torch.empty_like(views) if self._spec.return_masks else None
        return ImageBatch(views, masks, torch.empty(0, dtype=torch.int64))


class _DaliError(Exception):
    def __init__(self, fed: _Fed, error: Exception) -> None:
        super().__init__(" ".join(str(error).split())[:500])
        self.fed = fed


class _Queue:
    """Batches that are being read, up to `ahead` beyond the first."""

    def __init__(self, batches: Iterator[_Fed], ahead: int) -> None:
        self._batches, self._ahead = batches, ahead
        self._waiting: deque[_Fed] = deque()

    def peek(self) -> _Fed | None:
        """The next batch, left in place; None at the end."""
        while len(self._waiting) <= self._ahead and (fed := next(self._batches, None)):
            self._waiting.append(fed)
        return self._waiting[0] if self._waiting else None

    def pop(self) -> _Fed:
        """The next batch."""
        return self._waiting.popleft()

    def drop(self) -> None:
        """Cancel what is still waiting to be read."""
        for fed in self._waiting:
            for get in fed.work:
                future = getattr(get, "__self__", None)
                if isinstance(future, Future):
                    future.cancel()


class _Runner:
    """A built graph and the batches inside it."""

    def __init__(
        self,
        spec: Spec,
        arguments: Callable[[_Fed], tuple[np.ndarray, ...]],
        *,
        size: int,
        threads: int,
        device: torch.device,
        depth: int,
    ) -> None:
        self.size = size
        self._arguments, self._masks, self._device = arguments, spec.masks, device
        self._queue: _Queue | None = None
        self._error: BaseException | None = None
        self._inside: deque[_Fed] = deque()
        # On a GPU, outputs are there before they are computed, and inputs are read until then.
        self._read: deque[_Fed] = deque(maxlen=depth + 1)
        self._for_pixels: deque[_Fed] = deque()
        self._for_numbers: deque[_Fed] = deque()
        self._graph = build(
            spec,
            self._pixels,
            self._numbers,
            batch_size=size,
            threads=threads,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            depth=depth,
        )

    def run(self, queue: _Queue, *, ahead: bool) -> Iterator[tuple[_Fed, list[torch.Tensor]]]:
        """Batches until the queue ends, fails or holds one that does not fit."""
        self._queue, self._error = queue, None
        self._graph.schedule_run()
        while self._inside:
            stream = torch.cuda.current_stream() if self._device.type == "cuda" else None
            fed = self._inside[0]
            try:
                outputs = self._graph.outputs(cuda_stream=stream)
                tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
            except RuntimeError as error:
                raise _DaliError(fed, error) from error
            self._read.append(self._inside.popleft())
            if ahead:
                self._graph.schedule_run()
            yield fed, tensors
            if not ahead:
                self._graph.schedule_run()
        self._graph.reset()
        if self._error is not None:
            raise self._error

    def _pixels(self) -> tuple[list[Any], ...]:
        items = self._next(self._for_pixels).items
        data = [item.data for item in items]
        return (data, [item.mask for item in items]) if self._masks else (data,)

    def _numbers(self) -> tuple[np.ndarray, ...]:
        return self._arguments(self._next(self._for_numbers))

    def _next(self, waiting: deque[_Fed]) -> _Fed:
        """The next batch for one of the two sources; the first to ask takes it from the queue."""
        if not waiting:
            fed = self._take()
            self._inside.append(fed)
            self._for_pixels.append(fed)
            self._for_numbers.append(fed)
        return waiting.popleft()

    def _take(self) -> _Fed:
        # DALI wraps what a source raises, so failures wait until the batches before them are out.
        assert self._queue is not None
        try:
            fed = None if self._error else self._queue.peek()
            if fed is not None and fed.asked <= self.size and fed.wait():
                return self._queue.pop()
        except BaseException as error:
            self._error = error
        raise StopIteration


def _kinds(packed: Sequence[Packed | None], size: int) -> tuple[tuple[Kind, ...], bool]:
    """What kinds of samples may come, and whether one may need resizing."""
    known = [one for one in packed if one is not None]
    if not known or len(known) < len(packed):
        return tuple(Kind), True
    records = [one.pack.records[one.slot] for one in known]
    kinds = {Kind.PIXELS8 if record["bits"] == 8 else Kind.PIXELS16 for record in records}
    sides = {max(record["height"], record["width"]) for record in records}
    return tuple(sorted(kinds)), sides != {size}

"""The settings of the program that calls us: set aside while we compute, then as they were."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# What gives a new tensor the default type where it is given none.
_MAKERS = {
    *(torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn),
    *(torch.eye, torch.linspace, torch.logspace),
}
_HARD = 2  # omp_pause_hard


class Float32(TorchFunctionMode):
    """New tensors are float32 unless a type is given, whatever torch's default type is.

    Of the calling thread alone: `torch.set_default_dtype` would change it under other threads.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func` with the type added where it belongs and is missing."""
        kwargs = kwargs or {}
        if func in _MAKERS and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


class Shared:
    """A setting of the whole process, held at our value while any thread of ours works.

    The last one to end puts back what the first one met.

    Args:
        get: reads the setting.
        put: changes it.
        ours: our value for the host's; the same one leaves the setting alone.
    """

    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], object], ours: Callable[[Any], Any]
    ) -> None:
        self._get, self._put, self._ours = get, put, ours
        self._lock, self._users, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = self._get()
                self._change(self._before, self._ours(self._before))
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._change(self._ours(self._before), self._before)

    def _change(self, old: Any, new: Any) -> None:
        if new != old:
            self._put(new)


def _float32_products(backend: str, operation: str) -> Shared:
    """Products of float32 that oneDNN may not round to bfloat16 or TensorFloat32."""
    return Shared(
        lambda: torch._C._get_fp32_precision_getter(backend, operation),
        lambda value: torch._C._set_fp32_precision_setter(backend, operation, value),
        lambda value: "ieee" if value in ("bf16", "tf32") else value,
    )


# From the general to the special: what only inherits a value shows none of its own any more.
_SHARED = (
    _float32_products("generic", "all"),
    _float32_products("mkldnn", "all"),
    _float32_products("mkldnn", "matmul"),
    _float32_products("mkldnn", "conv"),
    Shared(
        lambda: torch.backends.mkldnn.enabled,
        lambda value: setattr(torch.backends.mkldnn, "enabled", value),
        lambda _: True,
    ),
)


@contextmanager
def defaults(device: torch.device | None = None, *, gradients: bool = False) -> Iterator[None]:
    """Torch and NumPy compute as they do in a program that has set nothing.

    Autocast, gradients, inference mode, the device and type of new tensors, NumPy's errors: of the
    calling thread. oneDNN and its precision: of the process, so that other threads have torch's own
    meanwhile, too.

    Args:
        device: of the work, beside the CPU.
        gradients: whether they are wanted.
    """
    kinds = {"cpu", device.type if device is not None else "cpu"}
    with ExitStack() as stack:
        for setting in _SHARED:
            stack.enter_context(setting)
        # Only what is needed: a program that has set nothing shall run as without us.
        for kind in sorted(kinds):
            if torch.is_autocast_enabled(kind):
                # With the host's cache a training of ours would keep the first step's weights.
                stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled() != gradients:
            stack.enter_context(torch.set_grad_enabled(gradients))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(Float32())
        yield


def survive_forks() -> None:
    """Let a forked process use torch's threads where they are those of GNU's OpenMP.

    Threads are not forked, but that library goes on to wait for them in the child, for ever. So
    those of the thread that forks are ended before; the next parallel work, of parent or child,
    starts new ones. Other OpenMPs see to it themselves.
    """
    if not hasattr(os, "register_at_fork"):
        return
    try:
        library = ctypes.CDLL(torch._C.__file__)  # and all that torch is linked with
        pause, here = library.omp_pause_resource, library.omp_get_initial_device
    except (OSError, AttributeError):
        return
    if not hasattr(library, "__kmpc_fork_call"):  # LLVM's and Intel's
        os.register_at_fork(before=lambda: pause(_HARD, here()))

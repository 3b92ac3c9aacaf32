"""How an op of `torch.ops.selftaught` is registered: schema, fake, derivatives, vmap.

Each op hands its arguments, less the last, to a backend's function; `dispatch` chooses the backend
for the last, `backend` ("auto", "" or a name). Its backward is an op of its own. On `reference`,
second and higher derivatives of a process alone run through the backward's formulas; elsewhere they
raise, and so do forward-mode derivatives. Autocast is off inside: backends see the tensors as they
were passed. Under vmap an op runs once for each element, so that every call keeps the memory and
the exactness of one.

They are registered with `Library` because ops made by `torch.library.custom_op` import
torch._dynamo and triton (1.4 s) on their first call, and with a kernel for autograd written here
because that of `torch.library.register_autograd` refuses torch.func (pytorch issue 170834).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from selftaught.kernels import dispatch
from selftaught.kernels.backend import Backend
from selftaught.kernels.tiles import Tiles

_library = torch.library.Library("selftaught", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
OVER_RANKS = "_over_ranks"
_NOTHING = nullcontext()
Functions = tuple[Callable[..., Any], Callable[..., Sequence[Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """An op and its backward.

    Attributes:
        name: the op's name; one that ends in `OVER_RANKS` is chosen a backend as without it.
        inputs: its arguments less `backend`, as a schema; the first holds the embeddings.
        outputs: its tensor results as a schema; only the first carries a gradient.
        differentiable: positions of the inputs that may need a gradient.
        fake: the outputs' shapes and dtypes from the inputs.
        on_passes: gives the op and its backward on a backend's passes; None: the backend has them.
        like: the op that it is chosen a backend as, if that is another.
    """

    name: str
    inputs: str
    outputs: tuple[str, ...]
    differentiable: tuple[int, ...]
    fake: Callable[..., Tensor | tuple[Tensor, ...]]
    on_passes: Callable[[Tiles], Functions] | None = None
    like: str = ""

    def functions(self, backend: Backend) -> Functions:
        """The op and its backward on a backend, with the arguments of their schemas less it."""
        if self.on_passes is not None:
            return self.on_passes(backend.tiles)
        return backend.op(self.name), backend.op(f"{self.name}_backward")

    def request(self, embeddings: Tensor) -> dispatch.Request:
        """What a backend is chosen by."""
        return dispatch.Request(
            op=self.like or self.name.removesuffix(OVER_RANKS),
            device=embeddings.device,
            dtype=embeddings.dtype,
            width=int(embeddings.shape[1]),
        )


def _implementation(family: Family, backward: bool) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        *passed, backend = arguments
        embeddings = passed[1] if backward else passed[0]
        chosen = dispatch.implementation(family.request(embeddings), backend)
        function = family.functions(chosen)[backward]
        kind = embeddings.device.type
        # To enter a context costs as much as a small batch's kernel.
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING:
            return tuple(function(*passed)) if backward else function(*passed)

    return run


def _fake_backward(family: Family) -> Callable[..., tuple[Tensor, ...]]:
    def fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        needs = arguments[-2]
        sources = [arguments[position] for position in family.differentiable]
        return tuple(
            source.new_empty(source.shape)
            if need and source is not None
            else grad.new_empty(0, dtype=grad.dtype)
            for source, need in zip(sources, needs, strict=True)
        )

    return fake


def _save(ctx: Any, arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.is_tensor = [isinstance(value, Tensor) for value in arguments]
    ctx.settings = [value for value in arguments if not isinstance(value, Tensor)]
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors, *results)


def _restore(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """Arguments and results."""
    saved, settings = list(ctx.saved_tensors), list(ctx.settings)
    arguments = [saved.pop(0) if tensor else settings.pop(0) for tensor in ctx.is_tensor]
    return arguments, saved


def _first_derivative(family: Family) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
        (*passed, backend), outputs = _restore(ctx)
        if grad is None:  # nothing depends on the first result
            return (None,) * (len(passed) + 1)
        needs = [ctx.needs_input_grad[1 + position] for position in family.differentiable]
        op = getattr(torch.ops.selftaught, f"{family.name}_backward")
        grads = op(grad, *passed, *outputs, needs, backend)
        results: list[Tensor | None] = [None] * (len(passed) + 1)
        for position, need, value in zip(family.differentiable, needs, grads, strict=True):
            results[position] = value if need else None
        return tuple(results)

    return backward


def _second_derivative(family: Family) -> Callable[..., tuple[Tensor | None, ...]]:
    """Of the backward: that of the reference's formulas as ordinary PyTorch, to any order."""

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments, _ = _restore(ctx)
        *passed, needs, backend = arguments
        passed = passed[: -len(family.outputs)]
        if family.on_passes or dispatch.choose(family.request(passed[1]), backend) != "reference":
            raise NotImplementedError(
                f"second derivatives of selftaught::{family.name} exist only with "
                "backend='reference' in one process"
            )
        places = [0, *(1 + position for position in family.differentiable)]
        places = [place for place in places if passed[place] is not None]

        def first_derivatives(*tensors: Tensor) -> tuple[Tensor, ...]:
            replaced = dict(zip(places, tensors, strict=True))
            grad, *inputs = [replaced.get(place, value) for place, value in enumerate(passed)]
            return tuple(_formulas(family, grad, inputs, needs))

        pull = torch.func.vjp(first_derivatives, *(passed[place] for place in places))[1]
        results: list[Tensor | None] = [None] * len(arguments)
        for place, value in zip(places, pull(grads), strict=True):
            results[place] = value
        return tuple(results)

    return backward


def _formulas(
    family: Family, grad: Tensor, inputs: Sequence[Any], needs: list[bool]
) -> Sequence[Tensor]:
    """The reference's backward, its forward state computed again."""
    reference = dispatch.load("reference")
    assert isinstance(reference, Backend)
    forward, backward = family.functions(reference)
    with torch.autocast(inputs[0].device.type, enabled=False):
        outputs = forward(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return backward(grad, *inputs, *outputs, needs)


def _autograd(
    name: str, backward: Callable[..., tuple[Tensor | None, ...]], differentiable: int | None
) -> Callable[..., Any]:
    """The kernel that builds the graph, at one level of torch.func at a time as PyTorch's own do.

    Args:
        name: the op's.
        backward: its derivative.
        differentiable: how many of its first results carry a gradient; None: all.
    """
    op = getattr(torch.ops.selftaught, name).default

    def below(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _C._after_autograd_keyset, *arguments)

    class Differentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            # Off in here, but the levels below build graphs of their own.
            with torch.enable_grad(), _set_fwd_grad_enabled(True):
                result = below(keyset, arguments)
            results = result if isinstance(result, tuple) else (result,)
            if differentiable is not None:
                ctx.mark_non_differentiable(*results[differentiable:])
                # No zeros are made up as the gradients by results that have none.
                ctx.set_materialize_grads(differentiable != 1)
            _save(ctx, arguments, results)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *backward(ctx, *grads)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        # Without a formula the tangents would be lost below, as if they were 0.
        if any(isinstance(a, Tensor) and unpack_dual(a).tangent is not None for a in arguments):
            raise NotImplementedError(
                f"forward-mode derivatives (jvp, jacfwd, hessian) of selftaught::{name} are not "
                "there, use reverse mode (grad, jacrev)"
            )
        tracked = any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
        if not (torch.is_grad_enabled() and tracked):
            return below(keyset, arguments)
        with enable_single_level_autograd_function():
            return Differentiable.apply(keyset, *arguments)  # type: ignore[attr-defined]

    return kernel


def _vmap(name: str) -> Callable[..., Any]:
    op = getattr(torch.ops.selftaught, name).default

    def element(argument: Any, dim: Any, place: int) -> Any:
        return argument.select(dim, place) if isinstance(dim, int) else argument

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [
            op(*(element(a, dim, place) for a, dim in zip(arguments, in_dims, strict=True)))
            for place in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return one_by_one


def register(family: Family) -> Any:
    """Make `torch.ops.selftaught.<name>` and `<name>_backward`; gives the first."""
    name, inputs = family.name, family.inputs
    outputs = ", ".join(family.outputs)
    returns = [part.split()[0] for part in family.outputs]
    gradients = ", ".join(["Tensor"] * len(family.differentiable))
    plural = f"({', '.join(returns)})"
    back = f"{name}_backward"
    _library.define(f"{name}({inputs}, str backend) -> {plural}", tags=_TAGS)
    _library.define(
        f"{back}(Tensor grad, {inputs}, {outputs}, bool[] needs, str backend) -> ({gradients})",
        tags=_TAGS,
    )
    for op, fake, derivative in (
        (name, family.fake, _autograd(name, _first_derivative(family), 1)),
        (back, _fake_backward(family), _autograd(back, _second_derivative(family), None)),
    ):
        _library.impl(op, _implementation(family, op == back), "CompositeExplicitAutograd")
        _library.impl(op, derivative, "Autograd", with_keyset=True)
        torch.library.register_fake(f"selftaught::{op}", fake, lib=_library)
        torch.library.register_vmap(f"selftaught::{op}", _vmap(op), lib=_library)
    return getattr(torch.ops.selftaught, name).default


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Make an op without a derivative from its schema."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"selftaught::{name}", fake, lib=_library)
    return getattr(torch.ops.selftaught, name).default

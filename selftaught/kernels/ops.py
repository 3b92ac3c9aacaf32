"""The public ops in `torch.ops.selftaught`: schema, fake implementation, autograd; no arithmetic.

Each op hands its arguments, less the last, to the function of the same name in the backend that
`dispatch` chooses for the last, `backend` ("auto" or a name). Its backward is an op of its own.
On `reference`, second and higher derivatives run through the backward's formulas; elsewhere they
raise. Autocast is off inside: backends see the tensors as they were passed.

They are registered with `Library` because ops made by `torch.library.custom_op` import
torch._dynamo and triton (1.4 s) on their first call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selftaught.kernels import dispatch
from selftaught.kernels.reference.common import compute_dtype

_library = torch.library.Library("selftaught", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


@dataclass(frozen=True, kw_only=True)
class _Family:
    """An op and its backward.

    Attributes:
        name: the op's name.
        inputs: its arguments less `backend`, as a schema.
        outputs: its tensor results as a schema; only the first carries a gradient.
        differentiable: positions of the inputs that may need a gradient.
        fake: the outputs' shapes and dtypes from the inputs.
    """

    name: str
    inputs: str
    outputs: tuple[str, ...]
    differentiable: tuple[int, ...]
    fake: Callable[..., Tensor | tuple[Tensor, ...]]


def _request(family: _Family, embeddings: Tensor) -> dispatch.Request:
    return dispatch.Request(
        op=family.name,
        device=embeddings.device,
        dtype=embeddings.dtype,
        width=int(embeddings.shape[1]),
    )


def _implementation(family: _Family, backward: bool) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        *passed, backend = arguments
        embeddings = passed[1] if backward else passed[0]
        chosen = dispatch.implementation(_request(family, embeddings), backend)
        with torch.autocast(embeddings.device.type, enabled=False):
            if backward:
                return tuple(chosen.op(f"{family.name}_backward")(*passed))
            return chosen.op(family.name)(*passed)

    return run


def _fake_backward(family: _Family) -> Callable[..., tuple[Tensor, ...]]:
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
    ctx.settings = [value for value in inputs if not isinstance(value, Tensor)]
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors, *outputs)


def _restore(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    saved, settings = list(ctx.saved_tensors), list(ctx.settings)
    inputs = [saved.pop(0) if tensor else settings.pop(0) for tensor in ctx.is_tensor]
    return inputs, saved


def _differentiable_backward(
    family: _Family, grad: Tensor, passed: Sequence[Any], needs: list[bool]
) -> Sequence[Tensor]:
    """The reference's backward as ordinary PyTorch, its forward state computed again."""
    reference = dispatch.load("reference")
    assert isinstance(reference, dispatch.Backend)
    with torch.autocast(passed[0].device.type, enabled=False):
        outputs = reference.op(family.name)(*passed)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return reference.op(f"{family.name}_backward")(grad, *passed, *outputs, needs)


def _backward(family: _Family) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        (*passed, backend), outputs = _restore(ctx)
        needs = [ctx.needs_input_grad[position] for position in family.differentiable]
        twice = torch.is_grad_enabled()
        if twice and dispatch.choose(_request(family, passed[0]), backend) == "reference":
            grads = _differentiable_backward(family, grad, passed, needs)
        else:
            op = getattr(torch.ops.selftaught, f"{family.name}_backward")
            grads = op(grad, *passed, *outputs, needs, backend)
        results: list[Tensor | None] = [None] * (len(passed) + 1)
        for position, need, value in zip(family.differentiable, needs, grads, strict=True):
            results[position] = value if need else None
        return tuple(results)

    return backward


def _no_second_derivative(family: _Family) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"second derivatives of selftaught::{family.name} exist only with backend='reference'"
        )

    return backward


def _register(family: _Family) -> None:
    name, inputs = family.name, family.inputs
    outputs = ", ".join(family.outputs)
    returns = [part.split()[0] for part in family.outputs]
    gradients = ", ".join(["Tensor"] * len(family.differentiable))
    plural = f"({', '.join(returns)})"
    _library.define(f"{name}({inputs}, str backend) -> {plural}", tags=_TAGS)
    _library.define(
        f"{name}_backward(Tensor grad, {inputs}, {outputs}, bool[] needs, str backend)"
        f" -> ({gradients})",
        tags=_TAGS,
    )
    for op, backward in ((name, False), (f"{name}_backward", True)):
        _library.impl(op, _implementation(family, backward), "CompositeExplicitAutograd")
    forward, back = f"selftaught::{name}", f"selftaught::{name}_backward"
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd
    register_fake(forward, family.fake, lib=_library)
    register_fake(back, _fake_backward(family), lib=_library)
    register_autograd(forward, _backward(family), setup_context=_save, lib=_library)
    register_autograd(back, _no_second_derivative(family), lib=_library)


def _rows(z: Tensor, count: int) -> Tensor:
    return z.new_empty(count, dtype=compute_dtype(z))


def _fake_nearest_center(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _rows(x, x.shape[0]), x.new_empty(x.shape[0], dtype=torch.int64)


_SCALE = "Tensor? temperature, float fixed_temperature"

FAMILIES = (
    _Family(
        name="ntxent",
        inputs=f"Tensor z, {_SCALE}, bool normalize, str precision",
        outputs=("Tensor loss",),
        differentiable=(0, 1),
        fake=lambda z, *_: _rows(z, z.shape[0]),
    ),
    _Family(
        name="supcon",
        inputs=f"Tensor z, Tensor classes, {_SCALE}, bool paired, bool normalize, str precision",
        outputs=("Tensor loss",),
        differentiable=(0, 2),
        fake=lambda z, *_: _rows(z, z.shape[0]),
    ),
    _Family(
        name="info_nce",
        inputs=f"Tensor query, Tensor key, Tensor? negatives, {_SCALE}, bool symmetric, "
        "bool in_batch, bool normalize, str precision",
        outputs=("Tensor loss",),
        differentiable=(0, 1, 2, 3),
        fake=lambda query, key, negatives, t, fixed, symmetric, *_: _rows(
            query, query.shape[0] * (2 if symmetric else 1)
        ),
    ),
    _Family(
        name="nearest_center",
        inputs="Tensor x, Tensor centers, Tensor? active, str precision",
        outputs=("Tensor squared", "Tensor index"),
        differentiable=(0, 1),
        fake=_fake_nearest_center,
    ),
    _Family(
        name="mad",
        inputs="Tensor x, Tensor centers, Tensor semi_labels, Tensor? active, float eta, "
        "float eps, str precision",
        outputs=("Tensor loss", "Tensor squared", "Tensor index"),
        differentiable=(0, 1),
        fake=lambda x, *_: (_rows(x, x.shape[0]), *_fake_nearest_center(x)),
    ),
)

for _family in FAMILIES:
    _register(_family)

ntxent = torch.ops.selftaught.ntxent.default
supcon = torch.ops.selftaught.supcon.default
info_nce = torch.ops.selftaught.info_nce.default
nearest_center = torch.ops.selftaught.nearest_center.default
mad = torch.ops.selftaught.mad.default

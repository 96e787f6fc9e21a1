"""Builds spectral_kernels._C: the same kernels once per instruction set, chosen at run time.

Where nvcc is found (in $CUDA_HOME/bin or on the path) the CUDA kernels are compiled beside it for
every wheel, and in a checkout where the machine has a GPU: an image for each source. Without images
they are compiled at run time from the sources, which every wheel carries.

SPECTRAL_KERNELS_WERROR=1 turns warnings into errors; SPECTRAL_KERNELS_NO_EXTENSION=1 leaves the
compiled module and the images out (the package then runs on plain PyTorch); SPECTRAL_KERNELS_CUDA=0
leaves out the images, SPECTRAL_KERNELS_CUDA=1 makes them wherever nvcc is.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
# Flags per instruction set. `generic` is the base of the architecture and always there.
ISAS = {"generic": []}
if X86:
    ISAS |= {"avx2": AVX2, "avx512": [*AVX512, "-mprefer-vector-width=512"]}

# errno and traps only cost vectorisation; nothing here changes a result.
COMMON = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-Wall",
    "-Wextra",
]


# What is compiled once per instruction set, and with which flags besides: random numbers are the
# same bits everywhere, which a fused multiply-add would change.
NORMALS = "csrc/cpu/vectors/normals.cpp"
PER_ISA = {
    **{str(path): [] for path in sorted(Path("csrc/cpu").glob("*/kernels.cpp"))},
    NORMALS: ["-ffp-contract=off"],
}

CUDA = Path("spectral_kernels/runtime/cuda")


def cuda_sources() -> ModuleType:
    """Return the module sources.py of ``CUDA`` without its package, which needs torch."""
    spec = importlib.util.spec_from_file_location("cuda_sources", CUDA / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nvcc() -> str | None:
    """Return the path of nvcc, None where there is none."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def has_gpu() -> bool:
    """Whether Linux, or Linux under Windows, shows an NVIDIA GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def wants_images(in_checkout: bool) -> bool:
    """Whether images are made where nvcc is: they take as long as all the rest."""
    wish = os.environ.get("SPECTRAL_KERNELS_CUDA", "")
    return wish == "1" or (wish != "0" and (not in_checkout or has_gpu()))


def build_image(compiler: str, source: str, folder: Path) -> None:
    """Compile one .cu file to ``folder``, unless the image of these very sources lies there.

    An nvcc that cannot (too old, or at odds with the host compiler) costs the image, not the
    installation, which can still make it at run time.
    """
    cuda = cuda_sources()
    target = folder / cuda.fatbin_name(Path("csrc"), source)
    if target.exists():
        return
    strict = os.environ.get("SPECTRAL_KERNELS_WERROR") == "1"
    options = [*cuda.nvcc_options(Path("csrc")), *(["-Werror", "all-warnings"] if strict else [])]
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    command = [compiler, *options, str(Path("csrc/cuda", source)), "-o", str(unfinished)]
    if subprocess.run(command, check=strict).returncode != 0:
        print(f"nvcc fails on {source}: it will be compiled at run time, by CuPy", file=sys.stderr)
        return
    for old in folder.glob(f"{Path(source).stem}-*.fatbin"):
        old.unlink()
    unfinished.replace(target)


class BuildWithCudaSources(build_py):
    """Puts the CUDA sources into the package, so that they can be compiled where it runs."""

    def run(self) -> None:
        """Copy Python files, then the sources. A checkout in place uses its own csrc/."""
        super().run()
        if self.editable_mode:
            return
        for name in cuda_sources().packed_files(Path("csrc")):
            target = Path(self.build_lib, CUDA, "csrc", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path("csrc", name), target)


class BuildPerInstructionSet(build_ext):
    """Compiles the kernels once for every instruction set, each with its own flags."""

    def run(self) -> None:
        """Build; setuptools clears ``inplace`` meanwhile and copies the module afterwards."""
        self.in_checkout = bool(self.inplace)
        super().run()

    def build_extension(self, ext: Pybind11Extension) -> None:
        """Compile all units and CUDA images in parallel, then let setuptools link the units."""
        flags = [
            *COMMON,
            *(["-Werror"] if os.environ.get("SPECTRAL_KERNELS_WERROR") == "1" else []),
        ]
        units = [(source, flags, "base", []) for source in ext.sources]
        units += [
            (source, [*flags, *own, *extra], isa, [("SK_ISA", isa)])
            for isa, extra in ISAS.items()
            for source, own in PER_ISA.items()
        ]
        # -Wno-psabi: vectors never cross the boundary between the instruction sets.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = self.start_images(pool)
            objects = pool.map(lambda unit: self.compile(ext, *unit), units)
        for image in images:
            image.result()
        ext.extra_objects = [*ext.extra_objects, *(o for group in objects for o in group)]
        ext.sources = []
        super().build_extension(ext)

    def start_images(self, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Start nvcc, where it is found and images are wanted, on every .cu file."""
        compiler = nvcc() if wants_images(self.in_checkout) else None
        if compiler is None:
            return []
        folder = Path("." if self.in_checkout else self.build_lib, CUDA, "images")
        names = cuda_sources().kernel_files(Path("csrc"))
        return [pool.submit(build_image, compiler, name, folder) for name in names]

    def compile(self, ext, source, flags, isa, macros):
        """Compile one source with the flags of one instruction set; returns its objects."""
        return self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp) / isa),
            macros=[*macros, ("SK_X86", str(int(X86)))],
            include_dirs=ext.include_dirs,
            # Without the lines for debuggers that Python's own flags ask for.
            extra_postargs=[*flags, "-g0", "-fvisibility=hidden", "-Wno-psabi"],
            depends=ext.depends,
        )


def extensions() -> list[Pybind11Extension]:
    """Return the one extension, or none where the user wants a pure Python package."""
    if os.environ.get("SPECTRAL_KERNELS_NO_EXTENSION") == "1":
        return []
    return [
        Pybind11Extension(
            "spectral_kernels._C",
            [
                *sorted(str(p) for p in Path("csrc/bindings").glob("*.cpp")),
                *sorted(str(p) for p in Path("csrc/cpu").glob("*/*.cpp") if str(p) not in PER_ISA),
            ],
            include_dirs=["csrc"],
            extra_link_args=["-fopenmp"],
            depends=[str(p) for p in Path("csrc").rglob("*.h")],
        )
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildPerInstructionSet, "build_py": BuildWithCudaSources},
)

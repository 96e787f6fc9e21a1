"""Builds spectral_kernels._C: the same kernels once per instruction set, chosen at run time.

SPECTRAL_KERNELS_WERROR=1 turns warnings into errors; SPECTRAL_KERNELS_NO_EXTENSION=1 leaves the
compiled module out (the package then runs on plain PyTorch).
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

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
PER_ISA = {"csrc/cpu/kernels.cpp": [], "csrc/cpu/normals.cpp": ["-ffp-contract=off"]}


class BuildPerInstructionSet(build_ext):
    """Compiles the kernels once for every instruction set, each with its own flags."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        """Compile all units in parallel, then let setuptools link them."""
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
            objects = pool.map(lambda unit: self.compile(ext, *unit), units)
        ext.extra_objects = [*ext.extra_objects, *(o for group in objects for o in group)]
        ext.sources = []
        super().build_extension(ext)

    def compile(self, ext, source, flags, isa, macros):
        """Compile one source with the flags of one instruction set; returns its objects."""
        return self.compiler.compile(
            [source],
            output_dir=str(Path(self.build_temp) / isa),
            macros=[*macros, ("SK_X86", str(int(X86)))],
            include_dirs=ext.include_dirs,
            extra_postargs=[*flags, "-fvisibility=hidden", "-Wno-psabi"],
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
                "csrc/bindings.cpp",
                *sorted(str(p) for p in Path("csrc/cpu").glob("*.cpp") if str(p) not in PER_ISA),
            ],
            include_dirs=["csrc"],
            extra_link_args=["-fopenmp"],
            depends=[str(p) for p in Path("csrc").rglob("*.h")],
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildPerInstructionSet})

"""The device code of a source: the fat binary that setup.py made, else what NVRTC makes."""

from __future__ import annotations

from spectral_kernels.runtime.cuda import nvrtc, sources

IMAGES = sources.HERE / "images"


def shipped(name: str) -> bool:
    """Whether the image of the source ``name``, as it is now, came with this installation."""
    return (IMAGES / sources.fatbin_name(sources.folder(), name)).is_file()


def image(name: str, capability: tuple[int, int]) -> bytes:
    """Return what ``cuModuleLoadData`` takes: a fat binary or a cubin of the source ``name``.

    Raises:
        RuntimeError: there is none and none can be made, with the reason and the remedy.
    """
    if shipped(name):
        return (IMAGES / sources.fatbin_name(sources.folder(), name)).read_bytes()
    return nvrtc.cubin(name, capability)


def missing() -> list[str]:
    """Return the sources whose image, as they are now, did not come with this installation."""
    return [name for name in sources.kernel_files(sources.folder()) if not shipped(name)]


def refusal() -> str | None:
    """Return why the kernels have no device code, or None where they have or it can be made."""
    absent = missing()
    if not absent or nvrtc.installed():
        return None
    return (
        f"this installation has no compiled CUDA kernels ({', '.join(absent)}) of its sources as "
        f"they are, and CuPy, which could make them, is not installed; {nvrtc.REMEDY}"
    )

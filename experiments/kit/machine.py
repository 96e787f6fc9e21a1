"""The machine that made a run. Another one adds in another order, and training amplifies that."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELSEWHERE = "on another machine the steps, and now and then a claim, are others"

_DPI = 110


def machine(device: torch.device | str = "cpu") -> str:
    """What decides the arithmetic of a run, in one line: the processor or GPU, its instruction set
    and threads, the version of torch."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return (
        f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"
    )


def processor() -> str:
    """The name that the processor has for itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machines_of(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The machines that the ``summary.json`` of runs name, each once."""
    return sorted({summary.get("machine", "a machine that has no name") for summary in summaries})


def save_figure(figure: Figure, path: Path, summaries: Iterable[Mapping[str, Any]]) -> None:
    """Save ``figure`` as PNG, with the machines of these runs in small print under it."""
    names = "; ".join(machines_of(summaries))
    figure.text(0.995, 0, names, ha="right", va="top", fontsize=8, color="0.4")
    # Tight: the line is below the panels, where their layout leaves no place.
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.05)

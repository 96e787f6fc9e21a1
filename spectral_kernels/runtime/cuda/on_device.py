"""The launcher of real devices: torch names device and stream, the driver loads and starts."""

from __future__ import annotations

from ctypes import c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectral_kernels.runtime.cuda.driver import Driver
from spectral_kernels.runtime.cuda.image import image
from spectral_kernels.runtime.cuda.table import Argument, Kernel, Limits, packed


@dataclass
class _Function:
    handle: c_void_p
    shared_bytes: int


@dataclass
class DeviceLauncher:
    """Loads a source's module on first use of one of its kernels, once for every device."""

    driver: Driver
    _modules: dict[tuple[int, str], c_void_p] = field(default_factory=dict)
    _functions: dict[tuple[int, str], _Function] = field(default_factory=dict)
    _limits: dict[int, Limits] = field(default_factory=dict)

    def limits(self, device: torch.device) -> Limits:
        """Return the limits of a device; of torch's current one where it has no index."""
        index = torch.cuda.current_device() if device.index is None else device.index
        if index not in self._limits:
            self._limits[index] = self.driver.limits(index)
        return self._limits[index]

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        """Start a kernel on the current stream of the device that its first tensor lies on."""
        device = next(a.device.index for a in arguments if isinstance(a, Tensor))
        with torch.cuda.device(device):
            self.driver.bind(device)
            function = self._function(device, kernel, shared_bytes)
            stream = torch.cuda.current_stream().cuda_stream
            parameters = packed(kernel, arguments)
            self.driver.launch(function, grid, block, shared_bytes, stream, parameters)

    def _function(self, device: int, kernel: Kernel, shared_bytes: int) -> c_void_p:
        function = self._functions.get((device, kernel.name))
        if function is None or function.shared_bytes < shared_bytes:
            handle = self.driver.function(self._module(device, kernel), kernel.name, shared_bytes)
            function = self._functions[device, kernel.name] = _Function(handle, shared_bytes)
        return function.handle

    def _module(self, device: int, kernel: Kernel) -> c_void_p:
        key = (device, kernel.source)
        if key not in self._modules:
            capability = torch.cuda.get_device_capability(device)
            self._modules[key] = self.driver.load(image(kernel.source, capability))
        return self._modules[key]

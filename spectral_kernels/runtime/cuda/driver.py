"""Adapter to libcuda, the driver that every CUDA installation has: load a module, launch."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p

from spectral_kernels.runtime.cuda.table import Limits

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Values of cuda.h.
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_PARAMETERS_POINTER, _PARAMETERS_SIZE, _PARAMETERS_END = 1, 2, 0
_DEVICE_MULTIPROCESSORS, _DEVICE_SHARED_BYTES_OF_BLOCK = 16, 97
# cuThreadExchangeStreamCaptureMode: calls that a capture forbids are allowed.
_RELAXED = 2
# More dynamic shared memory than this must be asked for.
_SHARED_BYTES_UNASKED = 48 << 10

_SIGNATURES = {
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuCtxGetCurrent": [POINTER(c_void_p)],
    "cuCtxSetCurrent": [c_void_p],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuThreadExchangeStreamCaptureMode": [POINTER(c_int)],
    "cuModuleLoadData": [POINTER(c_void_p), c_char_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuFuncSetAttribute": [c_void_p, c_int, c_int],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, POINTER(c_void_p)],
}


class Driver:
    """libcuda's calls as methods that raise ``RuntimeError`` with the driver's own words."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._calls = ctypes.CDLL(library)
        except OSError as error:
            raise RuntimeError(f"the CUDA driver cannot be loaded ({error})") from error
        for name, signature in _SIGNATURES.items():
            getattr(self._calls, name).argtypes = signature
        self._primary: dict[int, c_void_p] = {}

    def limits(self, device: int) -> Limits:
        """Return the limits of a device, which torch and the driver number alike."""
        shared_bytes = self._attribute(_DEVICE_SHARED_BYTES_OF_BLOCK, device)
        return Limits(shared_bytes, self._attribute(_DEVICE_MULTIPROCESSORS, device))

    def _attribute(self, key: int, device: int) -> int:
        value = c_int()
        self._check("cuDeviceGetAttribute", byref(value), key, device)
        return value.value

    def bind(self, device: int) -> None:
        """Make the device's primary context current in this thread, where it is not yet.

        torch does so with its first call in a thread that needs one, which may be after ours. What
        is retained is never released: torch keeps that context to the end of the process too.
        """
        primary = self._primary.get(device)
        if primary is None:
            primary = c_void_p()
            self._check("cuDevicePrimaryCtxRetain", byref(primary), device)
            self._primary[device] = primary
        current = c_void_p()
        self._check("cuCtxGetCurrent", byref(current))
        if current.value != primary.value:
            self._check("cuCtxSetCurrent", primary)

    def load(self, image: bytes) -> c_void_p:
        """Load a cubin or fat binary into the current context; it stays there.

        Also while a stream of this thread is captured into a graph, which would forbid it: nothing
        of a module belongs to a stream.
        """
        module, mode = c_void_p(), c_int(_RELAXED)
        self._check("cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            self._check("cuModuleLoadData", byref(module), image)
        finally:
            self._check("cuThreadExchangeStreamCaptureMode", byref(mode))
        return module

    def function(self, module: c_void_p, name: str, shared_bytes: int) -> c_void_p:
        """Return a kernel that may be launched with up to ``shared_bytes``."""
        function = c_void_p()
        self._check("cuModuleGetFunction", byref(function), module, name.encode())
        if shared_bytes > _SHARED_BYTES_UNASKED:
            key = _MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check("cuFuncSetAttribute", function, key, shared_bytes)
        return function

    def launch(
        self,
        function: c_void_p,
        grid: int,
        block: int,
        shared_bytes: int,
        stream: int,
        parameters: bytes,
    ) -> None:
        """Start a kernel; the driver has copied ``parameters`` when this returns."""
        size = c_size_t(len(parameters))
        extra = (c_void_p * 5)(
            _PARAMETERS_POINTER,
            ctypes.cast(c_char_p(parameters), c_void_p),
            _PARAMETERS_SIZE,
            ctypes.cast(byref(size), c_void_p),
            _PARAMETERS_END,
        )
        self._check(
            "cuLaunchKernel",
            *(function, grid, 1, 1, block, 1, 1, shared_bytes, stream, None, extra),
        )

    def _check(self, name: str, *arguments: object) -> None:
        code = getattr(self._calls, name)(*arguments)
        if code != 0:
            text = c_char_p()
            self._calls.cuGetErrorString(code, byref(text))
            reason = (text.value or b"unknown error").decode()
            raise RuntimeError(f"{name}: {reason} (CUDA error {code})")


@functools.cache
def driver() -> Driver:
    """Return the driver of this machine.

    Raises:
        RuntimeError: there is none.
    """
    return Driver()

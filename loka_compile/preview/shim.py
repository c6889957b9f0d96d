"""The shim: a small C++ library that a build of torch without CUDA needs to take fake CUDA tensors seriously.

libtorch looks for its CUDA hooks once, when it is imported. So the worker loads this first, and it cannot be loaded
into a process that has torch already. Built once with g++, kept by the digest of its source and torch's version.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")


class ShimError(RuntimeError):
    """Why there is no shim, and what to do."""


def load() -> None:
    """Before torch is imported. Does nothing where torch comes with CUDA. Raises ShimError."""
    root = torch_root()
    if (root / "lib" / "libtorch_cuda.so").exists():
        return
    if "torch" in sys.modules:
        raise ShimError("the shim has to be loaded before torch is imported: start a process of its own")
    shim = built(root)
    for library in ("libgomp.so.1", "libc10.so", "libtorch_cpu.so"):  # what it links to, for libtorch to share
        if (root / "lib" / library).exists():
            ctypes.CDLL(str(root / "lib" / library), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)


def torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ShimError("torch is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def built(root: Path) -> Path:
    """The library, from the cache where it is there."""
    digest = hashlib.sha256(SOURCE.read_bytes() + f"{metadata.version('torch')} {root}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("LOKA_CACHE_DIR") or Path.home() / ".cache" / "loka")
    shim = folder / f"preview-shim-{digest}.so"
    if shim.exists():
        return shim
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise ShimError("a preview needs a C++ compiler once, to build its shim: install g++, or set CXX")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as file:
        made = Path(file.name)
    command: list[str | Path] = [compiler, "-O1", "-std=c++20", "-fPIC", "-shared", SOURCE, "-I", root / "include"]
    command += ["-L", root / "lib", "-ltorch_cpu", "-lc10", "-o", made]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        made.unlink(missing_ok=True)
        raise ShimError(f"the preview's shim does not build against torch {metadata.version('torch')}:\n{done.stderr}")
    made.rename(shim)  # at once: another process may be building it too
    return shim

"""Versions that a compiled graph depends on: of our own source and the libraries' versions."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

from loka_compile import kernels, passes
from loka_compile.spec.processor import processor


@functools.cache
def source_fingerprint() -> str:
    """Digest of loka's source, torch's version and this processor's instruction sets, by which kernels are chosen.

    It is part of every cache key, so that neither stale code nor another machine's is served."""
    digest = hashlib.sha256(f"{torch.__version__} {processor()}".encode())
    for folder in (Path(__file__).parents[1], Path(passes.__path__[0]), Path(kernels.__path__[0])):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()

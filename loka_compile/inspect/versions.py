"""What a compiled graph depends on besides model and options: our own source and the libraries' versions."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

import torch

from loka_compile import kernels, passes
from loka_compile.spec.processor import processor


def loka_version() -> str:
    return metadata.version("loka-compile")


@functools.cache
def source_fingerprint() -> str:
    """Digest of loka's source, torch's version and this processor's instruction sets, by which kernels are chosen: part
    of every cache key, so that no stale code is served, nor another machine's."""
    digest = hashlib.sha256(f"{torch.__version__} {processor()}".encode())
    for file in (__file__, passes.__file__, kernels.__file__):
        for path in sorted(Path(str(file)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()

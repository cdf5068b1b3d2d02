"""Compiled programs are remembered on this machine: another process with the same shapes loads them instead of compiling.

JAX's own key covers the program, the compiler's options and the versions of JAX and of the device's driver. The folder's
name adds the features of the processor: what was compiled for one may be an illegal instruction on another that shares the
home directory. JAX's variables are the switches: JAX_COMPILATION_CACHE_DIR for another place, JAX_ENABLE_COMPILATION_CACHE=0
for none.
"""

import os
import platform
import zlib
from pathlib import Path

from rewards.files import cache_dir

FOLDER = "compiled"
SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 1024**3),  # bytes; the programs used longest ago go first
}


def remember() -> None:
    """Let JAX keep compiled programs below the cache folder; before JAX is imported, which reads this from the environment."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # somebody's own folder, which nothing is thrown out of
    folder = cache_dir() / FOLDER / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: programs are compiled as before
        return
    if not os.access(folder, os.W_OK):
        return
    for name, value in {"JAX_COMPILATION_CACHE_DIR": str(folder), **SETTINGS}.items():
        os.environ.setdefault(name, value)


def processor() -> str:
    """The kind of processor with a hash of what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = [platform.processor()]
    features = next(
        (line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else ""
    )
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"

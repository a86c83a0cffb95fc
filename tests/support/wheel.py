"""Exodus as a package: a wheel in an environment of its own, with the libraries of the tests'
environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from exodus.stack.prefect import project_root


def install(folder: Path) -> Path:
    """Build the wheel and install it; return the folder with its `python` and `exodus`."""
    wheels = folder / "wheels"
    _reuse_compiled()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [
        *pip,
        "wheel",
        str(project_root()),
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(wheels),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = wheels.glob("exodus-*.whl")
    place = folder / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    packages = (
        place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    )
    installed = [
        *pip,
        "--python",
        str(place / "bin" / "python"),
        "install",
        "--no-deps",
        "--ignore-installed",
        str(wheel),
    ]
    subprocess.run(installed, check=True, capture_output=True, timeout=300)
    # Behind the wheel's own
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def _reuse_compiled() -> None:
    """Put the compiled modules of this checkout where the build looks for its own. It compiles
    those again whose source is newer. All of them take both cores more than a minute.
    """
    root = project_root()
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for module in root.glob("exodus/**/*.so"):
        built = root / "build" / f"lib.{platform}" / module.relative_to(root)
        built.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, built)

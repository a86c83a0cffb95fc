"""Compiles the hot path (exodus/compiled.py) where a C compiler is there; without one the
installation goes through and Python runs the sources.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
os.environ["EXODUS_COMPILED"] = "0"

from exodus import compiled

# Their indices are compared with an end where they are made, or are a byte's value.
_UNCHECKED = {"exodus.resp.scanner", "exodus.plan.share"}


class Sources(build_py):
    """Puts prefect.yaml into the package of the flows, where `exodus deploy` finds it without a
    checkout.
    """

    def run(self) -> None:
        """Copy, and the file that lies at the checkout's root."""
        super().run()
        if not self.editable_mode:
            self.copy_file("prefect.yaml", str(Path(self.build_lib) / "flows" / "prefect.yaml"))


class Build(build_ext):
    """Leaves the digest of the sources behind when every module was built."""

    def finalize_options(self) -> None:
        """A compiler for each core."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        """Build, and say of what."""
        super().run()
        root = Path(__file__).parent if self.inplace else Path(self.build_lib)
        missing = [
            name for name in compiled.HOT if not Path(root / self.get_ext_filename(name)).exists()
        ]
        if missing:
            self.warn(f"not compiled, the Python sources run instead: {', '.join(missing)}")
            return
        said = {
            "python": sys.version.split(maxsplit=1)[0],
            "modules": list(compiled.HOT),
            "digest": compiled.digest(),
        }
        (root / "exodus" / compiled.DIGESTS).write_text(json.dumps(said))

    def get_outputs(self) -> list[str]:
        """The extensions and the digest."""
        return [*super().get_outputs(), str(Path(self.build_lib) / "exodus" / compiled.DIGESTS)]


extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".py"],
        extra_compile_args=["-O2", "-g0"],
    )
    for name in compiled.HOT
]
modules = [
    module
    for extension in extensions
    for module in cythonize(
        extension,
        build_dir="build/cython",
        quiet=True,
        compiler_directives={
            "language_level": 3,
            # The types are in .pxd; an annotation says what a caller means, not what C holds
            "annotation_typing": False,
            "boundscheck": extension.name not in _UNCHECKED,
            "wraparound": extension.name not in _UNCHECKED,
        },
    )
]
for module in modules:
    module.optional = True  # cythonize makes new ones, and forgets this
setup(cmdclass={"build_ext": Build, "build_py": Sources}, ext_modules=modules)

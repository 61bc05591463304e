"""The compiled core, which setup.cfg cannot describe. Without a compiler, or elsewhere than on Linux, the installation
goes on without it, and krait_ws/core/pure.py does the same, slower."""

import sys

from setuptools import Extension, setup

CORE = "krait_ws/core"
PARTS = ("waiting.pxi", "mailboxes.pxi", "link.pxi", "loop.pxi", "frames.h", "door.h", "sockets.h")

compiled = Extension(
    "krait_ws.core.compiled",
    [f"{CORE}/compiled.pyx"],
    depends=[f"{CORE}/{part}" for part in PARTS],
    include_dirs=[CORE],
    extra_compile_args=["-g0"],  # four fifths of the file would be for debuggers
    optional=True,
)

setup(ext_modules=[compiled] if sys.platform == "linux" else [])

"""Build the compiled modules; where no compiler works, install the NumPy path and say so."""

import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"


class OptionalBuildExt(build_ext):
    """Build each extension, first with OpenMP, then without, then not at all (one warning line)."""

    def build_extension(self, ext):
        threads = [] if MSVC else ["-fopenmp"]
        base = list(ext.extra_compile_args)
        for flags in ([threads, []] if threads else [[]]):
            ext.extra_compile_args, ext.extra_link_args = base + flags, flags
            try:
                return super().build_extension(ext)
            except Exception as error:  # a missing compiler surfaces as many different types
                reason = error
        print(f"warning: k2ref: {ext.name} was not compiled ({reason}); NumPy runs instead",
              file=sys.stderr)


def extension(path):
    # No -march=native: a wheel must run elsewhere; the kernels choose their path at run time.
    # No -ffast-math: the order of every sum is part of the contract.
    flags = [] if MSVC else ["-O3", "-std=gnu11", "-Wno-psabi", "-ffp-contract=fast"]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    headers = sorted(str(p) for p in Path("k2ref").rglob("*.h"))
    name = ".".join(path.with_suffix("").parts)
    return Extension(name, [str(path)], include_dirs=[numpy.get_include()],
                     define_macros=macros, extra_compile_args=flags, depends=headers)


paths = sorted(Path("k2ref").rglob("_*.pyx"))
setup(
    ext_modules=cythonize([extension(path) for path in paths], language_level=3),
    cmdclass={"build_ext": OptionalBuildExt},
)

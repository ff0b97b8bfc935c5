"""Vendors' own parsers, compilers and partitioners, run on a model: does the tool take it, what of it, and what does it
compute?

    toolchain.py    which tool-chains there are: the package, how it is installed, the script that drives it
    process.py      a script in a process of its own, with a time limit: these tools print, crash and hang
    compare.py      samples for it, and its outputs beside ONNX Runtime's and the float model's
    adapters/       the scripts; they import nothing of onnxq, so that any interpreter that has the package can run them
"""

from .compare import check_toolchain, random_feeds
from .process import find_toolchain
from .toolchain import TOOLCHAIN, TOOLCHAINS, Toolchain, ToolchainOptions

__all__ = [
    "TOOLCHAIN",
    "TOOLCHAINS",
    "Toolchain",
    "ToolchainOptions",
    "check_toolchain",
    "find_toolchain",
    "random_feeds",
]

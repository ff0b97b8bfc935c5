"""One script for each vendor's package. Each runs in a process of its own, under an interpreter that has that package,
numpy and nothing of onnxq: a script imports the standard library, numpy, the package, and `protocol` beside it.
"""

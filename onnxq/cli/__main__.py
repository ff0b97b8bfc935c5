"""`python -m onnxq.cli`."""

from . import main

main()

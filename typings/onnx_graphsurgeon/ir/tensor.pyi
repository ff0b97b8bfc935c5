from typing import Any

import numpy as np
from numpy.typing import NDArray

class LazyValues:
    tensor: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    def __init__(self, tensor: Any) -> None: ...
    def load(self) -> NDArray[Any]: ...

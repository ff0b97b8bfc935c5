"""Calibration data: whatever a user has, turned into run feeds that can be read as often as needed.

    images, .npy, .npz, .pb, folders, arrays in memory
        sources.py       records: one file (or mapping) each; headers are read without the data
        images.py        pixels -> the model's input, as `Preprocess` says
        calibration.py   records -> single samples, checked -> feeds of the model's batch size

Nothing is kept between two passes: memory holds one record at a time, however much data there is.
"""

from .calibration import CalibrationData, Feed, Source, spread
from .images import Preprocess
from .in_memory import Transform, replayable
from .inputs import InputSpec

__all__ = ["CalibrationData", "Feed", "InputSpec", "Preprocess", "Source", "spread", "Transform", "replayable"]

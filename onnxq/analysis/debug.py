"""The debugging workflow of the white paper (section 3.7, figure 9), walked automatically.

    1. Sanity: with all quantizers bypassed, outputs are the float model's.
    2. Weights alone on their grids, activations alone: which are to blame.
    3. Every quantizer alone on, and alone off: the culprits, and what is wrong with them (`findings`).
    4. Fixes for the whole network, those that match what was found first. A fix is kept if the part that it is for
       gets better, and the whole not worse (`fixes`).
    5. Where these do not suffice, single tensors: the fewest that must leave their grids, by simulation, get another
       range method, then one rung of their ladder after the other: a scale for each channel, 16 bits, float.
    6. What costs something at run time is taken back, one by one, as long as the target holds.

Everything that is decided is decided by the quantized model's score on calibration data; a score on other data, where
there is some, has the last word.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import ModelProto

from ..data import Preprocess
from ..errors import UsageError, VerificationError
from ..options import Options
from ..report import LogEntry, Measure, SensitivityRanking
from .fixes import FIXES, NAMES, Fix, Part
from .held_out import HeldOut, open_held_out
from .mixed_precision import classifies
from .repair_tensors import Ladders, repair_tensors, take_back
from .sanity import check_bypassed, check_float
from .sensitivity import SensitivityAnalysis, Unit, rank
from .findings import Finding, look_at
from .study import Labels, Study, open_study
from .trial import Goal, Standing, Trial, try_options
from .words import score_text, standing_text

NAMED = 10
"""Culprits that are looked at, at most."""

LEAST_DB = 20.0
"""Target where the metric is SQNR and no score is given: noise of a tenth of the outputs' magnitude."""

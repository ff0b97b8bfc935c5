"""Statistics of activations, collected from calibration data."""

"""ONNX structure: the model, what its operators mean to quantization, finding and editing parts of it."""

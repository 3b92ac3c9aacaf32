"""A trained model as one file for other runtimes: ONNX or torch.export, pixels in, scores out.

`graph` and `check` need torch; `runtime` reads the file with NumPy and onnxruntime alone.
"""

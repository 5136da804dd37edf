"""The trained model in a form that devices run: ONNX, ExecuTorch, safetensors, and a compact file of sparse weights."""

"""Networks, their pretrained weights, and running them: in PyTorch, in ONNX Runtime."""

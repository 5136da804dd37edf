"""Sparse collaborative learning: position masks, quantized sparse gradients and updates, distance-base."""

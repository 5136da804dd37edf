"""Sparse compute: masked training that multiplies kept weights only, where that is faster; needs the extra ``sparse``.

`convert.sparse_net` turns a model and its masks into a network with sparse layers, `growth.watching` shows the dense
gradient of chosen layers tile by tile. Importing this package imports no numba; its modules do.
"""

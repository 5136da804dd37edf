"""What is done with samples before they are stored, as named data: ``transforms = [{window = 8000}, "logmel"]``.

A transform of one's own is a class under `transform`, in a module that the run imports.
"""

from fedbonsai.data.transforms import numbers, pictures, sounds, words  # for what they register
from fedbonsai.data.transforms.base import Part, Transform, data_of, parse, transform

__all__ = ["Part", "Transform", "data_of", "numbers", "parse", "pictures", "sounds", "transform", "words"]

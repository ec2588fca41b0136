"""The tiny experiments that faults disturb, by key: with MLPs, Transformers and convolutional networks."""

from types import ModuleType

from tests.faults import tiny, tiny_images, tiny_sequence

TINY: dict[str, ModuleType] = {"tiny": tiny, "tiny_sequence": tiny_sequence, "tiny_images": tiny_images}

"""The errors of everything that can be wrong with a file."""


class PackedFileError(ValueError):
    """A file is no packed model, is damaged, or is of a version this library cannot read."""


class TorchFileError(ValueError):
    """A file holds no PyTorch state dict, is damaged, or would take more memory than its bytes."""

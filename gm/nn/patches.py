"""Images as sequences of patches, by squeezes; vectors, of patches of one symbol."""

from gm.errors import InputError


def num_squeezes(shape: tuple[int, ...], patch_size: int) -> int:
    """How many squeezes make patches of this size; none of a vector.

    Raises:
      InputError: not a power of two, or it does not divide the image.
    """
    said = f"--set=patch_size={patch_size}"
    if patch_size < 1 or patch_size & (patch_size - 1):
        raise InputError(f"{said}: give a power of two")
    if len(shape) == 1:
        return 0
    if shape[0] % patch_size or shape[1] % patch_size:
        raise InputError(
            f"{said}: give a power of two that divides an image of "
            f"{shape[0]} x {shape[1]} pixels"
        )
    return patch_size.bit_length() - 1


def patch_channels(shape: tuple[int, ...], patch_size: int) -> int:
    """The number of entries of a patch."""
    return patch_size**2 * shape[2] if len(shape) == 3 else 1

"""Examples to an archive and back, by the codec that a model's capabilities allow."""

import hashlib
import math
import platform
import zlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from gm import sharding
from gm.checkpoint import state_digest
from gm.codec import archive
from gm.codec.autoregressive import AutoregressiveCodec
from gm.codec.coders import QueueReader, QueueWriter, Stack
from gm.codec.flow import FlowCodec
from gm.codec.header import unpack
from gm.codec.integer import IntegerFlowCodec
from gm.codec.latent import LatentCodec
from gm.codec.program import Program
from gm.errors import InputError
from gm.model import LikelihoodModel, check_examples
from gm.trained import Trained

# Capabilities: the codec that they allow. The first that a model has is taken. What a
# subclass has not, though its base has, is None there.
_CODECS: dict[tuple[str, ...], Any] = {
    ("coding_steps",): IntegerFlowCodec,
    ("coding_layers",): FlowCodec,
    ("step",): AutoregressiveCodec,
    ("infer", "generate", "symbol_logits"): LatentCodec,
}


def codec_class(model: LikelihoodModel) -> Any:
    """The codec for a model.

    Raises:
      InputError: the model has no capability that a codec could use.
    """
    for names, codec in _CODECS.items():
        if all(getattr(model, name, None) is not None for name in names):
            noise = getattr(model, "dequantizer", "uniform")
            if codec is FlowCodec and noise != "uniform":
                raise InputError(
                    f"{type(model).__name__} with dequantizer={noise} cannot be a codec, "
                    "which takes uniform noise (train with --set=dequantizer=uniform)"
                )
            return codec
    raise InputError(
        f"{type(model).__name__} cannot be a codec: that takes cached steps (most models "
        "of the autoregressive family), a posterior and a decoder (vae), or layers that "
        "are coded entry by entry (realnvp, idf)"
    )


def _versions() -> dict[str, str]:
    """Packages whose arithmetic or bit stream the decoder depends on."""
    names = ("jax", "jaxlib", "numpy", "scipy", "constriction")
    return {name: version(name) for name in names}


def _machine() -> str:
    """The processor, for a message: its arithmetic may differ in the last bit."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
        return names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def _random_words(num_bits: int, seed: int) -> np.ndarray:
    """What a bits-back stack begins with."""
    count = -(-num_bits // 32)
    return np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)


def compress(
    trained: Trained,
    x: np.ndarray,
    cond: np.ndarray | None = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    source: dict[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> bytes:
    """Codes examples with a trained model.

    Args:
      trained: the run.
      x: [N, *shape] integers of any type.
      cond: [N, ...] for a conditional model; it is stored in the archive.
      batch_size: examples at a time at both ends, padded where there are fewer; None:
        the codec's own choice.
      seed: of the random bits that bits-back coding begins with.
      source: JSON values to keep in the header.
      progress: called with (examples done, bits per example so far).
      mesh: of devices that share each batch; the decoder needs the same.

    Returns:
      An archive.

    Raises:
      InputError: examples that the model does not allow, or a model without a codec.
    """
    model = trained.model
    check_examples(model, x, cond, "compressed")
    choice = codec_class(model)
    size = min(batch_size or choice.batch_size, len(x))
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size
    codec = choice(Program(model, trained.params, size, mesh))
    first = _random_words(codec.num_bits, seed) if choice.stack else np.empty(0)
    coder = Stack(first, seal=True) if choice.stack else QueueWriter()
    begin = coder.num_bits
    batches = []  # [how many, CRC-32 of their integers]
    done = 0
    while done < len(x):
        count = min(size, len(x) - done)
        if choice.stack:  # few at first, so that few random bits are needed
            count = min(count, max(coder.num_bits // codec.num_bits, 1))
        part = slice(done, done + count)
        rows = x[part].astype(np.int32)
        try:
            codec.encode(coder, rows, None if cond is None else cond[part])
        except ValueError as error:
            raise InputError(
                f"examples {done} to {done + count - 1} are too far from what the model "
                f"was trained on to be coded ({' '.join(str(error).split())})"
            ) from None
        batches.append([count, zlib.crc32(rows.tobytes())])
        done += count
        if progress is not None:
            progress(done, (coder.num_bits - begin) / done)
    words = coder.words()
    net = coder.num_bits - begin
    side = b"" if cond is None else zlib.compress(cond.tobytes(), 9)
    header = {
        "codec": choice.__name__,
        "model": trained.config.model,
        "checkpoint": trained.checkpoint,
        "params_sha256": state_digest(trained.params),
        "program_sha256": codec.program.digest(),
        "versions": _versions(),
        "device": jax.devices()[0].device_kind,
        "mesh": mesh and sharding.mesh_text(mesh),
        "machine": _machine(),
        "batch_size": size,
        "batches": batches,
        "seed": seed,
        "initial_words": len(first),
        "net_bits": net,
        "shape": list(x.shape),
        "dtype": x.dtype.str,
        "sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "cond": None if cond is None else [cond.dtype.str, list(cond.shape), len(side)],
        "source": source or {},
    }
    return archive.pack(header, side + words.astype("<u4").tobytes())


def read_header(data: bytes, where: str = "the archive") -> dict[str, Any]:
    """The header of an archive, all of which is checked; raises as `header.unpack`."""
    return unpack(data, where)[0]


def _refuse_other(trained, header, where, mesh):
    """InputError if this is not the model, the software or the device of the encoder."""
    digest = state_digest(trained.params)
    if header["params_sha256"] != digest:
        raise InputError(
            f"{where}: made by {header['model']} ({header['checkpoint']}) with parameters "
            f"{header['params_sha256'][:12]}; this run's are {digest[:12]} "
            f"({trained.config.model}, {trained.checkpoint}); give that run"
        )
    here = _versions()
    for name, there in header["versions"].items():
        if here.get(name) != there:
            raise InputError(
                f"{where}: made with {name} {there}, here is {here.get(name)}; its numbers "
                f"may differ in the last bit: install {name}=={there}"
            )
    device = jax.devices()[0].device_kind
    if header["device"] != device:
        raise InputError(
            f"{where}: made on {header['device']}, here is {device}; numbers differ in the "
            "last bit between devices: decompress on the same kind"
        )
    there, here = header.get("mesh"), mesh and sharding.mesh_text(mesh)
    if there != here:
        needed = f"give --mesh={there}" if there else "leave --mesh out"
        raise InputError(
            f"{where}: made on {there or 'one device'}, here is {here or 'one device'}; "
            f"numbers differ in the last bit between meshes: {needed}"
        )


def decompress(
    trained: Trained,
    data: bytes,
    *,
    where: str = "the archive",
    progress: Callable[[int, float], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes an archive with the model that made it.

    Args:
      trained: the run.
      data: what `compress` gave.
      where: the archive's name, for messages.
      progress: called with (examples done, bits per example).
      mesh: that of the encoder; None: one device.

    Returns:
      (x, cond): just what was compressed, in type, shape and value; cond may be None.

    Raises:
      InputError: a damaged archive, another model, version, device or mesh, or an outcome
        that fails its checksum.
    """
    header, body = unpack(data, where)
    _refuse_other(trained, header, where, mesh)
    choice = codec_class(trained.model)
    codec = choice(Program(trained.model, trained.params, header["batch_size"], mesh))
    if codec.program.digest() != header["program_sha256"]:
        raise InputError(
            f"{where}: the compiled network differs from the encoder's, though parameters "
            "and versions agree: the code or the XLA flags changed; use the same"
        )
    cond, side = None, 0
    if header["cond"] is not None:
        dtype, shape, side = header["cond"]
        most = np.dtype(dtype).itemsize * math.prod(shape)
        try:
            values = archive.inflate(body[:side], most)
            cond = np.frombuffer(values, dtype).reshape(shape)
        except ValueError:
            raise InputError(f"{where}: its conditions cannot be read") from None
    words = np.frombuffer(body[side:], "<u4").astype(np.uint32)
    failed = InputError(
        f"{where}: sound, but this machine ({_machine()}) decodes it to other bytes: its "
        f"arithmetic differs from that of the encoder's ({header['machine']})"
    )
    try:
        x = _decode(codec, choice.stack, words, header, cond, progress)
    except InputError:
        raise
    except (ArithmeticError, LookupError, ValueError, TypeError, AssertionError):
        raise failed from None  # the coder met what no encoder writes
    if x is None or hashlib.sha256(x.tobytes()).hexdigest() != header["sha256"]:
        raise failed
    return x, cond


def _decode(codec, is_stack, words, header, cond, progress):
    """The array, or None where a batch or what lies below the stack is wrong."""
    batches = header["batches"]
    stops = np.cumsum([count for count, _ in batches]).tolist()
    coder = Stack(words) if is_stack else QueueReader(words)
    x = np.empty(header["shape"], header["dtype"])
    done, total = 0, len(x)
    order = list(zip(batches, stops, strict=True))
    for (count, told), stop in reversed(order) if is_stack else order:
        part = slice(stop - count, stop)
        rows = codec.decode(coder, count, None if cond is None else cond[part])
        if zlib.crc32(np.ascontiguousarray(rows, np.int32).tobytes()) != told:
            return None
        x[part] = rows
        done += count
        if progress is not None:
            progress(done, header["net_bits"] / total)
    if is_stack:
        first = _random_words(codec.num_bits, header["seed"])
        if not np.array_equal(coder.words(unseal=True), first):
            return None
    return x

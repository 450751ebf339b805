"""`texts:PATH`: short texts that end, such as quotes; each is an example.

Value 0, END, ends a text and fills the rest. An autoregressive model is told so
(`Dataset.end`): padding costs it nothing, and log P of a text is the sum up to and
including its END. Bits per character count the END as a character too.
"""

import collections
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm.data.containers import check_size
from gm.data.dataset import Dataset, Split
from gm.data.files import encode_text
from gm.data.splits import PARTS, complete
from gm.errors import InputError

END = "\n"


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `texts:PATH`: the lines of a UTF-8 file, or the strings of a .json.

    In JSON a text is a string in a list, or the "text" of an object; below the keys
    train, valid and test it belongs to that split. Either may be compressed (.gz). What
    is not split is held out of train.

    Args:
      name: "texts:PATH".
      resolution: characters of a text at most, and one for its END; longer ones are
        left out, and counted in `preprocessing`. None: as many as the longest has.
      data_dir: where else PATH may lie.

    Raises:
      InputError: nothing there, not text, or not enough texts; names the file.
    """
    path = Path(name.removeprefix("texts:")).expanduser()
    if data_dir is not None and not path.exists():
        path = Path(data_dir).expanduser() / path
    if not path.is_file():
        raise InputError(
            f"--dataset={name}: there is no file {path}; give texts:PATH of a file with "
            "a text in each line, or of a .json with texts"
        )
    texts = _read(path)
    longest = max((len(t) for part in texts.values() for t in part), default=0)
    length = resolution or longest + 1
    kept = {k: [t for t in part if len(t) < length] for k, part in texts.items()}
    left = sum(map(len, texts.values())) - sum(map(len, kept.values()))
    kept = {part: t for part, t in kept.items() if t}
    symbols = END + "".join(
        sorted({c for part in kept.values() for t in part for c in t})
    )
    if len(symbols) < 3:
        raise InputError(
            f"{path}: no texts of two different characters"
            + (f" and less than {length} of them (--resolution)" if left else "")
        )
    given = {
        k: (encode_lines(t, length, symbols, str(path)), None) for k, t in kept.items()
    }
    digests = [t.encode() for t in kept.get("train", ())]
    splits, rule = complete(given, digests, str(path))
    return Dataset(
        name=name,
        shape=(length,),
        num_values=len(symbols),
        unit="object",
        preprocessing=f"{rule}; left out, of {length} characters or more: {left}",
        symbols=symbols,
        end=0,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
    )


def _read(path: Path) -> dict[str, list[str]]:
    """The texts of each part; all are of train where the file does not split them."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        check_size(len(data), path)
        text = data.decode()
        if ".json" not in path.suffixes:
            return {"train": [line for line in text.splitlines() if line.strip()]}
        found = collections.defaultdict(list)
        for part, string in _strings(json.loads(text), ""):
            found[part].append(string)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not UTF-8 text or JSON ({error})") from None
    broken = next((s for part in found.values() for s in part if END in s), None)
    if broken is not None:
        raise InputError(
            f"{path}: the text {broken[:40]!r} has a line break, which ends a text; "
            "replace it"
        )
    if "" in found and len(found) > 1:
        raise InputError(
            f"{path}: some texts are in train, valid or test, some are not"
        )
    return {part or "train": [s for s in t if s] for part, t in found.items()}


def _strings(
    node: Any, part: str, *, listed: bool = False
) -> Iterator[tuple[str, str]]:
    """(part, text) of all texts in JSON."""
    if isinstance(node, str) and listed:
        yield part, node
    elif isinstance(node, list):
        for item in node:
            yield from _strings(item, part, listed=True)
    elif isinstance(node, dict):
        for key, item in node.items():
            inside = key if key in PARTS else part
            yield from _strings(item, inside, listed=key == "text")


def encode_lines(
    texts: Sequence[str], length: int, symbols: str, where: str
) -> np.ndarray:
    """Integers [N, length]: the characters of each text, then 0.

    Raises:
      InputError: a character that is none of `symbols`; begins with `where`.
    """
    whole = "".join(t.ljust(length, END) for t in texts)
    dtype = np.uint8 if len(symbols) <= 256 else np.int32
    return encode_text(whole, symbols, where).astype(dtype).reshape(-1, length)


def decode(x: np.ndarray, symbols: str, end: str = END) -> list[str]:
    """The texts of integers [N, L], each up to its end."""
    return ["".join(symbols[v] for v in row).split(end)[0] for row in np.asarray(x)]


def num_characters(split: Split, end: int, block: int = 4096) -> int:
    """Characters of the documents of a split, the ends included."""
    total = 0
    for start in range(0, len(split), block):
        x, _ = split.batch(np.arange(start, min(start + block, len(split))))
        total += int((np.argmax(x == end, axis=1) + 1).sum())
    return total


def sentences(text: str) -> list[str]:
    """The whole sentences of a piece of running text, each on one line.

    One ends with . ! or ? before a space, or at an empty line. What the piece begins and
    ends with may be part of one only and is left out.
    """
    parts = re.split(r"(?<=[.!?])\s+|\n\s*\n", text)[1:-1]
    return [" ".join(part.split()) for part in parts if part.strip()]


def is_full(x: np.ndarray, end: int) -> np.ndarray:
    """Whether texts [N, L] fill all their room, L - 1 symbols, without an end: bool [N].

    There the end is certain, so a text may have been cut off.
    """
    return ~(np.asarray(x)[:, :-1] == end).any(axis=1)


def novelty(texts: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """What share of generated texts occur among known ones, and how many differ.

    Returns:
      count, of the texts; in_train: the share that equal a known text;
      in_train_standard_error: of a share of so many draws; distinct: how many differ;
      mean_length, in characters. Of no texts it is the count alone.
    """
    if not texts:
        return {"count": 0}
    seen = set(known)
    share = float(np.mean([t in seen for t in texts]))
    return {
        "count": len(texts),
        "in_train": share,
        "in_train_standard_error": math.sqrt(share * (1 - share) / len(texts)),
        "distinct": len(set(texts)),
        "mean_length": float(np.mean([len(t) for t in texts])),
    }

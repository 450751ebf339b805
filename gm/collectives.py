"""What devices send each other in a step, read from the program that XLA compiled."""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BYTES = {"pred": 1}  # of types whose name does not say their bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_RESULT = re.compile(r"= (.*?) ([a-z][a-z\-]*?)(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|\w+_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a device moves by one kind of collective in a step."""

    operations: float = 0.0
    payload: float = 0.0  # bytes of the results
    wire: float = 0.0  # bytes that a ring sends from each device

    def __add__(self, other: "Moved") -> "Moved":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Moved(*(a + b for a, b in pairs))

    def times(self, factor: float) -> "Moved":
        """The same, so many times."""
        return Moved(*(factor * value for value in dataclasses.astuple(self)))


def _size(text: str) -> float:
    """Bytes of the arrays in a type such as `(f32[8,4]{1,0}, s32[])`."""
    total = 0.0
    for kind, shape in _ARRAY.findall(text):
        digits = re.search(r"\d+", kind)
        each = int(digits[0]) / 8 if digits else _BYTES.get(kind, 0)
        total += each * math.prod(int(n) for n in shape.split(",") if n)
    return total


def _started(kind: str, text: str) -> str:
    """The type of what a start will have moved, of the type that it has itself.

    It is the same for an all-reduce, and else (operands, results, more).
    """
    if kind == "all-reduce":
        return text
    depth, parts = 0, [""]
    for letter in text.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts[1] if len(parts) > 1 else text


def _moved(kind: str, line: str, payload: float, devices: int) -> Moved:
    found = _GROUPS.search(line)
    group = devices
    if found and (found[1] or found[2]):
        group = len(found[1].split(",")) if found[1] else int(found[2])
    if group == 1 and kind != "collective-permute":
        return Moved()
    # Per byte of the result, on a ring (Thakur et al. 2005).
    factor = {
        "all-reduce": 2 * (group - 1) / group,
        "all-gather": (group - 1) / group,
        "reduce-scatter": group - 1,
        "all-to-all": (group - 1) / group,
    }.get(kind, 1.0)
    return Moved(1, payload, factor * payload)


def count_collectives(text: str, devices: int) -> dict[str, Moved]:
    """What each device moves, by kind, when a compiled program runs once.

    Args:
      text: HLO, as `compiled.as_text()` gives it; what a loop holds counts as often as
        XLA says that it runs.
      devices: on which it runs.
    """
    own: dict[str, dict[str, Moved]] = defaultdict(lambda: defaultdict(Moved))
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    here = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            here = header[2]
            entry = here if header[1] else entry
            continue
        result = _RESULT.search(line)
        if not result:
            continue
        if result[2] in KINDS:
            payload = _size(_started(result[2], result[1]) if result[3] else result[1])
            own[here][result[2]] += _moved(result[2], line, payload, devices)
            continue
        trips = _TRIPS.search(line)
        times = int(trips[1]) if trips and result[2] == "while" else 1
        for names in _CALLED.findall(line):
            calls[here] += [(n.strip().lstrip("%"), times) for n in names.split(",")]

    def total(name):
        found = dict(own[name])
        for called, times in calls[name]:
            for kind, moved in total(called).items():
                found[kind] = found.get(kind, Moved()) + moved.times(times)
        return found

    return total(entry)

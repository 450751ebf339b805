"""`sayings`: proverbs that nobody said, from a grammar whose entropy is known.

A probabilistic context-free grammar without recursion. It is unambiguous (every
sentence has one derivation; `expand` refuses to build a table otherwise), so that the
entropy of a sentence is that of its derivation (Grenander 1976):

  H(A) = sum over the options i of A of  p_i (-log p_i + sum of H(B), B in option i).
"""

import functools
import itertools
import math
import string
from collections.abc import Sequence

import numpy as np

from gm.data.dataset import ArraySplit, Dataset, Support
from gm.errors import InputError

END = "\n"  # value 0: ends a sentence and fills the rest
# symbol: options with their weights; {name} stands for a symbol.
GRAMMAR = {
    "sentence": "5 {saying} | 3 {saying}, says the {speaker}",
    "speaker": "9 {trade} | 4 old {trade} | 2 young {trade} | 1 blind {trade}",
    "trade": """9 miller | 7 sailor | 6 shepherd | 5 weaver | 4 baker | 3 gardener |
        2 fiddler | 2 tinker | 1 ferryman | 1 beekeeper""",
    "saying": """6 the {old} {fox} {deed} | 5 a {warm} {house} makes a {glad} {guest} |
        6 those who {sow} {early} will {reap} {late} | 4 never {sell} before {time} |
        7 better {little} {with} than {much} {without} | 5 when {sign}, {advice} |
        3 even the {tall} {oak} {humble}""",
    "old": """9 old | 7 wise | 5 quiet | 4 patient | 3 hungry | 3 grey | 2 lame |
        1 sleepy""",
    "fox": """9 fox | 8 owl | 6 hare | 5 bear | 4 crow | 3 goat | 3 heron | 2 badger |
        1 otter | 1 magpie""",
    "deed": """8 fears no {rain} | 5 knows every {path} | 4 keeps a dry {den} |
        4 is never late for {supper} | 3 walks softly in {season}""",
    "rain": "8 rain | 6 wind | 4 snow | 3 thunder | 2 frost | 1 dark night",
    "path": "6 path | 4 ford | 3 hedge | 2 hollow tree | 1 gap in the fence",
    "den": "6 den | 4 cellar | 2 corner | 1 pair of boots",
    "supper": "6 supper | 3 a feast | 2 the harvest | 1 a wedding",
    "season": "6 winter | 4 spring | 3 autumn | 1 summer",
    "warm": "8 warm | 6 clean | 5 quiet | 4 small | 3 bright | 2 tidy",
    "house": "8 hearth | 7 house | 5 kitchen | 4 garden | 2 bed | 1 doorstep",
    "glad": "8 merry | 6 gentle | 5 grateful | 3 patient | 2 faithful | 1 talkative",
    "guest": "8 guest | 7 heart | 5 child | 4 friend | 3 neighbour | 1 traveller",
    "sow": """9 plant a tree | 7 mend the roof | 6 share their bread | 5 gather wood |
        4 feed the birds | 3 keep their word | 2 learn a trade | 1 tune the fiddle""",
    "early": """8 in spring | 6 in fair weather | 5 in youth | 3 before noon |
        2 without complaint | 1 with a song""",
    "reap": """8 sleep well | 6 sit in the shade | 5 be warm | 4 find an open door |
        2 hear good news | 1 dance""",
    "late": "8 in winter | 6 in old age | 4 in the storm | 3 at night | 1 in the end",
    "sell": "8 {praise} {honey} | 3 {praise} {honey} to a {buyer}",
    "praise": "8 sell | 6 praise | 5 promise | 2 show | 1 sing of",
    "honey": """8 the honey | 6 the harvest | 5 the eggs | 4 the wool | 3 the apples |
        1 the fish""",
    "buyer": "6 stranger | 4 king | 3 friend | 1 cat",
    "time": """8 the bees come home | 6 the sun is up | 5 the barn is full |
        4 the frost is gone | 3 the nets are dry | 1 the scales are clean""",
    "little": """8 dry bread | 7 thin soup | 6 a small fire | 4 a straw bed |
        3 a borrowed coat | 2 a slow mule | 1 a leaking roof""",
    "with": "8 in peace | 6 at home | 5 among friends | 3 with a song | 1 with honour",
    "much": """8 roast goose | 6 red wine | 5 a silk coat | 4 a feather bed |
        3 a fast horse | 2 a full purse | 1 a palace""",
    "without": """8 in a quarrel | 6 among strangers | 4 far away | 2 with a lie |
        1 with a heavy heart""",
    "sign": """8 the wind turns | 6 the river rises | 5 the fire burns low |
        4 the road divides | 3 the moon is thin | 3 the swallows fly low |
        2 the well is dry | 1 the guests are late""",
    "advice": "8 {do} | 5 {do} and {wait}",
    "do": """8 mend your sails | 6 close the shutters | 5 save your breath |
        4 fill your jars | 3 light a lamp | 2 trust your feet | 1 tell a story""",
    "wait": """8 wait for morning | 6 say little | 4 go gently | 2 ask the ferryman |
        1 sing""",
    "tall": "8 tallest | 6 oldest | 4 proudest | 1 loneliest",
    "oak": "8 oak | 6 tower | 4 pine | 3 mountain | 1 lighthouse",
    "humble": """8 bends to the wind | 6 was small once | 4 must feel the rain |
        2 begins in the mud | 1 needs a friend""",
}


@functools.cache
def _options(symbol: str) -> list[tuple[float, list[str], list[str]]]:
    """Returns the options of a symbol: probability, symbols, and the text around them.

    There is one piece of text more than there are symbols.
    """
    parsed = []
    for option in GRAMMAR[symbol].split("|"):
        weight, text = " ".join(option.split()).split(" ", 1)
        fields = list(string.Formatter().parse(text))
        symbols = [name for _, name, _, _ in fields if name]
        texts = [before for before, _, _, _ in fields]
        texts += [""] * (len(symbols) + 1 - len(texts))
        parsed.append((int(weight), symbols, texts))
    total = sum(weight for weight, _, _ in parsed)
    return [(weight / total, symbols, texts) for weight, symbols, texts in parsed]


@functools.cache
def expand(symbol: str = "sentence") -> dict[str, float]:
    """Returns log P (nats) of every text that a symbol may become.

    Raises:
      ValueError: a text has two derivations, so that the entropy is not theirs.
    """
    table: dict[str, float] = {}
    for p, symbols, texts in _options(symbol):
        for parts in itertools.product(*(expand(name).items() for name in symbols)):
            text = texts[0]
            for (part, _), after in zip(parts, texts[1:], strict=True):
                text += part + after
            if text in table:
                raise ValueError(f"ambiguous: {symbol!r} derives {text!r} twice")
            table[text] = math.log(p) + sum(log_p for _, log_p in parts)
    return table


@functools.cache
def entropy(symbol: str = "sentence") -> float:
    """Returns the entropy, in nats, of what a symbol becomes."""
    return sum(
        p * (sum(entropy(name) for name in symbols) - math.log(p))
        for p, symbols, _ in _options(symbol)
    )


def log_prob(sentences: Sequence[str]) -> np.ndarray:
    """Returns log P of each sentence in nats, float64 [N]; -inf if it is none."""
    table = expand()
    return np.array([table.get(sentence, -math.inf) for sentence in sentences])


@functools.cache
def symbols() -> str:
    """Returns the characters; a value is an index into them, and 0 is END."""
    return END + "".join(sorted(set("".join(expand()))))


def encode(sentences: Sequence[str]) -> np.ndarray:
    """Returns uint8 [N, L], filled with 0 after the end; L = longest sentence + 1."""
    length = max(map(len, expand())) + 1
    values = np.zeros(128, np.uint8)
    values[[ord(c) for c in symbols()]] = np.arange(len(symbols()))
    text = "".join(sentence.ljust(length, END) for sentence in sentences)
    return values[np.frombuffer(text.encode("ascii"), np.uint8)].reshape(-1, length)


def decode(x: np.ndarray) -> list[str]:
    """Returns the sentences of integers [N, L], without what fills them up.

    What is no sentence (no end, or text after it) keeps that and gets log P = -inf.
    """
    lines = ["".join(symbols()[i] for i in row) for row in np.asarray(x)]
    return [s.rstrip(END) if s.endswith(END) else s + END for s in lines]


def _facts(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"grammatical": np.isfinite(log_prob(decode(x)))}


def _forms() -> list[str]:
    """Returns the first word of each form of a saying; no two share it."""
    return [texts[0].split()[0] for _, _, texts in _options("saying")]


def _classes(x: np.ndarray) -> np.ndarray:
    """Returns the form of each saying, int [N]."""
    number = {word: i for i, word in enumerate(_forms())}
    return np.array([number[text.split()[0]] for text in decode(x)], int)


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `sayings`: 20000 / 500 / 2000 independent draws from the grammar."""
    del data_dir  # nothing is read
    if resolution is not None:
        raise InputError(
            f"--resolution={resolution}: {name} has no resolution; leave the flag out"
        )
    sentences = list(expand())
    up_to = np.cumsum(np.exp(list(expand().values())))
    u = np.random.default_rng(0).random(22_500) * up_to[-1]
    x = encode([sentences[i] for i in np.searchsorted(up_to, u, side="right")])
    return Dataset(
        name=name,
        shape=(x.shape[1],),
        num_values=len(symbols()),
        unit="object",
        train=ArraySplit(x[:20_000]),
        valid=ArraySplit(x[20_000:20_500]),
        test=ArraySplit(x[20_500:]),
        entropy_nats=entropy(),
        symbols=symbols(),
        support=Support(
            _facts, _classes, np.array([p for p, _, _ in _options("saying")])
        ),
    )

"""Flags that were tried, with what they gave.

`train --preset=NAME` sets these flags; those given on the command line win. A preset
named DATASET/MODEL is also what `sweep --presets` uses for that cell. `obtained` is what
a run of the preset printed for the test split (seed 0, CPU); another should come near.
NOT_RUN marks configurations, of papers, that were not run to the end.
"""

from typing import Any

from gm.errors import InputError, did_you_mean

NOT_RUN = "not run yet"


def _preset(
    obtained: str, model_fields: dict[str, Any], **flags: Any
) -> dict[str, Any]:
    return {"obtained": obtained, "flags": flags | {"set": model_fields}}


# The cells of scripts/run: about six minutes for all twelve. `digits` has 17 ordered grey
# levels, so logistics say more with less than a table does; over-fitting is the limit.
_QUICK = {
    "digits/made": _preset(
        "1.9554 ± 0.0139 bits/dim",
        dict(one_hot=False, num_mixtures=5, dropout_rate=0.2),
        num_steps=1200,
        ema_decay=0.995,
    ),
    "digits/transformer": _preset(
        "1.9502 ± 0.0121 bits/dim",
        dict(width=64, depth=3, num_mixtures=5, dropout_rate=0.2),
        num_steps=320,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=100,
        ema_decay=0.99,
    ),
    "digits/realnvp": _preset(
        "<= 1.9169 ± 0.0113 bits/dim",
        dict(width=32, depth=1),
        num_steps=250,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=50,
        ema_decay=0.99,
        num_importance_samples=64,
    ),
    "digits/vae": _preset(
        "<= 1.9203 ± 0.0116 bits/dim",
        dict(width=32, one_hot=False, num_mixtures=5, dropout_rate=0.2),
        num_steps=800,
        learning_rate=2e-3,
        ema_decay=0.995,
        num_importance_samples=64,
    ),
    "pocket_cube/made": _preset(
        "28.745 ± 0.028 bits/object",
        dict(depth=2),
        num_steps=1500,
        batch_size=128,
        learning_rate=2e-3,
    ),
    "pocket_cube/transformer": _preset(
        "25.454 ± 0.029 bits/object",
        dict(width=64, depth=3),
        num_steps=1500,
        learning_rate=2e-3,
    ),
    "pocket_cube/realnvp": _preset(
        "<= 52.115 ± 0.018 bits/object",
        dict(width=32),
        num_steps=600,
        batch_size=128,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "pocket_cube/vae": _preset(
        "<= 53.808 ± 0.010 bits/object",
        dict(width=128),
        num_steps=1000,
        batch_size=128,
        num_importance_samples=8,
    ),
    "solids/made": _preset(
        "1146.3 ± 5.9 bits/object",
        dict(width=256),
        num_steps=300,
        learning_rate=2e-3,
        ema_decay=0.99,
    ),
    "solids/transformer": _preset(
        "537.2 ± 4.7 bits/object",
        dict(width=48, depth=2),
        num_steps=80,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=20,
        valid_every=40,
        ema_decay=0.95,
    ),
    "solids/realnvp": _preset(
        "<= 1085.5 ± 3.5 bits/object",
        dict(width=24, depth=1, num_couplings=2),
        num_steps=120,
        batch_size=32,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=60,
        ema_decay=0.97,
        num_importance_samples=4,
    ),
    "solids/vae": _preset(
        "<= 1241.1 ± 5.2 bits/object",
        dict(width=24, num_mixtures=3),
        num_steps=240,
        batch_size=32,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=120,
        ema_decay=0.98,
        num_importance_samples=8,
    ),
}

# With those of pocket_cube and solids above: the cells of scripts/board.
_BOARD = {
    "rubiks_cube/made": _preset(
        "86.846 ± 0.050 bits/object",
        dict(depth=2),
        num_steps=2000,
        batch_size=128,
        learning_rate=2e-3,
    ),
    "rubiks_cube/transformer": _preset(
        "80.238 ± 0.033 bits/object",
        dict(width=64, depth=3),
        num_steps=800,
        learning_rate=2e-3,
    ),
    "rubiks_cube/realnvp": _preset(
        "<= 122.396 ± 0.025 bits/object",
        dict(width=64),
        num_steps=600,
        batch_size=128,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "rubiks_cube/vae": _preset(
        "<= 124.113 ± 0.006 bits/object",
        dict(width=256),
        num_steps=1000,
        batch_size=128,
        num_importance_samples=8,
    ),
    "sayings/made": _preset(
        "70.929 ± 0.772 bits/object",
        dict(width=256),
        num_steps=1500,
        learning_rate=2e-3,
    ),
    "sayings/transformer": _preset(
        "14.775 ± 0.082 bits/object",
        dict(width=64, depth=3),
        num_steps=600,
        learning_rate=3e-3,
    ),
    "sayings/realnvp": _preset(
        "<= 255.142 ± 1.425 bits/object",
        dict(width=64),
        num_steps=500,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "sayings/vae": _preset(
        "<= 146.339 ± 1.273 bits/object",
        dict(width=256, num_latents=64),
        num_steps=1000,
        num_importance_samples=8,
    ),
}

# The floors, and what else there is for `digits`: a minute or less each.
_DIGITS = {
    "digits/independent": _preset(
        "2.4303 ± 0.0100 bits/dim",
        {},
        num_steps=400,
        learning_rate=0.05,
        valid_every=50,
        ema_decay=0.99,
    ),
    "digits/mixture": _preset(
        "2.0714 ± 0.0158 bits/dim",
        dict(num_components=60, num_mixtures=1),
        num_steps=600,
        learning_rate=0.03,
        valid_every=25,
        ema_decay=0.99,
    ),
    "digits/made-fvsbn": _preset(
        "1.9583 ± 0.0143 bits/dim",
        dict(depth=0, one_hot=False, num_mixtures=5),
        num_steps=1000,
        learning_rate=5e-3,
        valid_every=100,
        ema_decay=0.995,
    ),
    "digits/made_ensemble": _preset(
        "1.9146 ± 0.0121 bits/dim",
        dict(one_hot=False, num_mixtures=5, dropout_rate=0.1),
        num_steps=1500,
        learning_rate=2e-3,
        valid_every=250,
        ema_decay=0.995,
    ),
    "digits/nade": _preset(
        "1.8717 ± 0.0137 bits/dim",
        dict(width=256, one_hot=False, num_mixtures=5, dropout_rate=0.2),
        num_steps=1000,
        learning_rate=5e-3,
        valid_every=100,
        ema_decay=0.995,
    ),
}

_LONGER = {
    # All but the corner twist is learnt at 23.394 bits = floor + log2 3.
    "pocket_cube/transformer-long": _preset(
        "23.532 ± 0.011 bits/object, 450 s on 2 cores",
        dict(width=96),
        num_steps=4500,
        learning_rate=2e-3,
        valid_every=500,
        save_every=2000,
    ),
    "binarized_mnist/made": _preset(
        "91.283 ± 0.246 nats, 1000 s on a shared core",
        dict(width=1500, dropout_rate=0.1),
        num_steps=16000,
        batch_size=100,
        valid_every=1000,
        save_every=5000,
        log_every=500,
        num_valid_examples=10000,
    ),
}


def _hundred_epochs(model_fields: dict[str, Any], **flags: Any) -> dict[str, Any]:
    """A model of binarized MNIST, 50,000 training images, that was not run."""
    default = dict(num_steps=50000, batch_size=100, valid_every=1000, save_every=5000)
    return _preset(
        NOT_RUN, model_fields, **(default | dict(num_valid_examples=10000) | flags)
    )


# Sizes of papers; the optimiser is ours.
_PAPERS = {
    # McLachlan & Peel's mixture of Bernoullis as in Larochelle & Murray (2011).
    "binarized_mnist/mixture": _hundred_epochs(
        dict(num_components=500), learning_rate=0.02
    ),
    "binarized_mnist/made-fvsbn": _hundred_epochs(dict(depth=0)),
    "binarized_mnist/made-500": _hundred_epochs(dict(width=500)),
    # 32 masks as in Germain et al. (2015), who have 8000 hidden units.
    "binarized_mnist/made_ensemble": _hundred_epochs(dict(width=500, num_orders=32)),
    "binarized_mnist/nade": _hundred_epochs(dict(width=500)),
}

PRESETS: dict[str, dict[str, Any]] = {
    **_QUICK,
    **_BOARD,
    **_DIGITS,
    **_LONGER,
    **_PAPERS,
}
for _name, _values in PRESETS.items():
    _dataset, _model = _name.rsplit("/", 1)
    _values["flags"] |= {"dataset": _dataset, "model": _model.split("-")[0]}


def find(name: str) -> dict[str, Any]:
    """Returns a preset; InputError lists the names."""
    if name not in PRESETS:
        raise InputError(
            f"--preset={name}: unknown{did_you_mean(name, PRESETS)} "
            f"(one of {', '.join(PRESETS)})"
        )
    return PRESETS[name]

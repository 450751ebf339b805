"""Flags that were tried, with what they gave.

`train --preset=NAME` sets these flags; those given on the command line win. A preset
named DATASET/MODEL is also what `sweep --presets` uses for that cell. `obtained` is what
a run of the preset printed for the test split (seed 0, CPU); another should come near.
"""

from typing import Any

from gm.errors import InputError, did_you_mean


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
        "2.0266 ± 0.0129 bits/dim",
        dict(width=64, depth=3, num_mixtures=5, dropout_rate=0.2),
        num_steps=200,
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

_LONGER = {
    # All but the corner twist is learnt at 23.394 bits = floor + log2 3.
    "pocket_cube/transformer-long": _preset(
        "23.532 ± 0.011 bits/object after 935 s of training on a shared core",
        dict(width=96),
        num_steps=4500,
        learning_rate=2e-3,
        valid_every=500,
        save_every=2000,
    ),
    "binarized_mnist/made": _preset(
        "91.283 ± 0.246 nats after 1085 s of training on a shared core",
        dict(width=1500, dropout_rate=0.1),
        num_steps=16000,
        batch_size=100,
        valid_every=1000,
        save_every=5000,
        log_every=500,
        num_valid_examples=10000,
    ),
}

PRESETS: dict[str, dict[str, Any]] = {**_QUICK, **_LONGER}
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

"""Presets of flows; `preset` in the package says what one is."""

from experiments.presets.preset import NOT_RUN, preset

PRESETS = {
    "digits/realnvp": preset(
        "<= 1.9169 ± 0.0113 bits/dim",
        dict(width=32, depth=1),
        num_steps=250,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=50,
        ema_decay=0.99,
        num_importance_samples=64,
    ),
    "pocket_cube/realnvp": preset(
        "<= 52.115 ± 0.018 bits/object",
        dict(width=32),
        num_steps=600,
        batch_size=128,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "solids/realnvp": preset(
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
    "rubiks_cube/realnvp": preset(
        "<= 122.396 ± 0.025 bits/object",
        dict(width=64),
        num_steps=600,
        batch_size=128,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "sayings/realnvp": preset(
        "<= 255.142 ± 1.425 bits/object",
        dict(width=64),
        num_steps=500,
        learning_rate=2e-3,
        num_importance_samples=8,
    ),
    "digits/idf": preset(
        NOT_RUN,
        dict(width=32, depth=1, dropout_rate=0.2),
        num_steps=600,
        learning_rate=2e-3,
        warmup_steps=50,
        valid_every=100,
        ema_decay=0.99,
    ),
}

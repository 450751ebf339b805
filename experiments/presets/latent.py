"""Presets of latent-variable models; `preset` in the package says what one is."""

from experiments.presets.preset import hundred_epochs, preset

PRESETS = {
    "digits/mixture": preset(
        "2.0714 ± 0.0158 bits/dim",
        dict(num_components=60, num_mixtures=1),
        num_steps=600,
        learning_rate=0.03,
        valid_every=25,
        ema_decay=0.99,
    ),
    # McLachlan & Peel's mixture of Bernoullis as in Larochelle & Murray (2011).
    "binarized_mnist/mixture": hundred_epochs(
        dict(num_components=500), learning_rate=0.02
    ),
    "digits/vae": preset(
        "<= 1.9203 ± 0.0116 bits/dim",
        dict(width=32, one_hot=False, num_mixtures=5, dropout_rate=0.2),
        num_steps=800,
        learning_rate=2e-3,
        ema_decay=0.995,
        num_importance_samples=64,
    ),
    "pocket_cube/vae": preset(
        "<= 53.808 ± 0.010 bits/object",
        dict(width=128),
        num_steps=1000,
        batch_size=128,
        num_importance_samples=8,
    ),
    "solids/vae": preset(
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
    "rubiks_cube/vae": preset(
        "<= 124.113 ± 0.006 bits/object",
        dict(width=256),
        num_steps=1000,
        batch_size=128,
        num_importance_samples=8,
    ),
    "sayings/vae": preset(
        "<= 146.339 ± 1.273 bits/object",
        dict(width=256, num_latents=64),
        num_steps=1000,
        num_importance_samples=8,
    ),
}

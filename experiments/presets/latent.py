"""Presets of latent-variable models; `preset` in the package says what one is."""

from experiments.presets.preset import NOT_RUN, hundred_epochs, preset

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
    # Meant for 2 h of training on 2 CPU cores; 500 draws for the test split take as long.
    "binarized_mnist/vae": hundred_epochs(
        dict(width=32, num_latents=40, dropout_rate=0.1),
        num_steps=30000,
        num_importance_samples=500,
    ),
    # Burda et al. (2016): 50 draws of each latent in the objective, one layer of 50.
    "binarized_mnist/vae-iwae": hundred_epochs(
        dict(width=200, num_latents=50, num_train_samples=50, dropout_rate=0.1),
        batch_size=20,
        num_steps=250000,
        valid_every=5000,
        num_importance_samples=5000,
    ),
    "sayings/vae": preset(
        "<= 146.339 ± 1.273 bits/object",
        dict(width=256, num_latents=64),
        num_steps=1000,
        num_importance_samples=8,
    ),
    # Child (2021), hps.py: cifar10. Trained there on 2 GPUs of batch 16, and steps of
    # gradient norm above 400 were skipped.
    "cifar10/vdvae": preset(
        NOT_RUN,
        dict(
            width=384,
            num_latents=16,
            num_mixtures=10,
            encoder_blocks="32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
            decoder_blocks="1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
        ),
        num_steps=1100000,
        batch_size=32,
        learning_rate=2e-4,
        weight_decay=0.01,
        warmup_steps=100,
        schedule="constant",
        clip_norm=200.0,
        ema_decay=0.9999,
        valid_every=15000,
        save_every=15000,
    ),
    "pocket_cube/vdvae": preset(
        "<= 53.9917 ± 0.0036 bits/object",
        dict(width=64, num_latents=4),
        num_steps=500,
        batch_size=128,
        num_importance_samples=8,
    ),
    # Meant for 2 h of training on 2 CPU cores; 500 draws for the test split take as long.
    "binarized_mnist/vdvae": hundred_epochs(
        dict(
            width=32,
            num_latents=8,
            init_scale=2.0,
            encoder_blocks="28x1,28d2,14x2,14d2,7x2,7d7,1x1",
            decoder_blocks="1x1,7m1,7x3,14m7,14x2,28m14",
            dropout_rate=0.1,
        ),
        num_steps=15000,
        batch_size=64,
        num_importance_samples=500,
    ),
}

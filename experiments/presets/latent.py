"""Presets of latent-variable models; `preset` in the package says what one is."""

from experiments.presets.preset import NOT_RUN, hundred_epochs, preset

PRESETS = {
    "digits/vdm": preset(
        "<= 1.9159 ± 0.0130 bits/dim",
        dict(width=32, depth=2, dropout_rate=0.1, num_eval_times=32),
        num_steps=1000,
        learning_rate=8e-3,
        ema_decay=0.99,
    ),
    "solids/vdm": preset(
        "<= 800.3 ± 5.3 bits/object",
        dict(width=16, depth=2, num_sample_steps=16),
        num_steps=200,
        batch_size=32,
        learning_rate=0.01,
        warmup_steps=20,
        valid_every=100,
        ema_decay=0.97,
        num_valid_examples=200,
    ),
    # The authors' code: 2.637 bits/dim after 10 million updates.
    "cifar10/vdm": preset(
        NOT_RUN,
        dict(width=128, depth=32, dropout_rate=0.1),
        num_steps=10_000_000,
        batch_size=128,
        learning_rate=2e-4,
        schedule="constant",
        weight_decay=0.01,
        ema_decay=0.9999,
        valid_every=10_000,
        save_every=10_000,
    ),
    "digits/vqvae": preset(
        "<= 2.0733 ± 0.0144 bits/dim",
        dict(
            width=32,
            depth=1,
            max_halvings=2,
            codebook_size=32,
            code_dim=4,
            prior_width=32,
            dropout_rate=0.2,
            one_hot=False,
            num_mixtures=5,
        ),
        num_steps=600,
        learning_rate=3e-3,
        warmup_steps=50,
        valid_every=50,
        ema_decay=0.99,
    ),
    "solids/vqvae": preset(
        "<= 996.5 ± 5.5 bits/object",
        dict(
            width=32,
            depth=1,
            max_halvings=3,
            num_codes=2,
            prior_width=32,
            num_mixtures=3,
        ),
        num_steps=500,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=50,
        valid_every=100,
        ema_decay=0.98,
    ),
    # 8 x 8 x 10 codes of 512, as van den Oord et al. (2017, section 4.1); they have a
    # uniform prior there, and 4.67 bits/dim.
    "cifar10/vqvae": preset(
        NOT_RUN,
        dict(
            width=256,
            max_halvings=2,
            num_codes=10,
            codebook_size=512,
            code_dim=64,
            prior_width=256,
            prior_depth=6,
            prior_heads=8,
        ),
        num_steps=250_000,
        batch_size=128,
        learning_rate=2e-4,
        valid_every=5000,
        save_every=5000,
    ),
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
    # Kingma & Welling's size of latents; 2 h on 2 CPU cores is the budget.
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
    # 2 h on 2 CPU cores is the budget.
    "binarized_mnist/vdvae": hundred_epochs(
        dict(
            width=64,
            num_latents=8,
            encoder_blocks="28x1,28d2,14x2,14d2,7x2,7d7,1x1",
            decoder_blocks="1x1,7m1,7x3,14m7,14x2,28m14",
            dropout_rate=0.1,
        ),
        num_steps=15000,
        batch_size=64,
        num_importance_samples=500,
    ),
}

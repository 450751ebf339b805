"""Presets of `multiscale`; `preset` in the package says what one is."""

from experiments.presets.preset import NOT_RUN, preset

PRESETS = {
    "digits/multiscale": preset(
        "1.8587 ± 0.0129 bits/dim",
        dict(
            base_size=4,
            base_fields="depth=2,width=24,one_hot=False,num_mixtures=5,dropout_rate=0.2",
            depth=2,
            one_hot=False,
            num_mixtures=5,
            dropout_rate=0.2,
        ),
        num_steps=600,
        learning_rate=3e-3,
        valid_every=100,
        ema_decay=0.99,
    ),
    # Half of the symbols are independent given the other half, which a cube is not.
    "pocket_cube/multiscale": preset(
        "46.7985 ± 0.0413 bits/object",
        dict(base_size=12, base_fields="width=48,kernel_size=9,head_width=64"),
        num_steps=600,
        batch_size=128,
        learning_rate=3e-3,
        ema_decay=0.99,
    ),
    # The same at any --resolution, up to 1024 pixels on a CPU.
    "solids/multiscale": preset(
        "534.433 ± 3.368 bits/object",
        dict(width=16, depth=2, base_fields="width=16,depth=2"),
        num_steps=300,
        batch_size=8,
        learning_rate=5e-3,
        valid_every=150,
        num_valid_examples=64,
        ema_decay=0.98,
    ),
    # Reed et al. (2017) report 3.70 bits/dim, from 4 x 4 pixels; the sizes are ours.
    "downsampled_imagenet/64x64/multiscale": preset(
        NOT_RUN,
        dict(
            base_size=4,
            base_fields="width=128,depth=8,head_width=256",
            width=128,
            depth=8,
        ),
        num_steps=200000,
        batch_size=128,
        learning_rate=5e-4,
        precision="bfloat16",
        valid_every=5000,
        save_every=5000,
        num_valid_examples=2000,
    ),
}

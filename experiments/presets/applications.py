"""Presets of APPLICATIONS.md: real images at budgets of CPU minutes, and solids.

They are of images alone; --conditional and --dataset=translate:TASK:NAME, given beside
them, make a model of classes or of pairs of one.
"""

from experiments.presets.preset import NOT_RUN, preset

PRESETS = {
    # At 14 x 14 nearly all of the image lies in the receptive field. Given the class 427
    # examples a CPU second: 30 minutes of a core.
    "mnist/pixelcnn-14x14": preset(
        NOT_RUN,
        dict(num_mixtures=5),
        resolution=14,
        num_steps=12000,
        batch_size=64,
        learning_rate=2e-3,
        valid_every=1000,
        save_every=2000,
        num_valid_examples=1000,
    ),
    # A table, since the edges of a render have few grey values; 64 pixels leave time for
    # many passes over the 8192 renders.
    "solids/pixelcnn-8x8": preset(
        NOT_RUN,
        dict(width=48, head_width=128, num_mixtures=0),
        resolution=8,
        num_steps=12000,
        batch_size=64,
        learning_rate=3e-3,
        valid_every=1000,
        save_every=1000,
        ema_decay=0.995,
        num_valid_examples=300,
    ),
    # Given the source of superres:4 61 examples a CPU second: 52 minutes of a core.
    "cifar10/pixelcnn-small": preset(
        NOT_RUN,
        dict(num_mixtures=5),
        num_steps=6000,
        batch_size=32,
        learning_rate=2e-3,
        valid_every=1000,
        save_every=1000,
        num_valid_examples=500,
    ),
    # 177 examples a CPU second: 48 minutes of a core.
    "cifar10/glow-small": preset(
        NOT_RUN,
        dict(width=64, depth=8, num_scales=3),
        num_steps=8000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=500,
        valid_every=1000,
        save_every=1000,
        num_valid_examples=500,
    ),
}

"""Presets of APPLICATIONS.md: real images at budgets of CPU minutes, and solids.

They are of images alone; --conditional and --dataset=translate:TASK:NAME, given beside
them, make a model of classes or of pairs of one.
"""

from experiments.presets.preset import preset

PRESETS = {
    # At 14 x 14 nearly all of the image lies in the receptive field. Given the class 427
    # examples a CPU second: 30 minutes of a core.
    "mnist/pixelcnn-14x14": preset(
        "1.7726 ± 0.0041 bits/dim given the class",
        dict(num_mixtures=5),
        resolution=14,
        num_steps=12000,
        batch_size=64,
        learning_rate=2e-3,
        valid_every=1000,
        save_every=2000,
        num_valid_examples=1000,
    ),
    # 32 prototypes of each class: samples of the class that was asked for, in noise.
    "mnist/gtm-14x14": preset(
        "2.2616 ± 0.0059 bits/dim given the class",
        dict(num_components=32, num_mixtures=1, depth=1),
        resolution=14,
        num_steps=2000,
        batch_size=64,
        learning_rate=5e-3,
        valid_every=500,
        ema_decay=0.995,
        num_valid_examples=500,
    ),
    # 16 points suffice for the 8 or 16 angles that are left given the dimensions.
    "solids/gtm-8x8": preset(
        "54.566 ± 0.609 bits/object given the dimensions",
        dict(num_mixtures=1),
        resolution=8,
        num_steps=20000,
        batch_size=64,
        learning_rate=5e-3,
        valid_every=2000,
        save_every=2000,
        ema_decay=0.995,
        num_valid_examples=300,
    ),
    # 48,000 images, given a source 61 to 100 of them a CPU second; far from converged.
    "cifar10/pixelcnn-small": preset(
        "3.5627 ± 0.0061 bits/dim given the grey levels",
        dict(num_mixtures=5),
        num_steps=1500,
        batch_size=32,
        learning_rate=2e-3,
        valid_every=1000,
        save_every=1000,
        num_valid_examples=500,
    ),
    # 64,000 images, 177 of them a CPU second; far from converged.
    "cifar10/glow-small": preset(
        "<= 4.4755 ± 0.0054 bits/dim",
        dict(width=64, depth=8, num_scales=3),
        num_steps=1000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=200,
        valid_every=1000,
        save_every=1000,
        num_valid_examples=500,
    ),
}

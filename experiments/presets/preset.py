"""How a preset is written down."""

from typing import Any

NOT_RUN = "not run yet"


def preset(
    obtained: str,
    model_fields: dict[str, Any],
    *,
    published: str = "",
    measured: str = "",
    curve: dict[int, float] | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Flags that were tried, with what they gave.

    Args:
      obtained: what a run printed for the test split (seed 0, CPU), or NOT_RUN.
      model_fields: what --set says.
      published: the model of published.json whose number is the target.
      measured: of a number on real data, its cost: commit, seeds, time, device.
      curve: bits/dim on the validation examples that the run had after so many steps;
        `train` shows them beside its own.
      **flags: of `train`.
    """
    about = {"obtained": obtained, "published": published, "measured": measured}
    return about | {"curve": curve or {}, "flags": flags | {"set": model_fields}}


def static_mnist(model_fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """On static binarized MNIST, by default for 100 epochs of its 50,000 images."""
    given: dict[str, Any] = dict(
        obtained=NOT_RUN,
        num_steps=50000,
        batch_size=100,
        valid_every=1000,
        save_every=5000,
        num_valid_examples=10000,
    )
    return preset(model_fields=model_fields, **(given | changes))

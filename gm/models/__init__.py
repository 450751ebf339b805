"""One file per model; `--model=NAME` imports gm.models.NAME."""

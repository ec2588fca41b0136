"""The columns of `results.csv`, which has one row per measured number."""

COLUMNS = (
    "experiment", "group", "setting", "seed", "step", "site", "probe", "metric", "feature", "other", "at", "split",
    "value", "reason",
)  # fmt: skip

"""The columns of `results.csv`: one row for each number, whoever measured it."""

COLUMNS = (
    "experiment", "group", "setting", "seed", "step", "site", "probe", "metric", "feature", "other", "at", "split",
    "value", "reason",
)  # fmt: skip

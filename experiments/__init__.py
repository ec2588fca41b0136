"""The experiments: commands (`run`, `benchmark`), the claim families in `claims`, and the committed results."""

"""Off-the-shelf rewards as basis columns: e(x, y) ∈ R^C, one number a column (`encoder.kind: columns`)."""

"""Quantiles behind 95 % intervals; free of torch, so that whoever only reads rows doesn't wait for it."""

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution

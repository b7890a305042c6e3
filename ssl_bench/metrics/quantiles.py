"""Quantiles behind 95 % intervals; without torch, so that reading rows doesn't import it."""

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution

"""Reference training scripts, one folder per system of the papers; run one with ``python -m``."""

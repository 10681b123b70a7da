"""Tests see no cache, figures or results but their own, and run without a network."""
import os, tempfile

for name in ("CACHE", "FIGURES", "RESULTS"):
    folder = f"FAIRNESS_REPAIR_{name}"
    if folder not in os.environ: os.environ[folder] = tempfile.mkdtemp(prefix=f"fairness_repair-{name.lower()}-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

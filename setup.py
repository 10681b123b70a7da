"Find the packages: pyproject.toml cannot say `all that are found, and the folder data/`."
from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["fairness_repair", "fairness_repair.*"]), "fairness_repair.data"])

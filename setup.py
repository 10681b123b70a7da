"Find the packages; in the wheel the folder data/ is `fairness_repair.data`, without the recorded results."
from setuptools import find_packages, setup

folders = ("tiny", "tiny-equal", "tiny-deep", "price-tag", "adult", "audit", "paper")
setup(
    packages=[*find_packages(include=["fairness_repair", "fairness_repair.*"]), "fairness_repair.data"],
    package_dir={"fairness_repair.data": "data"},
    package_data={"fairness_repair.data": ["registry.csv", "*.md", *(f"{folder}/*" for folder in folders)]},
)

"""Installs rscmd_ros and rscmd_model; colcon calls this, as it does for every ament_python package."""

from glob import glob
from xml.etree import ElementTree

from setuptools import find_packages, setup

NAME = "rscmd_ros"
# One place for the version and the licence.
manifest = ElementTree.parse("package.xml").getroot()

setup(
    name=NAME,
    version=manifest.findtext("version"),
    description=" ".join((manifest.findtext("description") or "").split()),
    license=manifest.findtext("license"),
    packages=find_packages(include=["rscmd_model", "rscmd_model.*", "rscmd_ros", "rscmd_ros.*"]),
    package_data={"rscmd_model.datasets": ["splits/*.txt"]},
    python_requires=">=3.10",
    install_requires=["setuptools"],
    zip_safe=False,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*"))),
    ],
    entry_points={
        "console_scripts": [
            "detector_node = rscmd_ros.detector_node:main",
            "evaluate_bag = rscmd_ros.evaluate_bag:cli",
            "make_bag = rscmd_ros.make_bag:cli",
            "annotations = rscmd_ros.annotations:cli",
        ]
    },
)

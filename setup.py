"""Installs rscmd_ros and rscmd_model; colcon calls this, as it does for every ament_python package.

A distribution's colcon runs on the system's Python and would have every installed command run on it too, where torch
is not. So while a virtual environment is active, the commands get its Python, and keep it in shells without it.
"""

import os
from glob import glob
from xml.etree import ElementTree

from setuptools import find_packages, setup
from setuptools.command.develop import develop

NAME = "rscmd_ros"
# One place for the version and the licence.
manifest = ElementTree.parse("package.xml").getroot()
active = os.environ.get("VIRTUAL_ENV")
python = os.path.join(active, "bin", "python") if active else None
if python and not os.access(python, os.X_OK):
    raise SystemExit(f"error: VIRTUAL_ENV is {active}, where there is no bin/python: activate another one, or none")
# The first line of a command names its Python, and the kernel cuts that at a blank and after 255 bytes.
if python and (len(python.split()) != 1 or len(os.fsencode(f"#!{python}")) > 255):
    raise SystemExit(
        f"error: VIRTUAL_ENV is {active}: no command could name its Python, for the path has a blank in it or is too "
        "long; make the environment elsewhere"
    )


class Develop(develop):
    """`colcon build --symlink-install`, which does not heed the option that `build_scripts` has."""

    def write_script(self, script_name, contents, *args, **kwargs):
        if python and contents.startswith("#!"):
            contents = f"#!{python}\n" + contents.partition("\n")[2]
        super().write_script(script_name, contents, *args, **kwargs)


setup(
    name=NAME,
    version=manifest.findtext("version"),
    description=" ".join((manifest.findtext("description") or "").split()),
    license=manifest.findtext("license"),
    packages=find_packages(include=["rscmd_model", "rscmd_model.*", "rscmd_ros", "rscmd_ros.*"]),
    package_data={"rscmd_model.datasets": ["splits/*.txt"], "rscmd_ros.bags": ["report.html"]},
    python_requires=">=3.10",
    install_requires=["setuptools"],
    zip_safe=False,
    options={"build_scripts": {"executable": python}} if python else {},
    cmdclass={"develop": Develop},
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
            "register_bag = rscmd_ros.register_bag:cli",
            "label_bag = rscmd_ros.label_bag:cli",
            "self_train = rscmd_ros.self_train:cli",
            "annotations = rscmd_ros.annotations:cli",
        ]
    },
)

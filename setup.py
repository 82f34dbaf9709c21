"""What pyproject.toml cannot say: the configs lie beside the package here, and inside it once it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cim", "cim.*"]), "cim.configs", "cim.configs.mmdet"],
    package_dir={"cim.configs": "configs", "cim.configs.mmdet": "configs/mmdet"},
    package_data={
        "cim": ["py.typed"],
        "cim.report": ["templates/*.j2"],
        "cim.review": ["page/*"],
        "cim.configs": ["*.yaml"],
        "cim.configs.mmdet": ["*.py"],
    },
)

"""The wheel holds `recipes/` and `merges/` too; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies them into the package. A checkout that is installed editable has them beside it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in ("recipes", "merges"):
            target = Path(self.build_lib) / "toolkit" / "packaged" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / name, target)


setup(cmdclass={"build_py": BuildWithRecipes})

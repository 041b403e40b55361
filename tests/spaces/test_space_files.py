# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The folder as a Space: front matter, requirements, pictures, and nothing fetched from elsewhere."""

import re

import pytest
import yaml
from packaging.requirements import Requirement

from tests.spaces.conftest import SPACE

tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
REPOSITORY = SPACE.parents[1]


def front_matter():
    return yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_front_matter():
    card = front_matter()
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60  # the Hub refuses longer ones
    assert card["license"] == "apache-2.0"


def test_sdk_version_is_one_the_project_allows():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (gradio,) = [Requirement(line) for line in extras["demo"] if Requirement(line).name == "gradio"]
    assert gradio.specifier.contains(str(front_matter()["sdk_version"]))


def test_requirements_are_the_projects_own():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    ours = {Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["demo"]}
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    theirs = {Requirement(line) for line in lines if line and not line.startswith("#")}
    # A Space installs gradio itself, in the version of the front matter.
    assert theirs == {requirement for requirement in ours if requirement.name != "gradio"}


def test_pictures_of_the_readme():
    named = re.findall(r"\]\((screenshots/[^)]+)\)", (SPACE / "README.md").read_text(encoding="utf-8"))
    assert len(named) >= 3
    for name in named:
        data = (SPACE / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 400_000, name


def test_sources_load_nothing_from_elsewhere():
    for path in sorted((SPACE / "ppow_demo").iterdir()):
        if path.suffix in (".py", ".css"):
            assert not re.findall(r"https?://|@import|GoogleFont", path.read_text(encoding="utf-8")), path.name


def test_statistics_are_off_before_gradio_is_imported():
    source = (SPACE / "ppow_demo" / "app.py").read_text()
    assert source.index("from . import offline") < source.index("import gradio")

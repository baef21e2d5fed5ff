"""Every name of the package that README, documentation and recipes mention is there."""

import importlib
import re
from pathlib import Path

import pytest

import diffusers_cfld

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]
PAGES += sorted((ROOT / "src").rglob("README.md"))
SCRIPTS = sorted((ROOT / "examples" / "inference").glob("*.py"))

IMPORT = re.compile(r"from (diffusers_cfld[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")
DOTTED = re.compile(r"(?<![\w/])diffusers_cfld(?:\.\w+)+(?!\w|/)")
MEMBER = re.compile(rf"\b({'|'.join(sorted(diffusers_cfld.__all__))})\.(?!png|py)(\w+)")


def mentioned(text):
    for module, several, line in IMPORT.findall(text):
        for name in re.findall(r"\w+", several or line):
            yield f"{module}.{name}"
    yield from DOTTED.findall(IMPORT.sub("", text))
    for owner, member in MEMBER.findall(text):
        yield f"diffusers_cfld.{owner}.{member}"


def resolve(path):
    parts = path.split(".")
    value = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], start=2):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[:index]))
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_on_the_page_can_be_imported(page):
    missing = []
    for name in sorted(set(mentioned(page.read_text()))):
        try:
            resolve(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing

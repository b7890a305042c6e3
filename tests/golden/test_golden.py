"""Versions are honest: what a component computes, and its defaults, change only with its version."""

from __future__ import annotations

import json

import pytest
from golden.compute import components
from golden.make import FOLDER, complaint, path_of

COMPONENTS = components()


@pytest.mark.parametrize("component", COMPONENTS)
def test_golden(component: str) -> None:
    path = path_of(component)
    assert path.is_file(), f"{component} has no golden numbers yet: `make golden`"
    wrong = complaint(json.loads(path.read_text()), COMPONENTS[component]().plain())
    assert not wrong, wrong


def test_no_file_of_a_component_that_is_gone() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == {path_of(name).name for name in COMPONENTS}

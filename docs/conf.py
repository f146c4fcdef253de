"""Sphinx configuration. Pages under ``generated/`` are made from the code at each build."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import permllm

project = "permllm"
author = "The permllm developers"
copyright = "2025, the permllm developers"
version = release = permllm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generate",
]
exclude_patterns = ["_build", "generated"]

html_theme = "furo"
html_title = "permllm"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
# It comes with PyTorch for CUDA, and weighs more than all that the documentation needs.
autodoc_mock_imports = ["triton"]
napoleon_numpy_docstring = False
# Attributes of classes are documented in the class's docstring.
napoleon_use_ivar = True

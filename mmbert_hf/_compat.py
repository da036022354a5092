"""Work-arounds for defects of supported versions of other libraries: the one place that looks at versions."""

from importlib import import_module
from importlib.metadata import version

from packaging.version import Version

TRANSFORMERS = Version(version("transformers"))


def transport_error() -> type[Exception]:
    """What the HTTP client of huggingface_hub raises when there is no answer: its client is httpx in 1.x, httpx2 later."""
    from huggingface_hub.errors import HfHubHTTPError

    client = next(base.__module__.partition(".")[0] for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    error: type[Exception] = import_module(client).TransportError
    return error


def register_on_native_config(auto_class: type, config_class: type, model_class: type) -> None:
    """Make an Auto class of transformers give `model_class` for a configuration class of transformers' own.

    transformers 5.17 and 5.18 ignore ``AutoModel.register`` for their own configurations, ``exist_ok=True`` or not and
    without a word. There we write the entry that 5.19 writes. Can go when 5.19 is the oldest supported version.
    """
    if Version("5.19") > TRANSFORMERS:
        auto_class._model_mapping._extra_content[config_class] = model_class  # type: ignore[attr-defined]
    else:
        auto_class.register(config_class, model_class, exist_ok=True)  # type: ignore[attr-defined]

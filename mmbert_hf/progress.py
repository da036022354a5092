"""Progress bars that obey the switches of the ecosystem."""

from typing import Any

__all__ = ["progress_bar"]


def progress_bar(show: bool = True, **options: Any) -> Any:
    """A bar of tqdm. It is not shown where ``TQDM_DISABLE`` or ``HF_HUB_DISABLE_PROGRESS_BARS`` is set.

    Args:
        show: Whether it is wanted at all.
        options: Of tqdm, without ``disable``: where that is given, tqdm does not look at its own variable.
    """
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from tqdm.auto import tqdm

    return tqdm(**options) if show and not HF_HUB_DISABLE_PROGRESS_BARS else tqdm(disable=True, **options)

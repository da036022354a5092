"""Progress bars that obey the switches of the ecosystem."""

from typing import Any

__all__ = ["progress_bar"]


def progress_bar(show: bool = True, **options: Any) -> Any:
    """A bar of tqdm, as huggingface_hub has it.

    It is not shown where ``TQDM_DISABLE`` or ``HF_HUB_DISABLE_PROGRESS_BARS`` is set, nor behind
    `huggingface_hub.utils.disable_progress_bars`. (tqdm reads its own variable only where ``disable`` is not given.)

    Args:
        show: Whether it is wanted at all.
        options: Of tqdm, without ``disable``.
    """
    from huggingface_hub.utils import tqdm

    return tqdm(**options) if show else tqdm(disable=True, **options)

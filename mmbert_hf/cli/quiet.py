"""What ``--quiet`` means to the libraries below."""


def quiet_libraries() -> None:
    """Turn off progress bars of transformers, datasets and huggingface_hub for this process."""
    from datasets import disable_progress_bars as datasets_bars
    from huggingface_hub.utils import disable_progress_bars as hub_bars
    from transformers.utils import logging

    datasets_bars()
    hub_bars()
    logging.disable_progress_bar()

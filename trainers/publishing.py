"""Trainers whose pushes go through `mmbert_hf.hub.publish`: one commit that is checked, safetensors only, ModernBERT for all.

Design decisions:

- Every argument of transformers' Trainer keeps its meaning: `push_to_hub`, `hub_model_id`, `hub_strategy`, `hub_token`,
  `hub_private_repo`, `hub_revision`, `hub_always_push`, and those of ``trainer.push_to_hub()``.
- In training, a copy of the checkpoint's model is published in the background: the checkpoint itself may be deleted while
  that goes on (`save_total_limit`).
- Only files are read and sent in the background. What has to be converted is converted before, since loading a model is
  nothing for a second thread: while transformers loads one, it takes `tie_weights` from *all* models of the process, and two
  loads at a time can leave it so.
- Checkpoints with optimizer states are pickles. They go to the Hub only where `hub_strategy` asks for them, with a notice.
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy, SaveStrategy

from mmbert_hf.hub.local_files import is_published
from mmbert_hf.hub.publication import Publication, publish
from mmbert_hf.hub.staging import stage

__all__ = ["PublishingMixin"]

logger = logging.getLogger(__name__)


class PublishingMixin:
    """For the left of `transformers.Trainer`, or of a class of it."""

    def push_to_hub(
        self: Any,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model with its card, and publish it.

        Args:
            commit_message: First line of the commit.
            blocking: Wait until it is published.
            token: Of the Hub; ``args.hub_token`` if None.
            revision: Branch, made if it is not there; ``args.hub_revision`` if None.
            private: Of a new repository; ``args.hub_private_repo`` if None.
            kwargs: Of `create_model_card`.

        Returns:
            `huggingface_hub.CommitInfo` on the main process, in a future if not `blocking`; None on others.

        Raises:
            Exception: As `mmbert_hf.hub.publish` says.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # on every process: sharded models are gathered
        if not self.is_world_process_zero():
            return None
        name = (
            kwargs.pop("model_name", None)
            or (self.args.hub_model_id or self.args.output_dir).rstrip("/").split("/")[-1]
        )
        model_tags = getattr(self.model, "model_tags", None)
        if model_tags is not None:
            given = kwargs.get("tags") or []
            kwargs["tags"] = list(dict.fromkeys([*([given] if isinstance(given, str) else given), *model_tags]))
        self.create_model_card(model_name=name, **kwargs)
        self._finish_current_push()
        options: dict[str, Any] = {
            "commit_message": commit_message,
            "token": token,
            "revision": revision if revision is not None else self.args.hub_revision,
        }
        if blocking:
            return _commit_info(publish(self.args.output_dir, self.hub_model_id, **options))
        scratch = Path(tempfile.mkdtemp(prefix="mmbert-push-"))
        folder = _converted(Path(self.args.output_dir), scratch)
        return HfApi().run_as_future(_publish_and_remove, scratch, folder, self.hub_model_id, **options)

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        """Publish the model of a checkpoint in the background; with some strategies the whole checkpoint too."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"
        message, options = (
            f"Training in progress, {where}",
            {"token": self.args.hub_token, "revision": self.args.hub_revision},
        )
        scratch, folder = self._copy_of_model(Path(checkpoint_folder))
        jobs = [
            HfApi().run_as_future(
                _publish_and_remove, scratch, folder, self.hub_model_id, commit_message=message, **options
            )
        ]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning(
                "hub_strategy=%r publishes checkpoints as they are: optimizer states and random states are pickles, which run "
                "code when they are loaded without weights_only",
                str(self.args.hub_strategy.value),
            )
            is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if is_last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    run_as_future=True,
                    revision=self.args.hub_revision,
                )
            )
        self._add_push_jobs(jobs)

    def _copy_of_model(self: Any, checkpoint: Path) -> tuple[Path, Path]:
        """A temporary folder, and in it the files of a checkpoint as they are published."""
        scratch = Path(tempfile.mkdtemp(prefix="mmbert-push-"))
        copy = scratch / "copy"
        copy.mkdir()
        for path in checkpoint.iterdir():
            if path.is_file() and is_published(path):
                shutil.copy2(path, copy / path.name)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(copy)
        card = Path(self.args.output_dir, "README.md")
        if card.is_file() and not (copy / "README.md").is_file():
            shutil.copy2(card, copy / "README.md")
        return scratch, _converted(copy, scratch)

    def _add_push_jobs(self: Any, jobs: list[Any]) -> None:
        from transformers.utils import PushInProgress

        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)


def _converted(folder: Path, scratch: Path) -> Path:
    """The folder in the form that is published: itself, or one in `scratch`, if it had to be converted."""
    files = scratch / "files"
    files.mkdir()
    return stage(folder, files).folder


def _publish_and_remove(scratch: Path, folder: Path, repo_id: str, **options: Any) -> CommitInfo:
    try:
        return _commit_info(publish(folder, repo_id, **options))
    except Exception as error:  # in a thread, where nobody would see it
        logger.error("the model in training could not be published: %s", error)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _commit_info(done: Publication) -> CommitInfo:
    """What transformers' Trainer returns."""
    is_request = done.url is not None and "/discussions/" in done.url
    return CommitInfo(
        commit_url=str(done.url),
        commit_message="",
        commit_description="",
        oid=str(done.commit),
        pr_url=done.url if is_request else None,
    )

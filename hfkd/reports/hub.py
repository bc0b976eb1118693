"""What the trainer does beside training a student that is published: the card, and failures that say how to go on."""

import inspect
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer

from hfkd.models.kept_config import KeptConfig
from hfkd.reports.card import write_card
from hfkd.reports.evaluations import MarkedEvaluations
from hfkd.training.host import Host
from hfkd.utils.command import without_secrets

# The base of all that the client's HTTP library raises; the library itself differs between versions of huggingface_hub.
FAILURES: tuple[Any, ...] = (HfHubHTTPError.__mro__[1], ConnectionError)


class HubTrainer(MarkedEvaluations, KeptConfig):
    """Trainer with hfkd's model card. A failed upload is a ConnectionError; what is in `output_dir` stays whole.

    details: what the card says beside what the trainer knows, such as `dataset_name`.
    """

    details: Mapping[str, Any] = MappingProxyType({})

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """Write the model card into `output_dir`; takes what Trainer's takes, see `hfkd.reports.card.write_card`."""
        given = inspect.signature(Trainer.create_model_card).bind(self, *arguments, **keywords).arguments
        if self.is_world_process_zero():
            write_card(cast(Host, given.pop("self")), **given)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        with explained("creating the repository", "Log in with `hf auth login`, or train without push_to_hub."):
            super().init_hf_repo(token, private)

    def push_to_hub(self, *arguments: Any, **keywords: Any) -> Any:
        folder, name = self.args.output_dir, self.hub_model_id or self.args.hub_model_id
        again = f"`hf upload {name} {shlex.quote(str(folder))} . --exclude 'checkpoint-*'`"
        with explained(f"uploading {folder}", f"All of it is whole there; to upload it again: {again}"):
            return super().push_to_hub(*arguments, **keywords)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Raise a failure to reach the Hub, or its refusal, as a ConnectionError of one line; let other errors through."""
    try:
        yield
    except (*FAILURES, RuntimeError) as error:
        # the client wraps what happened to a large file in a RuntimeError
        cause = error if isinstance(error, FAILURES) else error.__cause__
        if not isinstance(cause, FAILURES):
            raise
        reason = " ".join(without_secrets(str(cause)).split()) or type(cause).__name__
        raise ConnectionError(f"{what} failed ({reason}). {remedy}") from error

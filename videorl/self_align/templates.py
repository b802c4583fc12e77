"""Every text that is said to the model. The words are ours: VideoSAVi has not published its own.

A file of one's own (`params.templates`, YAML with the same keys) takes the place of these, in part or whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(min_length=1)]


class Templates(BaseModel):
    """`{question}`, `{answer}` and `{critique}` stand for what the model has said before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: dict[str, Text] = {
        "spatial": "Ask one question about where things are in this video: their places, sizes and distances. "
        "Write the question alone.",
        "temporal": "Ask one question about the order in which things happen in this video, or about how long they "
        "take. Write the question alone.",
    }
    answer: Text = "{question}"
    critique: Text = (
        "Question: {question}\nAnswer: {answer}\nWatch the video again. Say what in this answer is wrong or missing, "
        "and why. If nothing is, write NONE."
    )
    revision: Text = (
        "Question: {question}\nAnswer: {answer}\nCritique: {critique}\nWrite the corrected answer alone, without a "
        "word about the critique."
    )
    no_finding: Text = Field(default=r"\W*none\b.*", description="a critique that matches this has found nothing")


def load_templates(path: str | None) -> Templates:
    """Raises ValueError where the file does not hold what it must."""
    if path is None:
        return Templates()
    try:
        return Templates.model_validate(yaml.safe_load(Path(path).read_text()) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"params.templates: {path}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"params.templates: {path}: {wrong}") from error

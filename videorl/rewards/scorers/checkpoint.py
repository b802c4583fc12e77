"""Where the weights of a scorer's own network come from: safetensors only, and no code from the checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from videorl.imports import fix_imports

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder or a hub name (then pin `revision`), and how to hold its weights."""

    path: str
    revision: str | None = None
    dtype: Dtype = "float32"
    device: str = "cpu"

    def load(self, auto: str, unused: str = "") -> Any:
        """The model that the class `auto` of transformers makes of it, complete: a head it lacks would be random.

        Raises ValueError for weights that are missing, those that begin with `unused` apart.
        """
        model, info = self.pretrained(auto, dtype=self.dtype, use_safetensors=True, output_loading_info=True)
        if missing := sorted(key for key in info["missing_keys"] if not (unused and key.startswith(unused))):
            raise ValueError(
                f"{self.path} has no weights for {', '.join(missing[:5])} of {type(model).__name__}; "
                "name a checkpoint that was trained for this"
            )
        return model.to(self.device).eval().requires_grad_(False)

    def pretrained(self, auto: str, **kwargs: Any) -> Any:
        """What the class `auto` of transformers reads from it: a tokenizer, a processor, a configuration."""
        fix_imports()
        import transformers

        reader = getattr(transformers, auto)
        return reader.from_pretrained(self.path, revision=self.revision, trust_remote_code=False, **kwargs)

    def json(self, name: str) -> Any:
        """The content of a JSON file of it; None where it has no such file."""
        fix_imports()
        from transformers.utils.hub import cached_file

        file = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        if file is None:
            return None
        with open(file) as content:
            return json.load(content)

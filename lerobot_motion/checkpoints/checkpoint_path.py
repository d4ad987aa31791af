"""Hiding a configuration's checkpoint path from LeRobot while the processors are built."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class HiddenCheckpointPath:
    """Mixed into a policy's configuration: its `pretrained_path` can be hidden for a while."""

    pretrained_path: Any

    @contextmanager
    def checkpoint_path_shown(self) -> Iterator[None]:
        """Within this context `pretrained_path` is what the user gave, even while it is hidden."""
        hidden = self.release_checkpoint_path()
        try:
            yield
        finally:
            if hidden is not None:
                self.hide_checkpoint_path()

    def hide_checkpoint_path(self) -> None:
        """Set `pretrained_path` to None until the processors are built.

        LeRobot 0.6.1 loads the processors of `pretrained_path` where there is one, and those of a
        base checkpoint lack our step; without a path it calls our factory, which knows better.
        """
        self._hidden_path: Any = self.pretrained_path
        self.pretrained_path = None

    def release_checkpoint_path(self) -> Path | None:
        """Undo `hide_checkpoint_path`.

        Returns:
            The path, or None if it was not hidden.
        """
        hidden: Path | None = getattr(self, "_hidden_path", None)
        if hidden is not None:
            self._hidden_path = None
            self.pretrained_path = hidden
        return hidden

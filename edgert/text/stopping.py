"""Stop strings: texts that end an answer. The answer ends where a stop string begins, and shows nothing of it."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on as it comes, but holds back what may be the beginning of one of `stops`."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns what is certainly not part of a stop string. `found` is set when one is complete."""
        self._held += text
        starts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            self.found = True
            certain, self._held = self._held[:min(starts)], ""
            return certain
        keep = max((n for stop in self._stops for n in range(1, min(len(stop), len(self._held) + 1))
                    if self._held.endswith(stop[:n])), default=0)
        certain, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
        return certain

    def flush(self) -> str:
        """Returns the text that was held back and did not become a stop string."""
        certain, self._held = self._held, ""
        return certain

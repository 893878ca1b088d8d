"""Stop strings in a stream of text: where one begins the text ends, and nothing of it is shown."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on, holding back what may become one of `stops`."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is certain not to be of a stop string; `found` once one is complete."""
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
        """What was held back and became no stop string."""
        certain, self._held = self._held, ""
        return certain

"""`max_loss`: taking guesses that the model likes nearly as much as its own choices, for a price that is kept to.

Speculation checks guesses with the model's exact logits. Where a guess is not the choice, but nearly as likely, taking
it saves a pass over the weights: lenience (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding", appendix A.5; Cai et al. 2024, "Medusa", take what is typical enough). Here an answer has an account: each of
its tokens brings log(1 + max_loss), and a guess that is taken costs what it is less likely than the choice, in nats. It
is never overdrawn, so an answer is by at most `max_loss` less likely a token than if each were the model's choice.
"""

import math

from edgert.errors import ModelError

MOST_LOSS = 1.0
_SAVED = 100
"""Tokens whose share can be saved, so that no passage is much worse than the rest because the one before it was good.
"""
_MOST = 1.0
"""Nats that one guess may cost: e times less likely than the choice. What is further away may well be wrong."""


def check_max_loss(max_loss: float) -> None:
    """Raises ModelError where it is out of range."""
    if not isinstance(max_loss, int | float) or not 0 <= max_loss <= MOST_LOSS:
        raise ModelError(f"max_loss is {max_loss!r}; it goes from 0 to {MOST_LOSS:g}, for 100 %")


class Account:
    """What an answer may lose. spent: nats, so far. taken: guesses that were taken.

    max_loss: 0.03 for 3 %. price: nats that each token has cost already, as the model was loaded to leave something
    out.
    Raises ModelError where max_loss is out of range.
    """

    def __init__(self, max_loss: float, price: float = 0.0) -> None:
        check_max_loss(max_loss)
        self._share = max(math.log1p(max_loss) - price, 0.0)
        self.spent, self.taken = 0.0, 0

    @property
    def open(self) -> bool:
        """Whether anything may be lost at all."""
        return self._share > 0

    def pays(self, cost: float, number: int) -> bool:
        """Whether a guess that costs so many nats, as the answer's token of this number (from 1 on), is taken; then it
        is paid."""
        if cost > min(self._share * number - self.spent, self._share * _SAVED, _MOST):
            return False
        self.spent += max(cost, 0.0)
        self.taken += 1
        return True

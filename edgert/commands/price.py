"""What `--max-loss` means for a model, in a sentence."""

import math

from edgert.answering import LanguageModel
from edgert.bundle import Header
from edgert.bundle.header import PREDICTORS, ExpertLoss, LeftOut
from edgert.generation.lenience import MOST_LOSS
from edgert.model import Model
from edgert.terminal import show

from .shares import percent


def tell_price(model: LanguageModel, max_loss: float, *, answers: bool = True) -> None:
    """Tell the user what `max_loss` means for this model, where it is given. answers: whether some will be given, for
    which tokens may be guessed."""
    if isinstance(model, Model) and (model.header.config.experts or model.header.losses):
        if max_loss or model.left_out:
            show(_price_of_left_out(model, max_loss, guesses=answers and model.guesses), err=True)
        return
    of_sparse = ""
    if max_loss and isinstance(model, Model) and model.header.config.sparse:
        of_sparse = f"; no neurons are left out: {_why_none(model.header)}"
    if max_loss and model.drafts:
        show(f"max-loss {100 * max_loss:g} %: answers depend on the memory budget, and may differ from one time to the "
             f"next; each is at most {100 * max_loss:g} % less likely a token than what the model would choose"
             f"{of_sparse}", err=True)
    elif max_loss:
        show("max-loss changes little here: nothing is drafted, which takes a budget that holds enough of the weights "
             f"for a draft, and not all of them{of_sparse}", err=True)


def _price_of_left_out(model: Model, max_loss: float, *, guesses: bool) -> str:
    """The same of a mixture of experts, or a sparse model with predictors. guesses: whether tokens are guessed."""
    asked, left_out = f"max-loss {100 * max_loss:g} %", model.left_out
    likely = "that the model likes nearly as much as its own choice"
    if left_out is not None:
        rest = math.expm1(math.log1p(max_loss) - left_out.nats)
        for_guesses = (f"; what is left of it, {percent(rest)}, pays for guesses {likely}, which may differ from one "
                       "time to the next") if rest > 0 and guesses else ""
        if max_loss == model.max_loss:
            return left_out_text(model.header, max_loss) + for_guesses
        return (f"{asked} is for guesses alone, as the model was loaded with {100 * model.max_loss:g} %: "
                f"{_which(left_out, model.header)}{for_guesses}")
    for_guesses = f". Guesses {likely} are taken for it" if guesses else ""
    if max_loss > model.max_loss and model.header.left_out_for(max_loss):
        return (f"{asked} leaves out no {_what(model.header)}: which are is settled when a model is loaded; start it "
                f"with --max-loss{for_guesses}")
    return left_out_text(model.header, max_loss) + for_guesses


def left_out_text(header: Header, max_loss: float) -> str:
    """What experts of a mixture, or neurons of a sparse model, are left out if it is loaded with `max_loss`, and what
    that costs; or why none are."""
    left_out = header.left_out_for(max_loss)
    return f"max-loss {100 * max_loss:g} %" + (
        f" leaves out no {_what(header)}: {_why_none(header)}" if left_out is None else
        f": {_which(left_out, header)}")


def _what(header: Header) -> str:
    return "experts" if header.config.experts else "neurons"


def _why_none(header: Header) -> str:
    if header.config.experts_per_token == 1:
        return "each token has only one"
    if not (curve := header.losses):
        if PREDICTORS in header.sections:
            return "what that costs could not be measured when this bundle was converted"
        again = "with --predictors" if header.config.sparse else "without --no-calibrate"
        return f"this bundle does not say what that costs; convert it again, {again}"
    least = curve[0].loss
    return (f"the least that this bundle knows to leave out costs {percent(least, at_least=True)}"
            f"{'; give at least that' if least <= MOST_LOSS else ''}")


def kind_left_out(left_out: LeftOut) -> str:
    """What it is that is left out."""
    least = percent(left_out.threshold)
    return (f"experts with less than {least} of a token's weight" if isinstance(left_out, ExpertLoss) else
            f"neurons that are active with a probability below {least}")


def _which(left_out: LeftOut, header: Header) -> str:
    stay = (f"about {left_out.experts:.1f} of {header.config.experts_per_token} stay"
            if isinstance(left_out, ExpertLoss) else
            f"{percent(left_out.computed)} of all stay, {percent(left_out.recall)} of those that are active")
    return (f"{kind_left_out(left_out)} are left out, {stay}; as was measured while converting, a token is "
            f"{percent(left_out.loss)} less likely for it, at every memory budget and number of threads the same")

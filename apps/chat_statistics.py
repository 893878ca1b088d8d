"""What `/stats` tells: speed, guesses, flash and memory."""

from collections.abc import Iterator

from edgert import Generation, LanguageModel, Model
from edgert.commands.price import kind_left_out
from edgert.commands.shares import percent


def statistics_lines(model: LanguageModel, last: Generation | None) -> Iterator[str]:
    """Lines for people. last: the last answer."""
    plan = model.plan
    if last is not None:
        s = last.statistics
        yield (f"last answer: {s.generated_tokens} tokens at {s.decode_tok_s:.1f} tokens/s; "
               f"first after {s.first_token_s:.2f} s ({s.prompt_computed} of {s.prompt_tokens} prompt tokens were "
               f"new, {s.prefill_tok_s:.0f} tokens/s)")
        if s.guessed:
            yield (f"guesses: {s.right} of {s.guessed} were right, {100 * s.agreement:.0f} % of those with only "
                   f"right ones before them; {s.tokens_per_pass:.1f} tokens came of each pass over the weights; "
                   f"guessing took {s.draft_s:.1f} s, checking {s.verify_s:.1f} s")
        if s.lenient:
            yield (f"max-loss: {s.lenient} of the right ones were not what the model chose, but nearly as likely; the "
                   f"answer is {100 * s.loss_per_token:.2g} % less likely a token")
        yield f"context: {tokens_of(last)} of {model.context} tokens used"
        if (disk := plan.disk) is not None:
            yield (f"flash: {s.flash_bytes_per_token / 1e6:.0f} MB read for each token at "
                   f"{s.flash_bandwidth / 1e9:.2f} GB/s (the disk was measured at {disk.bandwidth / 1e9:.2f}); "
                   f"{100 * s.flash_wait_share:.0f} % of the time was waiting for it; "
                   f"{100 * plan.pinned_share:.0f} % of the weights are in memory")
    if isinstance(model, Model) and (counts := model.expert_counts) is not None and counts.needed:
        share = f"{100 * counts.right / counts.guessed:.0f} % of guesses were right" if counts.guessed else "no guesses"
        yield (f"experts: {100 * (1 - counts.missed / counts.needed):.0f} % were in memory, or on their way, when they "
               f"were needed; {share}; {counts.bytes / 1e9:.1f} GB of them were read since the model was loaded")
    if isinstance(model, Model) and (left_out := model.left_out) is not None:
        stay = model.experts_per_token
        yield (f"left out: {kind_left_out(left_out)}, so a token is {percent(left_out.loss)} less likely, as measured "
               "while converting"
               + (f"; {stay:.2f} of {model.header.config.experts_per_token} stay" if stay is not None else ""))
    if count := model.read_again:
        yield f"disk: {count} read{'s' * (count > 1)} failed or came damaged, and went well the second time"
    yield "memory: " + ", ".join(f"{name} {size / (1 << 20):.0f} MiB" for name, size in plan.parts.items())
    yield f"threads: {model.threads}"


def tokens_of(last: Generation) -> int:
    """Number of tokens of an answer and everything before it."""
    return len(last.prompt_ids) + len(last.token_ids)

"""When a pod is silent for longer than it should be: pure, time is an argument.

A pod with attempts of this gateway under way says something sooner or later: a first token, a chunk, an end. How soon
follows from all that it has to compute; `FACTOR` times that is granted, and no less for the attention of long prompts
than `LONG` prompt tokens a pair, so that a prompt of 100,000 tokens is waited for even where nobody sent one before.
How much later than that its pool's words usually come is learnt: mean and `SPREADS` mean deviations, clipped and
bounded (as TCP waits for an acknowledgement: Jacobson, SIGCOMM '88). Whole answers say nothing until they are done, so
they have a patience of their own, for pods that have nothing else under way.

What goes beyond is overdue, and costs more with each moment: the longer a pod was silent, the longer it is likely to
be. Its first word makes it cheap again. A stream whose client does not read is not waited for.
"""

from sheaf_gateway.routing.cost import Coefficients
from sheaf_gateway.routing.ledger import PodLedger

FACTOR = 2.0
LONG = 1e-4
LATE_S = 0.25


def granted_ms(count: float, pairs: float, price: Coefficients) -> float:
    """Milliseconds of silence that computing so many tokens and pairs explains."""
    pair_ms = max(price.attention_ms_per_pair, LONG * price.prefill_ms_per_token)
    return FACTOR * (price.base_ms + count * price.prefill_ms_per_token + pairs * pair_ms)


def late_ms(ledger: PodLedger, now: float, price: Coefficients) -> float:
    """Milliseconds for which the pod was silent beyond what its work explains."""
    return (now - ledger.heard_at) * 1000.0 - granted_ms(ledger.pending_tokens, ledger.pending_pairs, price)


def overdue_ms(ledger: PodLedger, now: float, price: Coefficients) -> float:
    """Milliseconds by which the pod's next word is overdue; 0 where nothing is waited for."""
    if ledger.awaited <= 0:
        return 0.0
    patience = price.patience_ms if ledger.streams > 0 else price.whole_patience_ms
    return max(0.0, late_ms(ledger, now, price) - patience)

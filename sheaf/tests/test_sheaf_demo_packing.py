"""Packed dialogues: each sees what it would see alone, and every answer's token is predicted by the one before it."""

from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf.demo.packing import Packed, pack, shared_length

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
DIALOGUES = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5)


def seen(packed: Packed, place: int) -> list[int]:
    """The tokens that a place attends to, in the order of their positions."""
    own = packed.turns[place]
    places = [other for other in range(place + 1) if packed.turns[other] in (0, own)]
    assert [packed.positions[other] for other in places] == list(range(len(places)))
    return [packed.tokens[other] for other in places]


@settings(max_examples=60, deadline=None)
@given(DIALOGUES)
def test_every_answer_token_is_predicted_from_exactly_what_stands_before_it(
    dialogues: list[tuple[list[int], list[int]]],
) -> None:
    packed = pack(dialogues)
    predicted = [(seen(packed, place - 1), packed.tokens[place]) for place in packed.answers]
    alone = [([*prompt, *answer[:n]], answer[n]) for prompt, answer in dialogues for n in range(len(answer))]
    assert predicted == alone


@settings(max_examples=60, deadline=None)
@given(DIALOGUES)
def test_what_all_prompts_begin_with_stands_there_once(dialogues: list[tuple[list[int], list[int]]]) -> None:
    packed = pack(dialogues)
    shared = shared_length([prompt for prompt, _ in dialogues])
    assert packed.turns.count(0) == shared
    whole = sum(len(prompt) + len(answer) for prompt, answer in dialogues)
    assert len(packed.tokens) == whole - shared * (len(dialogues) - 1)


def test_the_same_question_twice_keeps_its_last_token_in_each_turn() -> None:
    packed = pack([([1, 2], [7]), ([1, 2], [8])])
    assert packed == Packed(tokens=(1, 2, 7, 2, 8), positions=(0, 1, 2, 1, 2), turns=(0, 1, 1, 2, 2), answers=(2, 4))


def test_prompts_that_share_nothing_are_packed_side_by_side() -> None:
    assert pack([([1], [7]), ([2], [8])]).turns == (1, 1, 2, 2)

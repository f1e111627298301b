"""The agents' token opens figures; nothing else does in its place, and what requests were like is told in tokens."""

import pytest
from sheaf_gateway.admission.gate import Sizes
from sheaf_gateway.api.figure_readers import SharedToken

TOKEN = "a-token-that-is-long-enough"


def test_the_token_opens_and_others_do_not(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    reader = SharedToken(path)
    assert reader.shown(f"Bearer {TOKEN}")
    for header in (None, "", TOKEN, "Bearer ", "Bearer another-token-of-length", f"Basic {TOKEN}", "Bearer \u00e9"):
        assert not reader.shown(header)
    path.write_text("other-token-that-is-long")
    assert not reader.shown(f"Bearer {TOKEN}")


def test_no_file_no_token_and_a_short_token_open_nothing(tmp_path):
    path = tmp_path / "token"
    assert not SharedToken(None).shown("Bearer ")
    assert not SharedToken(path).shown(f"Bearer {TOKEN}")
    path.write_text("short")
    assert not SharedToken(path).shown("Bearer short")


def test_lengths_of_requests_are_means_with_their_spread():
    sizes = Sizes()
    assert sizes.spread == 0.0
    for uncached in (100.0, 300.0):
        sizes.learn(400.0, uncached, 50.0)
    assert (sizes.prompt, sizes.uncached, sizes.output) == (400.0, 200.0, 50.0)
    assert sizes.spread == 0.25


def test_a_context_is_what_every_token_of_an_answer_looks_back_at():
    sizes = Sizes()
    assert (sizes.context, sizes.context_spread) == (0.0, 0.0)
    sizes.learn(100.0, 100.0, 0.0)
    assert (sizes.context, sizes.context_spread) == (0.0, 0.0)
    sizes = Sizes()
    for prompt, output in ((1000.0, 30.0), (200.0, 300.0)):
        sizes.learn(prompt, prompt, output)
    looks = [1000.5 + token for token in range(30)] + [200.5 + token for token in range(300)]
    mean = sum(looks) / len(looks)
    square = sum(look * look for look in looks) / len(looks)
    assert sizes.context == pytest.approx(mean)
    assert sizes.context_spread == pytest.approx(square / mean**2 - 1.0, rel=1e-3)

"""Bytes of tokens become text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metamusesd.engines.text import TextStream


def shown(pieces: list[bytes], stops: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stops)
    texts = []
    for piece in pieces:
        texts.append(stream.feed(piece))
        if stream.stopped:
            break
    return [*texts, stream.finish()], stream


def test_a_character_is_never_split() -> None:
    """The bytes of one character in three tokens come out as one character."""
    assert shown([b"\xe2", b"\x82", b"\xac!"], [])[0] == ["", "", "€!", ""]


def test_a_broken_end_is_replaced() -> None:
    """A sequence that ends inside a character shows the replacement character."""
    assert "".join(shown([b"a\xe2\x82"], [])[0]) == "a\ufffd"


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    """`###` in three tokens ends the text before it; what merely looks like it is shown in the end."""
    texts, stream = shown([b"Hi #", b"#", b"# more"], ["###"])
    assert "".join(texts) == "Hi "
    assert stream.stopped
    assert "".join(shown([b"Hi #", b"# no"], ["###"])[0]) == "Hi ## no"


@given(st.text("ab#é", max_size=30), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3), st.randoms())
def test_text_is_what_stands_before_the_first_stop(text: str, stops: list[str], random) -> None:  # type: ignore[no-untyped-def]
    """However the bytes are cut, what is shown is the text up to the first stop string that completes."""
    raw = text.encode()
    cuts = sorted(random.sample(range(len(raw) + 1), min(len(raw), 5)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    joined = "".join(shown(pieces, stops)[0])
    assert text.startswith(joined)
    assert not any(stop in joined for stop in stops)
    if not any(stop in text for stop in stops):
        assert joined == text
